"""Configuration of a Llama that reads in segments and has memory tokens."""

import difflib
import hashlib
import json
from dataclasses import fields

from huggingface_hub.dataclasses import strict
from transformers import LlamaConfig

# What a saved state depends on, beside what each model adds: two configurations that agree can exchange caches.
_BACKBONE_FIELDS = (
    "model_type",
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "rms_norm_eps",
    "rope_parameters",
    "attention_bias",
    "mlp_bias",
    "tie_word_embeddings",
)


@strict
class MemoryTokenConfig(LlamaConfig):
    """
    Fields that RMT and ARMT add to `LlamaConfig`; see [`RMTConfig`] and [`ARMTConfig`].

    Raises:
        ValueError: names the field, its value and the fix.
    """

    num_memory_tokens: int = 16
    segment_length: int = 512
    memory_init_std: float | int | None = None
    bptt_segments: int | None = None

    def __post_init__(self, **kwargs):
        self._reject_misspelled_fields(kwargs)
        # Before Llama's own fields are resolved, as that divides by it.
        require_at_least("num_attention_heads", self.num_attention_heads, 1)
        super().__post_init__(**kwargs)
        for name in ("vocab_size", "hidden_size", "num_hidden_layers", "num_key_value_heads"):
            require_at_least(name, getattr(self, name), 1)
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads={self.num_attention_heads} is not a multiple of "
                f"num_key_value_heads={self.num_key_value_heads}; each key-value head serves the same number of heads"
            )
        require_at_least("num_memory_tokens", self.num_memory_tokens, 1)
        require_at_least("segment_length", self.segment_length, 1)
        if self.memory_init_std is not None and self.memory_init_std < 0:
            raise ValueError(
                f"memory_init_std={self.memory_init_std} must be at least 0, or None for initializer_range"
            )
        if self.bptt_segments is not None and self.bptt_segments < 2:
            raise ValueError(
                f"bptt_segments={self.bptt_segments} must be at least 2, or None for no truncation: what a segment "
                "writes is first read one segment later"
            )

    @property
    def has_memory(self) -> bool:
        """Always: without memory tokens there would be no way from one segment to the next; that is a Llama."""
        return True

    @classmethod
    def memory_fields(cls) -> list[str]:
        """The fields that this configuration adds to `LlamaConfig`."""
        of_llama = {field.name for field in fields(LlamaConfig)}
        return [field.name for field in fields(cls) if field.name not in of_llama]

    def fingerprint(self) -> str:
        """SHA-256 (hex) of the fields that decide what a cached state means; equal for caches that can be exchanged."""
        return hashlib.sha256(json.dumps(self.state_fields(), sort_keys=True).encode()).hexdigest()

    def state_fields(self) -> dict:
        """The fields behind [`fingerprint`], as plain JSON values, to name what differs between two caches."""
        without_effect = ("memory_init_std", "bptt_segments")
        names = [*_BACKBONE_FIELDS, *(name for name in self.memory_fields() if name not in without_effect)]
        values = {name: getattr(self, name) for name in names}
        values["rope_parameters"] = dict(values["rope_parameters"] or {})
        return values

    def num_attention_bytes(self, dtype_bytes: int, num_kept_tokens: int) -> int:
        """Bytes of one row's keys and values of so many tokens, in all blocks."""
        return self.num_hidden_layers * 2 * num_kept_tokens * self.num_key_value_heads * self.head_dim * dtype_bytes

    def _reject_misspelled_fields(self, kwargs: dict) -> None:
        # transformers stores unknown keys silently; a misspelled memory field would leave its default in force.
        for name in kwargs:
            nearest = difflib.get_close_matches(name, self.memory_fields(), n=1, cutoff=0.8)
            if nearest:
                raise ValueError(f"unknown field {name!r} of {type(self).__name__}; did you mean {nearest[0]!r}?")


def require_at_least(name: str, value: int, least: int) -> None:
    """Raises a ValueError that names the field."""
    if value < least:
        raise ValueError(f"{name}={value} must be at least {least}")
