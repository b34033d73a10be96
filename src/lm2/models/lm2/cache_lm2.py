"""
The state of a conversation: the open segment and the bank of every block, row by row.

Shapes: B rows, F cells of the open segment that are filled in its fullest row, W attention window in segments, S
segment length, U key-value heads, K head width, N slots, D hidden size.
"""

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from .configuration_lm2 import LM2Config

FORMAT_VERSION = 1


@dataclass(frozen=True)
class BlockState:
    """
    What one decoder block carries from call to call; a block takes one and returns the next. Fields that a
    configuration has no use for are None.

    Attributes:
        keys, values: of the open segment, [B, F, U, K], without rotary position.
        window_keys, window_values: of the W - 1 segments before it, [B, (W - 1) * S, U, K].
        source: what the pending write needs of the open segment's tokens, [B, F, D].
        bank: the bank as it stood when the open segment began, float32 [B, N, D].
        memory_keys, memory_values: of the bank's slots ("paper": of the slots paired with the open segment's tokens).
    """

    keys: Tensor | None = None
    values: Tensor | None = None
    window_keys: Tensor | None = None
    window_values: Tensor | None = None
    source: Tensor | None = None
    bank: Tensor | None = None
    memory_keys: Tensor | None = None
    memory_values: Tensor | None = None

    def map(self, function: Callable[[Tensor], Tensor]) -> "BlockState":
        """Applies a function to every tensor."""
        return BlockState(**{name: function(tensor) for name, tensor in self.tensors().items()})

    def tensors(self) -> dict[str, Tensor]:
        """The tensors by name."""
        named = ((field.name, getattr(self, field.name)) for field in fields(self))
        return {name: tensor for name, tensor in named if tensor is not None}


class LM2CacheLayer(CacheLayerMixin):
    """The place of one block's [`BlockState`] among transformers' cache layers."""

    is_sliding = False

    def __init__(self, cache: "LM2Cache"):
        super().__init__()
        self._cache = cache
        self.state = BlockState()

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        raise NotImplementedError("LM2Model fills an LM2Cache itself: pass the cache to the model")

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        raise NotImplementedError("LM2Model fills an LM2Cache itself: pass the cache to the model")

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self._cache.num_columns + query_length, 0

    def get_seq_length(self) -> int:
        return self._cache.num_columns

    def get_max_length(self) -> int:
        return -1

    def crop(self, tokens_to_remove: int) -> None:
        if tokens_to_remove != 0:
            raise ValueError(
                f"crop({tokens_to_remove}): what a bank has taken in cannot be taken out; "
                "save the cache before such tokens (LM2Cache.save, or copy.deepcopy after detach) and go on from there"
            )


class LM2Cache(Cache):
    """
    State of [`LM2Model`]: for every row the open segment, the banks, and how many tokens of its document it has seen.
    Rows are independent. The size is bounded for a given batch unless `attention_window` is None.

    ```python
    cache = LM2Cache(model.config)
    model(first_part, cache=cache, use_cache=True)
    model(second_part, cache=cache, use_cache=True)  # as if both parts had come in one call
    ```

    Args:
        config: the model's configuration.

    Attributes:
        num_columns: token columns seen, padding included; what transformers calls the sequence length.
        num_tokens: int64 [B] on the CPU, real tokens that each row has seen; None before the first call.
        num_document_tokens: the same, of the row's current document.
        bank: design "paper" only: the bank that goes from the last block to the next segment's first, [B, N, D].
    """

    def __init__(self, config: LM2Config):
        self.config = config
        super().__init__(layers=[LM2CacheLayer(self) for _ in range(config.num_hidden_layers)])
        self._clear()

    def _clear(self) -> None:
        self.num_columns = 0
        self.num_tokens: Tensor | None = None
        self.num_document_tokens: Tensor | None = None
        self.bank: Tensor | None = None
        for layer in self.layers:
            layer.state = BlockState()

    @property
    def is_initialized(self) -> bool:
        return self.num_tokens is not None

    @property
    def batch_size(self) -> int:
        """Rows, or -1 before the first call."""
        return -1 if self.num_tokens is None else len(self.num_tokens)

    @property
    def states(self) -> tuple[BlockState, ...]:
        """One state per block."""
        return tuple(layer.state for layer in self.layers)

    @property
    def num_bytes(self) -> int:
        """Bytes of all tensors of the state."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self._tensors().values())

    def commit(
        self,
        states: Sequence[BlockState],
        bank: Tensor | None,
        num_columns: int,
        num_tokens: Tensor,
        num_document_tokens: Tensor,
    ) -> None:
        """Stores what a call of the model returned, after all of it has succeeded."""
        for layer, state in zip(self.layers, states, strict=True):
            layer.state = state
        self.bank = bank
        self.num_columns += num_columns
        self.num_tokens = num_tokens
        self.num_document_tokens = num_document_tokens

    def reset(self, rows: Sequence[int] | Tensor | None = None) -> None:
        """
        Forgets: all rows (then the cache is as new), or the given rows, which start a new document at their next token.

        Raises:
            ValueError: a row that the cache does not have.
        """
        if rows is None:
            self._clear()
            return
        index = self._check_rows(rows)
        # A document of zero tokens makes the blocks start from their initial bank; nothing else need be touched.
        self.num_document_tokens = self.num_document_tokens.index_fill(0, index, 0)
        self.num_tokens = self.num_tokens.index_fill(0, index, 0)

    def select(self, rows: Sequence[int] | Tensor) -> None:
        """Keeps the given rows, in the given order; a row may be named more than once."""
        self._apply_to_rows(self._check_rows(rows))

    def detach(self) -> None:
        """Cuts the state from the graph that made it, to carry memory from one training step to the next."""
        self._map(Tensor.detach)
        if self.config.memory_design == "segment":
            # Made anew from the bank, so that reading it goes on training the projections that read.
            for layer in self.layers:
                layer.state = replace(layer.state, memory_keys=None, memory_values=None)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self._apply_to_rows(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        self._apply_to_rows(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        if self.is_initialized:
            self._apply_to_rows(torch.arange(self.batch_size).repeat_interleave(repeats))

    def crop(self, tokens_to_remove: int) -> None:
        self.layers[0].crop(tokens_to_remove)

    def offload(self, *args, **kwargs) -> None:
        raise ValueError("LM2Cache is not offloaded: it is small and does not grow; leave out cache_implementation")

    prefetch = offload

    def check_config(self, config: LM2Config) -> None:
        """
        Raises:
            ValueError: the cache belongs to a model of another configuration; names what differs.
        """
        if self.config.fingerprint() == config.fingerprint():
            return
        theirs, ours = self.config.state_fields(), config.state_fields()
        differing = ", ".join(
            f"{name}={theirs[name]!r} (model: {ours[name]!r})" for name in ours if theirs[name] != ours[name]
        )
        raise ValueError(f"this cache belongs to another model: it has {differing}; use a cache of this model")

    def save(self, path: str | os.PathLike) -> None:
        """
        Writes the state as one safetensors file, whole or not at all, with the configuration and its fingerprint.

        Raises:
            ValueError: the cache is empty.
        """
        if not self.is_initialized:
            raise ValueError("cannot save an empty cache; run the model with it first")
        path = Path(path)
        partial = path.with_name(path.name + ".partial")
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self._tensors().items()}
        metadata = {
            "format": "lm2-cache",
            "format_version": str(FORMAT_VERSION),
            "fingerprint": self.config.fingerprint(),
            "config": json.dumps(self.config.to_dict(), default=str),
            "num_columns": str(self.num_columns),
        }
        save_file(tensors, partial, metadata)
        os.replace(partial, path)

    @classmethod
    def load(cls, path: str | os.PathLike, config: LM2Config | None = None, device: str | torch.device = "cpu"):
        """
        Reads what [`save`] wrote.

        Args:
            path: the file.
            config: of the model that the state is for; None takes the saved one, and the model checks it.
            device: where the tensors go.

        Raises:
            ValueError: the file is not a cache, is of another format version, or belongs to another configuration.
        """
        with safe_open(path, framework="pt", device=str(device)) as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != "lm2-cache":
                raise ValueError(f"{path} is not a saved LM2Cache; write one with LM2Cache.save")
            if metadata["format_version"] != str(FORMAT_VERSION):
                raise ValueError(
                    f"{path} has format version {metadata['format_version']}, this lm2 reads {FORMAT_VERSION}; "
                    "load it with the lm2 that wrote it"
                )
            cache = cls(LM2Config.from_dict(json.loads(metadata["config"])))
            if cache.config.fingerprint() != metadata["fingerprint"]:
                raise ValueError(f"{path} does not match its own fingerprint; the file is damaged or was edited")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if config is not None:
            cache.check_config(config)
        cache.num_columns = int(metadata["num_columns"])
        cache.num_tokens = tensors.pop("num_tokens").cpu()
        cache.num_document_tokens = tensors.pop("num_document_tokens").cpu()
        cache.bank = tensors.pop("bank", None)
        by_block: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            _, index, field = name.split(".")
            by_block.setdefault(int(index), {})[field] = tensor
        for index, block_tensors in by_block.items():
            cache.layers[index].state = BlockState(**block_tensors)
        return cache

    def _tensors(self) -> dict[str, Tensor]:
        if not self.is_initialized:
            return {}
        tensors = {"num_tokens": self.num_tokens, "num_document_tokens": self.num_document_tokens}
        if self.bank is not None:
            tensors["bank"] = self.bank
        for index, state in enumerate(self.states):
            tensors |= {f"blocks.{index}.{name}": tensor for name, tensor in state.tensors().items()}
        return tensors

    def _check_rows(self, rows: Sequence[int] | Tensor) -> Tensor:
        index = torch.as_tensor(rows, dtype=torch.long).reshape(-1)
        if not self.is_initialized:
            raise ValueError(f"rows={index.tolist()} of an empty cache; run the model with it first")
        if bool(((index < 0) | (index >= self.batch_size)).any()):
            raise ValueError(f"rows={index.tolist()} are out of range; the cache has rows 0 to {self.batch_size - 1}")
        return index

    def _apply_to_rows(self, index: Tensor) -> None:
        if not self.is_initialized:
            return
        self._map(lambda tensor: tensor.index_select(0, index.to(tensor.device)))
        on_cpu = index.cpu()
        self.num_tokens = self.num_tokens.index_select(0, on_cpu)
        self.num_document_tokens = self.num_document_tokens.index_select(0, on_cpu)

    def _map(self, function: Callable[[Tensor], Tensor]) -> None:
        for layer in self.layers:
            layer.state = layer.state.map(function)
        if self.bank is not None:
            self.bank = function(self.bank)


__all__ = ["LM2Cache"]
