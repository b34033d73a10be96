"""Configuration of LM2: every field of Llama, plus the memory."""

import difflib
import hashlib
import json

from huggingface_hub.dataclasses import strict
from transformers import LlamaConfig

MEMORY_DESIGNS = ("segment", "paper")
MEMORY_READS = ("joint", "separate")
MEMORY_WRITES = ("address", "attend")
MEMORY_WRITE_SOURCES = ("input", "attention")
MEMORY_INITS = ("learned", "identity")

# What a saved state depends on: two configurations that agree here can exchange caches.
_STATE_FIELDS = (
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
    "memory_design",
    "memory_layers",
    "num_memory_slots",
    "num_memory_heads",
    "segment_length",
    "attention_window",
    "memory_read",
    "memory_write",
    "memory_write_source",
    "memory_write_floor",
    "memory_init",
    "memory_top_k",
    "memory_null_slot",
)


@strict
class LM2Config(LlamaConfig):
    r"""
    Configuration of [`LM2Model`] and [`LM2ForCausalLM`] (LM2, arXiv 2502.06049). All fields of `LlamaConfig` keep their
    meaning; the fields below describe the memory. Where a default is `None`, it depends on `memory_design`, and after
    construction the field holds the value in force.

    Args:
        memory_design (`str`, defaults to `"segment"`):
            `"segment"`: every memory block owns a bank that is read and written once a segment, defined for any length,
            number of slots and batch. `"paper"`: one bank per sequence that passes through the blocks, Eq. 1-6 to the
            letter; needs `num_memory_slots == hidden_size` and `segment_length <= num_memory_slots`.
        memory_layers (`int` or `list[int]`, *optional*):
            Which decoder blocks have memory: an int k means the first k blocks (as in the paper's section 4.3), a list
            names block indices. `None` means all. `0` or `[]` means none: the model then is a Llama, without segments.
        num_memory_slots (`int`, *optional*):
            Slots in a bank (N). Default 64 ("paper": `hidden_size`, the only number its equations allow).
        num_memory_heads (`int`, *optional*):
            Heads into which a slot is split by the write, and by the separate read. Each head addresses slots on its
            own. Default 4 ("paper": 1, as Eq. 1 has no heads). Must divide `hidden_size`.
        segment_length (`int`, *optional*):
            Tokens in a segment (S). Default 512 ("paper": at most `num_memory_slots`).
        attention_window (`int`, *optional*, defaults to 1):
            Segments that a token's self-attention spans, its own included. 1 is the cheapest and makes everything that
            is older come from memory; `None` is the whole past of the document, at growing cost.
        memory_read (`str`, *optional*):
            `"joint"` (default): one softmax over slots and tokens, where the output gate scales the memory's share; the
            block's own projections read, and in our trials this is what makes memory learnable. `"separate"`: the
            paper's own softmax over slots with projections of its own (Eq. 1-3), the only read of `"paper"`.
        memory_write (`str`, *optional*):
            `"address"` (default): every token picks slots and erases and adds there, in closed form over the segment;
            in our trials this is what makes memory last. `"attend"`: slots attend to the segment's tokens and are gated
            (Eq. 4-6 slot by slot). Not for `"paper"`, whose tokens and slots are paired.
        memory_write_source (`str`, *optional*):
            `"input"` (default): write from the block's normed input, so all segments of a layer run in parallel.
            `"attention"`: write from the normed hidden state after attention and read, one segment after the other.
            Not for `"paper"`, which writes from the input.
        memory_write_floor (`float`, *optional*):
            In evaluation mode, what a token would write into a slot counts only as far as it would replace more than
            this share of it. So a slot that a segment hardly addresses keeps its content to the bit, over any number of
            segments; soft gates alone take a little away every time, which training on a few segments does not show
            (docs/log.md). In training mode gates are soft, as a write below the floor would have no gradient, so it can
            be chosen after training: a model that addresses few slots at a time forgets less with 0.1, one that spreads
            its writes over many writes nothing any more. Default 0.03; at least 0 and below 1. Only for write
            `"address"`.
        memory_top_k (`int`, *optional*):
            Keep only the k best slots of each read, and those that tie with the last of them (section 2 of the paper
            names it as an option). Default: all.
        memory_null_slot (`bool`, defaults to `False`):
            Adds a learned key without content to the slots, so that a read can find nothing.
        memory_init (`str`, *optional*):
            What an empty bank holds. `"learned"` (default): a parameter per block. `"identity"`: slot n is row n of the
            identity matrix, starting over after `hidden_size` slots ("paper": the default, and the only choice).
        memory_input_gate_bias (`float`, defaults to 0.0):
            Start value of the input gate's bias in design `"segment"`: below zero, a fresh model writes less.
        bptt_segments (`int`, *optional*):
            Truncated backpropagation: the gradient of the bank is cut every this many segments of a document. Default:
            never. At least 2, since a written bank is first read one segment later.

    Raises:
        ValueError: names the field, its value and the fix.
    """

    model_type = "lm2"

    memory_design: str = "segment"
    memory_layers: int | list[int] | None = None
    num_memory_slots: int | None = None
    num_memory_heads: int | None = None
    segment_length: int | None = None
    attention_window: int | None = 1
    memory_read: str | None = None
    memory_write: str | None = None
    memory_write_source: str | None = None
    memory_write_floor: float | int | None = None
    memory_top_k: int | None = None
    memory_null_slot: bool = False
    memory_init: str | None = None
    memory_input_gate_bias: float | int = 0.0
    bptt_segments: int | None = None

    def __post_init__(self, **kwargs):
        self._reject_misspelled_fields(kwargs)
        # Before Llama's own fields are resolved, as that divides by it.
        _require_at_least("num_attention_heads", self.num_attention_heads, 1)
        super().__post_init__(**kwargs)
        _require_one_of("memory_design", self.memory_design, MEMORY_DESIGNS)
        self._resolve_defaults()
        self._check_backbone()
        self._check_memory_layers()
        self._check_memory()
        if self.memory_design == "paper":
            self._check_paper()

    @property
    def memory_block_indices(self) -> tuple[int, ...]:
        """Indices of the decoder blocks that have memory, ascending; empty for a plain Llama."""
        if self.memory_layers is None:
            return tuple(range(self.num_hidden_layers))
        if isinstance(self.memory_layers, int):
            return tuple(range(self.memory_layers))
        return tuple(sorted(self.memory_layers))

    @property
    def has_memory(self) -> bool:
        """Whether any block has memory; without memory there are no segments and the model is a Llama."""
        return len(self.memory_block_indices) > 0

    def fingerprint(self) -> str:
        """SHA-256 (hex) of the fields that decide what a cached state means; equal for caches that can be exchanged."""
        return hashlib.sha256(json.dumps(self.state_fields(), sort_keys=True).encode()).hexdigest()

    def state_fields(self) -> dict:
        """The fields behind [`fingerprint`], as plain JSON values, to name what differs between two caches."""
        fields = {name: getattr(self, name) for name in _STATE_FIELDS}
        fields["memory_layers"] = list(self.memory_block_indices)
        fields["rope_parameters"] = dict(fields["rope_parameters"] or {})
        return fields

    def num_state_bytes(self, dtype_bytes: int) -> int:
        """
        Bytes of one row's tensors in an [`LM2Cache`] when its open segment is as full as it gets between two calls; its
        two counters not included.

        Args:
            dtype_bytes: bytes of one number in the model's dtype (4 for float32, 2 for bfloat16); banks are float32.

        Raises:
            ValueError: the state has no bound (`attention_window=None`, or no memory).
        """
        if not self.has_memory or self.attention_window is None:
            raise ValueError(
                "the state grows with the number of tokens because "
                f"{'attention_window=None' if self.has_memory else 'memory_layers is empty'}; "
                "it has a size only with memory and an attention_window of 1 or more segments"
            )
        key_value_width = self.num_key_value_heads * self.head_dim
        attended_tokens = self.attention_window * self.segment_length - 1
        attention_bytes = self.num_hidden_layers * 2 * attended_tokens * key_value_width * dtype_bytes
        bank_bytes = 4 * self.num_memory_slots * self.hidden_size
        num_memory_blocks = len(self.memory_block_indices)
        source_bytes = (self.segment_length - 1) * self.hidden_size * dtype_bytes
        if self.memory_design == "paper":
            # One bank for all blocks, and in each block keys and values of the slots that its tokens are paired with.
            return attention_bytes + bank_bytes + num_memory_blocks * 2 * source_bytes
        read_width = 2 * (key_value_width if self.memory_read == "joint" else self.hidden_size)
        read_bytes = (self.num_memory_slots + self.memory_null_slot) * read_width * dtype_bytes
        return attention_bytes + num_memory_blocks * (bank_bytes + read_bytes + source_bytes)

    def _reject_misspelled_fields(self, kwargs: dict) -> None:
        # transformers stores unknown keys silently; a misspelled memory field would leave its default in force.
        for name in kwargs:
            nearest = difflib.get_close_matches(name, LM2Config.__annotations__, n=1, cutoff=0.8)
            if nearest:
                raise ValueError(f"unknown field {name!r} of LM2Config; did you mean {nearest[0]!r}?")

    def _resolve_defaults(self) -> None:
        if self.memory_design == "paper":
            defaults = {
                "num_memory_slots": self.hidden_size,
                "num_memory_heads": 1,
                "memory_read": "separate",
                "memory_init": "identity",
            }
        else:
            defaults = {
                "num_memory_slots": 64,
                "num_memory_heads": 4,
                "memory_read": "joint",
                "memory_write": "address",
                "memory_write_source": "input",
                "memory_init": "learned",
            }
        for name, value in defaults.items():
            if getattr(self, name) is None:
                setattr(self, name, value)
        if self.memory_write == "address" and self.memory_write_floor is None:
            self.memory_write_floor = 0.03
        if self.segment_length is None:
            self.segment_length = 512 if self.memory_design == "segment" else min(512, self.num_memory_slots)

    def _check_backbone(self) -> None:
        for name in ("vocab_size", "hidden_size", "num_hidden_layers", "num_key_value_heads"):
            _require_at_least(name, getattr(self, name), 1)
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size={self.hidden_size} is not a multiple of num_attention_heads={self.num_attention_heads}; "
                "choose a number of heads that divides the hidden size"
            )
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads={self.num_attention_heads} is not a multiple of "
                f"num_key_value_heads={self.num_key_value_heads}; each key-value head serves the same number of heads"
            )

    def _check_memory_layers(self) -> None:
        layers, num_blocks = self.memory_layers, self.num_hidden_layers
        if layers is None:
            return
        if isinstance(layers, int):
            if not 0 <= layers <= num_blocks:
                raise ValueError(
                    f"memory_layers={layers} is out of range; the model has num_hidden_layers={num_blocks} blocks, so "
                    f"the first k blocks need 0 <= k <= {num_blocks}"
                )
            return
        outside = [index for index in layers if not 0 <= index < num_blocks]
        if outside:
            raise ValueError(
                f"memory_layers={layers} names the blocks {outside}, but the model has num_hidden_layers={num_blocks}; "
                f"block indices run from 0 to {num_blocks - 1}"
            )
        if len(set(layers)) != len(layers):
            raise ValueError(f"memory_layers={layers} names a block twice; list every block once")

    def _check_memory(self) -> None:
        _require_at_least("num_memory_slots", self.num_memory_slots, 1)
        _require_at_least("num_memory_heads", self.num_memory_heads, 1)
        _require_at_least("segment_length", self.segment_length, 1)
        _require_at_least("attention_window", self.attention_window, 1, optional="None for the whole past")
        _require_at_least("bptt_segments", self.bptt_segments, 2, optional="None for no truncation")
        _require_at_least("memory_top_k", self.memory_top_k, 1, optional="None to read all slots")
        _require_one_of("memory_read", self.memory_read, MEMORY_READS)
        _require_one_of("memory_init", self.memory_init, MEMORY_INITS)
        if self.hidden_size % self.num_memory_heads:
            raise ValueError(
                f"num_memory_heads={self.num_memory_heads} does not divide hidden_size={self.hidden_size}; "
                "every head holds an equal part of a slot"
            )
        if self.memory_top_k is not None and self.memory_top_k > self.num_memory_slots:
            raise ValueError(
                f"memory_top_k={self.memory_top_k} is more than num_memory_slots={self.num_memory_slots}; "
                "use at most the number of slots, or None to read all"
            )
        if self.memory_design == "segment":
            _require_one_of("memory_write", self.memory_write, MEMORY_WRITES)
            _require_one_of("memory_write_source", self.memory_write_source, MEMORY_WRITE_SOURCES)
            self._check_write_floor()

    def _check_write_floor(self) -> None:
        floor = self.memory_write_floor
        if self.memory_write != "address":
            if floor is not None:
                raise ValueError(
                    f"memory_write_floor={floor} has no effect with memory_write={self.memory_write!r}; leave it out"
                )
            return
        if not 0 <= floor < 1:
            raise ValueError(f"memory_write_floor={floor} must be at least 0 and below 1")

    def _check_paper(self) -> None:
        if self.num_memory_slots != self.hidden_size:
            raise ValueError(
                f"num_memory_slots={self.num_memory_slots} with memory_design='paper' must equal "
                f"hidden_size={self.hidden_size}, since its first bank is the identity matrix; "
                "use memory_design='segment' for another number of slots"
            )
        if self.segment_length > self.num_memory_slots:
            raise ValueError(
                f"segment_length={self.segment_length} with memory_design='paper' must be at most "
                f"num_memory_slots={self.num_memory_slots}, since token i is paired with slot i; shorten the segment, "
                "or use memory_design='segment'"
            )
        fixed = {
            "memory_read": "separate",
            "memory_init": "identity",
            "num_memory_heads": 1,
            "memory_write": None,
            "memory_write_source": None,
            "memory_write_floor": None,
            "memory_null_slot": False,
            "memory_input_gate_bias": 0.0,
        }
        for name, value in fixed.items():
            if getattr(self, name) != value:
                raise ValueError(
                    f"{name}={getattr(self, name)!r} has no effect with memory_design='paper', whose equations fix "
                    "it; leave it out, or use memory_design='segment'"
                )


def _require_at_least(name: str, value: int | None, least: int, optional: str = "") -> None:
    if value is None and optional:
        return
    if value is None or value < least:
        raise ValueError(f"{name}={value} must be at least {least}{', or ' + optional if optional else ''}")


def _require_one_of(name: str, value: str | None, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name}={value!r} is unknown; choose one of {', '.join(map(repr, choices))}")


__all__ = ["LM2Config"]
