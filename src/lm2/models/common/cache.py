"""
The state of a model with memory tokens: LM2's cache, with other contents.

Blocks keep the keys and values of their open segment (`BlockState.keys`, `values`). What else there is differs: see
[`RMTCache`] and [`ARMTCache`].
"""

import json
import os
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from ..lm2.cache_lm2 import FORMAT_VERSION, BlockState, LM2Cache
from .configuration import MemoryTokenConfig


class MemoryTokenCache(LM2Cache):
    """An [`LM2Cache`] of a model with memory tokens; `config_class` says of which."""

    config_class: type[MemoryTokenConfig]

    def detach(self) -> None:
        """Cuts the state from the graph that made it, to carry memory from one training step to the next."""
        self._map(Tensor.detach)

    def check_config(self, config: Any) -> None:
        """
        Raises:
            ValueError: the cache belongs to a model of another kind or configuration; names what differs.
        """
        if type(config) is not type(self.config):
            raise ValueError(
                f"this cache belongs to another model: it is of model_type={self.config.model_type!r} "
                f"(model: {config.model_type!r}); use a cache of this model"
            )
        super().check_config(config)

    @classmethod
    def load(cls, path: str | os.PathLike, config: Any = None, device: str | torch.device = "cpu"):
        """
        Reads what `save` wrote; see [`LM2Cache.load`].

        Raises:
            ValueError: the file is not a cache, is of another format version, model or configuration.
        """
        with safe_open(path, framework="pt", device=str(device)) as file:
            metadata = file.metadata() or {}
            saved = json.loads(metadata.get("config", "{}"))
            if saved.get("model_type") != cls.config_class.model_type:
                raise ValueError(f"{path} is not a saved {cls.__name__}; write one with {cls.__name__}.save")
            if metadata["format_version"] != str(FORMAT_VERSION):
                raise ValueError(
                    f"{path} has format version {metadata['format_version']}, this lm2 reads {FORMAT_VERSION}; "
                    "load it with the lm2 that wrote it"
                )
            cache = cls(cls.config_class.from_dict(saved))
            if cache.config.fingerprint() != metadata["fingerprint"]:
                raise ValueError(f"{path} does not match its own fingerprint; the file is damaged or was edited")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if config is not None:
            cache.check_config(config)
        states: list[dict[str, Tensor]] = [{} for _ in cache.layers]
        for name in [name for name in tensors if name.startswith("blocks.")]:
            _, index, field = name.split(".")
            states[int(index)][field] = tensors.pop(name)
        cache.commit(
            [BlockState(**state) for state in states],
            tensors.get("bank"),
            int(metadata["num_columns"]),
            tensors["num_tokens"].cpu(),
            tensors["num_document_tokens"].cpu(),
        )
        return cache


__all__ = ["MemoryTokenCache"]
