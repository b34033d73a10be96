"""Configuration of ARMT: every field of Llama, plus the memory tokens and the association of every block."""

from huggingface_hub.dataclasses import strict

from ..common.configuration import MemoryTokenConfig, require_at_least


@strict
class ARMTConfig(MemoryTokenConfig):
    r"""
    Configuration of [`ARMTModel`] and [`ARMTForCausalLM`] (Rodkin et al. 2024, arXiv 2407.04841). All fields of
    `LlamaConfig` keep their meaning.

    Args:
        num_memory_tokens (`int`, defaults to 10):
            Learned tokens behind every segment (M), of which each block writes one pair into its association.
        memory_key_size (`int`, defaults to 64):
            Width of queries and keys before DPFP (d_mem).
        dpfp_order (`int`, defaults to 3):
            Nu of DPFP (Schlag et al. 2021, arXiv 2102.11174): keys have `2 * dpfp_order * memory_key_size` numbers.
        segment_length (`int`, defaults to 512):
            Tokens in a segment (S), memory tokens not included.
        memory_init_std (`float`, *optional*):
            Standard deviation of a fresh model's memory tokens. Default: `initializer_range`, that of its embeddings;
            `from_llama` takes the embeddings' own.
        bptt_segments (`int`, *optional*):
            Truncated backpropagation: the gradient of the association is cut every this many segments of a document.
            Default: never, as its authors train. At least 2, since what is written is first read one segment later.

    Raises:
        ValueError: names the field, its value and the fix.
    """

    model_type = "armt"

    num_memory_tokens: int = 10
    memory_key_size: int = 64
    dpfp_order: int = 3

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        require_at_least("memory_key_size", self.memory_key_size, 1)
        require_at_least("dpfp_order", self.dpfp_order, 1)
        if self.dpfp_order >= 2 * self.memory_key_size:
            raise ValueError(
                f"dpfp_order={self.dpfp_order} must be below 2 * memory_key_size={2 * self.memory_key_size}: so many "
                "neighbors has a number that it is multiplied with; lower it, or raise memory_key_size"
            )

    @property
    def association_key_size(self) -> int:
        """Numbers of a key after DPFP."""
        return 2 * self.dpfp_order * self.memory_key_size

    def num_state_bytes(self, dtype_bytes: int) -> int:
        """
        Bytes of one row's tensors in an [`ARMTCache`] when its open segment is as full as it gets between two calls;
        its two counters not included.

        Args:
            dtype_bytes: bytes of one number in the model's dtype (4 for float32, 2 for bfloat16); associations are
                float32.
        """
        association_bytes = 4 * self.association_key_size * (self.hidden_size + 1)
        attention_bytes = self.num_attention_bytes(dtype_bytes, self.segment_length - 1)
        return attention_bytes + self.num_hidden_layers * association_bytes


__all__ = ["ARMTConfig"]
