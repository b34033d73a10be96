"""Configuration of RMT: every field of Llama, plus the memory tokens."""

from huggingface_hub.dataclasses import strict

from ..common.configuration import MemoryTokenConfig


@strict
class RMTConfig(MemoryTokenConfig):
    r"""
    Configuration of [`RMTModel`] and [`RMTForCausalLM`] (Bulatov et al. 2022, arXiv 2207.06881, and 2024, arXiv
    2304.11062). All fields of `LlamaConfig` keep their meaning.

    Args:
        num_memory_tokens (`int`, defaults to 16):
            Vectors that go from segment to segment (M); 16 in BABILong (Kuratov et al. 2024).
        segment_length (`int`, defaults to 512):
            Tokens in a segment (S), memory tokens not included.
        memory_init_std (`float`, *optional*):
            Standard deviation of a fresh model's learned start. Default: `initializer_range`, that of its embeddings;
            `from_llama` takes the embeddings' own.
        bptt_segments (`int`, *optional*):
            Truncated backpropagation: the gradient of the memory is cut every this many segments of a document.
            Default: never, as its authors train. At least 2, since what is written is first read one segment later.

    Raises:
        ValueError: names the field, its value and the fix.
    """

    model_type = "rmt"

    num_memory_tokens: int = 16

    def num_state_bytes(self, dtype_bytes: int) -> int:
        """
        Bytes of one row's tensors in an [`RMTCache`] when its open segment is as full as it gets between two calls; its
        two counters not included.

        Args:
            dtype_bytes: bytes of one number in the model's dtype (4 for float32, 2 for bfloat16).
        """
        num_kept = self.segment_length - 1 + self.num_memory_tokens
        return self.num_attention_bytes(dtype_bytes, num_kept) + self.num_memory_tokens * self.hidden_size * dtype_bytes


__all__ = ["RMTConfig"]
