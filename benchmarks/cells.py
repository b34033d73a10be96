"""
What the benchmark measures: the models of every cell, their inputs, and the targets.

All models have random weights, one row, a vocabulary of 256 (so that the head weighs next to nothing and ratios are the
blocks' own), 4 blocks, head width 64, a quarter as many key-value heads, and a feed-forward width of 4 * hidden.
"""

from dataclasses import asdict, dataclass, field

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from lm2 import LM2Config, LM2ForCausalLM

VOCABULARY = 256
NUM_BLOCKS = 4
SEED = 0

LM2, LLAMA, MATCHED = "lm2", "llama", "matched_llama"

# A parameter-matched Llama has LM2's number of parameters up to this share.
MATCH_TOLERANCE = 0.005


@dataclass(frozen=True)
class ModelSpec:
    """
    Everything needed to build a model, small enough to send to a child process.

    Attributes:
        kind: LM2, LLAMA or MATCHED.
        hidden: hidden size; a multiple of the head width.
        memory: fields of `LM2Config` beyond Llama's; LM2 only.
        intermediate: feed-forward width; None is 4 * hidden.
        head_dim: width of a head.
    """

    kind: str
    hidden: int
    memory: dict = field(default_factory=dict)
    intermediate: int | None = None
    head_dim: int = 64

    def config(self) -> LlamaConfig:
        num_heads = max(self.hidden // self.head_dim, 1)
        fields = {
            "vocab_size": VOCABULARY,
            "hidden_size": self.hidden,
            "num_hidden_layers": NUM_BLOCKS,
            "num_attention_heads": num_heads,
            "num_key_value_heads": max(num_heads // 4, 1),
            "head_dim": self.head_dim,
            "intermediate_size": self.intermediate or 4 * self.hidden,
            # No effect on the default rotary embedding but a warning when a Llama reads on beyond it.
            "max_position_embeddings": 1 << 21,
        }
        return LM2Config(**fields, **self.memory) if self.kind == LM2 else LlamaConfig(**fields)

    def build(self, device: str = "cpu", dtype: str = "float32") -> torch.nn.Module:
        """The model with seeded random weights."""
        torch.manual_seed(SEED)
        model = (LM2ForCausalLM if self.kind == LM2 else LlamaForCausalLM)(self.config())
        return model.to(device=device, dtype=getattr(torch, dtype))

    def num_parameters(self) -> int:
        with torch.device("meta"):
            return sum(p.numel() for p in self.build(device="meta").parameters())


def compared_models(hidden: int, memory: dict, head_dim: int = 64) -> dict[str, ModelSpec]:
    """LM2, the Llama with the same backbone, and the Llama widened to LM2's number of parameters."""
    lm2 = ModelSpec(LM2, hidden, memory, head_dim=head_dim)
    llama = ModelSpec(LLAMA, hidden, head_dim=head_dim)
    total = lm2.num_parameters()
    per_unit = 3 * hidden * NUM_BLOCKS
    exact = 4 * hidden + (total - llama.num_parameters()) / per_unit
    # Round widths are kinder to matrix kernels: the matched Llama should lose nothing to an odd one.
    for step in (64, 16, 8, 1):
        matched = ModelSpec(MATCHED, hidden, intermediate=round(exact / step) * step, head_dim=head_dim)
        if abs(matched.num_parameters() / total - 1) <= MATCH_TOLERANCE:
            return {LM2: lm2, LLAMA: llama, MATCHED: matched}
    raise ValueError(f"no feed-forward width brings a Llama of hidden size {hidden} to {total} parameters")


@dataclass(frozen=True)
class TrainingCell:
    """
    Forward and backward pass of the loss on one row of `tokens` tokens.

    Attributes:
        name: unique; also what `--profile` takes.
        shape: "default" (slots an eighth of the segment), "authors" (hidden = slots = segment = tokens), or "variant",
            which is there to be looked at and has no time and memory target of its own.
        rounds: timed rounds; one more warms up.
    """

    name: str
    shape: str
    hidden: int
    tokens: int
    memory: dict
    rounds: int
    head_dim: int = 64

    def targets(self) -> dict[str, float]:
        """Upper bounds; time is judged by the time that `measure.judged_clock` names."""
        bounds = {
            "default": {"time_vs_llama": 1.2, "memory_vs_llama": 1.25},
            "authors": {"time_vs_llama": 1.5, "memory_vs_llama": 1.6},
            "variant": {},
        }[self.shape]
        return bounds | {"time_over_flops": 1.15, "time_vs_matched": 1.0}

    def describe(self) -> dict:
        return asdict(self)


def training_cells(quick: bool) -> list[TrainingCell]:
    """All cells; the costly ones have fewer rounds."""
    if quick:
        default = {"segment_length": 32, "num_memory_slots": 4}
        authors = {"num_memory_slots": 64, "segment_length": 64}
        return [
            TrainingCell("default-h64-t64", "default", 64, 64, default, rounds=2, head_dim=16),
            TrainingCell(
                "authors-paper-h64-t64", "authors", 64, 64, {"memory_design": "paper", **authors}, 2, head_dim=16
            ),
        ]
    cells = []
    default = {"segment_length": 512, "num_memory_slots": 64}
    for hidden, rounds, lengths in ((512, 5, (512, 2048)), (1024, 3, (512,))):
        for tokens in lengths:
            cells.append(TrainingCell(f"default-h{hidden}-t{tokens}", "default", hidden, tokens, default, rounds))
        authors = {"num_memory_slots": hidden, "segment_length": hidden}
        for design in ("segment", "paper"):
            memory = {"memory_design": design, **authors}
            name = f"authors-{design}-h{hidden}-t{hidden}"
            cells.append(TrainingCell(name, "authors", hidden, hidden, memory, rounds))
    # One segment alone writes nothing that a loss depends on (design "segment"); two also show the write's cost.
    authors = {"num_memory_slots": 512, "segment_length": 512}
    variants = {
        "attend": {"memory_write": "attend", **default},
        "separate": {"memory_read": "separate", **default},
    }
    for name, memory in variants.items():
        cells.append(TrainingCell(f"{name}-h512-t1024", "variant", 512, 1024, memory, rounds=3))
    cells.append(TrainingCell("authors-segment-h512-t1024", "variant", 512, 1024, authors, rounds=3))
    return cells


@dataclass(frozen=True)
class LengthPlan:
    """Training steps on one ever longer row, LM2 against the same Llama with full attention."""

    hidden: int
    memory: dict
    rounds: dict[int, int]
    head_dim: int = 64
    # Upper bounds of LM2's time as a share of Llama's, by number of tokens.
    targets: dict[int, float] = field(default_factory=lambda: {4096: 1.0, 8192: 1.0, 16384: 0.5})


def length_plan(quick: bool) -> LengthPlan:
    if quick:
        return LengthPlan(64, {"segment_length": 32, "num_memory_slots": 4}, {64: 2, 128: 2}, head_dim=16)
    rounds = {1024: 5, 2048: 5, 4096: 3, 8192: 2, 16384: 1}
    return LengthPlan(512, {"segment_length": 512, "num_memory_slots": 64}, rounds)


@dataclass(frozen=True)
class PrefillPlan:
    """
    Reading in pieces, without gradient, logits of each piece's last token alone.

    Attributes:
        first: tokens of the shortest row; each further length is twice as long.
        lm2_longest: one child process per entry reads up to so many tokens.
        llama_longest: the same for Llama.
        why_not_longer: why Llama stops there.
        linear_from: tokens from which the time per doubling and the peak are judged.
    """

    hidden: int
    memory: dict
    first: int
    lm2_longest: tuple[int, ...]
    llama_longest: tuple[int, ...]
    linear_from: int
    why_not_longer: str = ""
    head_dim: int = 64


def prefill_plan(quick: bool) -> PrefillPlan:
    if quick:
        memory = {"segment_length": 16, "num_memory_slots": 4}
        return PrefillPlan(64, memory, 128, (2048,), (1024,), linear_from=512, why_not_longer="quick", head_dim=16)
    why = (
        "its attention is quadratic: each doubling takes up to four times as long, and its cache and masks grow with "
        "the length, so that 1M tokens would take hours"
    )
    memory = {"segment_length": 512, "num_memory_slots": 64}
    k = 1024
    return PrefillPlan(256, memory, 4 * k, (k * k, 64 * k, 64 * k), (32 * k,), linear_from=16 * k, why_not_longer=why)


@dataclass(frozen=True)
class DecodePlan:
    """
    Token by token after contexts of several lengths.

    Attributes:
        contexts: tokens read before, multiples of the segment, so that all start at the same place of a segment.
        lm2_tokens: tokens that LM2 decodes, one whole segment, its closing token and hence its write included.
        llama_tokens: tokens that Llama decodes (its time hardly changes over them).
    """

    hidden: int
    memory: dict
    contexts: tuple[int, ...]
    lm2_tokens: int
    llama_tokens: int
    head_dim: int = 64
    # LM2's time after the longest context over that after the shortest: "independent", with room for noise.
    target: float = 1.05


def decode_plan(quick: bool) -> DecodePlan:
    if quick:
        memory = {"segment_length": 16, "num_memory_slots": 4}
        return DecodePlan(64, memory, (16, 64), lm2_tokens=16, llama_tokens=16, head_dim=16)
    memory = {"segment_length": 512, "num_memory_slots": 64}
    return DecodePlan(512, memory, (512, 4096, 16384, 65536), lm2_tokens=512, llama_tokens=128)


def random_tokens(count: int, seed: int, device: str = "cpu") -> torch.Tensor:
    """One row of uniform tokens, int64 [1, count]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, VOCABULARY, (1, count), generator=generator).to(device)


def training_step(model: torch.nn.Module, tokens: torch.Tensor) -> None:
    """Forward and backward pass of the loss, no optimizer; new gradients every time, as `zero_grad` leaves them."""
    model.zero_grad(set_to_none=True)
    model(input_ids=tokens, labels=tokens, use_cache=False).loss.backward()
