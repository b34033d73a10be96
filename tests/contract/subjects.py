"""
The models that the contract suite holds to the same promises.

A further model is one more entry in `SUBJECTS`: how to make a tiny one, and what its architecture is by nature.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import pytest
import torch
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedModel

from lm2 import (
    ARMTCache,
    ARMTConfig,
    ARMTForCausalLM,
    LM2Cache,
    LM2Config,
    LM2ForCausalLM,
    RMTCache,
    RMTConfig,
    RMTForCausalLM,
)

VOCAB = 40
SEGMENT = 8
LENGTHS = (1, SEGMENT - 1, SEGMENT, SEGMENT + 1, 3 * SEGMENT + 5)
LONGEST = LENGTHS[-1]

TINY = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "bos_token_id": None,
    "eos_token_id": None,
}


@dataclass(frozen=True)
class Subject:
    """
    A model under contract.

    Attributes:
        name: shown in test ids.
        make: builds a tiny model with weights so large that memory matters; takes `dtype` and configuration fields.
        new_cache: an empty state for a model.
        ablated_logits: logits of a model on [B, T] ids when nothing is ever written to its memory; None for a model
            without memory.
        has_bank: whether the memory has banks, found by `banks`.
        banks: the banks in a state, each [B, ...].
        is_bounded: whether the state has a size that does not depend on the number of tokens.
        is_float32: whether numbers can be compared beyond bit equality.
        written: ends of names of memory parameters whose gradient comes through many segments.
        changes_llama_because: why a retrofitted Llama cannot keep its logits; None where it does.
    """

    name: str
    make: Callable[..., PreTrainedModel]
    new_cache: Callable[[PreTrainedModel], Cache]
    ablated_logits: Callable[[PreTrainedModel, Tensor], Tensor] | None = None
    banks: Callable[[Cache], list[Tensor]] | None = None
    is_bounded: bool = True
    is_float32: bool = True
    written: tuple[str, ...] = ("query.weight", "input_gate.weight")
    changes_llama_because: str | None = None

    @property
    def has_memory(self) -> bool:
        return self.ablated_logits is not None

    @property
    def has_bank(self) -> bool:
        return self.banks is not None


def subjects(*needs: str, only: tuple[str, ...] = ()):
    """Parametrizes a test over the subjects with all of the named capabilities, or over those `only` that are named."""
    chosen = [subject for subject in SUBJECTS if all(getattr(subject, need) for need in needs)]
    if only:
        chosen = [subject for subject in chosen if subject.name in only]
    return pytest.mark.parametrize("subject", chosen, ids=lambda subject: subject.name)


def enlarge(model: PreTrainedModel, seed: int = 0, size: float = 0.3) -> PreTrainedModel:
    """Adds noise to all weights: at the usual initial scale a memory would be too faint for a test to notice it."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            of_parameter = size if parameter.dim() > 1 else 0.1
            parameter += of_parameter * torch.randn(parameter.shape, generator=generator)
    return model


def _make_lm2(base_fields: dict, dtype: torch.dtype = torch.float32, **fields) -> LM2ForCausalLM:
    memory_fields = {"segment_length": SEGMENT}
    if base_fields.get("memory_design") != "paper":
        memory_fields |= {"num_memory_slots": 6, "num_memory_heads": 2}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LM2ForCausalLM(LM2Config(**(TINY | memory_fields | base_fields | fields)))
    enlarge(model)
    for parameter in model.parameters():
        # As from_pretrained does; model.to(dtype) would round the rotary frequencies as well.
        parameter.data = parameter.data.to(dtype)
    return model.eval()


@torch.no_grad()
def _lm2_ablated_logits(model: LM2ForCausalLM, ids: Tensor) -> Tensor:
    if model.config.memory_design == "paper":
        # Its gates have no bias that could shut them; the bank that goes from segment to segment is put back instead.
        cache, pieces = LM2Cache(model.config), []
        for piece in ids.split(SEGMENT, dim=1):
            pieces.append(model(piece, cache=cache).logits)
            cache.bank = torch.eye(model.config.hidden_size).expand(len(ids), -1, -1)
        return torch.cat(pieces, dim=1)
    silent = copy.deepcopy(model)
    for name, parameter in silent.named_parameters():
        if name.endswith("memory.write.input_gate.bias"):
            parameter.fill_(-1e4)
        if name.endswith("memory.write.forget_gate.bias"):
            parameter.fill_(1e4)
    return silent(ids, use_cache=False).logits


def _make_rival(model_class: type, config_class: type, memory_fields: dict, dtype=torch.float32, **fields):
    memory_fields = {"segment_length": SEGMENT, "num_memory_tokens": 3} | memory_fields
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = model_class(config_class(**(TINY | memory_fields | fields)))
    # Their memory passes through whole blocks from segment to segment, so that any change grows: with weights as large
    # as LM2's, rounding errors would, too.
    enlarge(model, size=0.15)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model.eval()


@torch.no_grad()
def _rmt_ablated_logits(model: RMTForCausalLM, ids: Tensor) -> Tensor:
    # What a segment has written is put back to the learned start.
    cache, pieces = RMTCache(model.config), []
    for piece in ids.split(SEGMENT, dim=1):
        pieces.append(model(piece, cache=cache).logits)
        cache.bank = model.model.memory(len(ids))
    return torch.cat(pieces, dim=1)


@torch.no_grad()
def _armt_ablated_logits(model: ARMTForCausalLM, ids: Tensor) -> Tensor:
    silent = copy.deepcopy(model)
    for block in silent.model.layers:
        block.memory.value.weight.zero_()
    return silent(ids, use_cache=False).logits


def _banks(cache: LM2Cache | RMTCache | ARMTCache) -> list[Tensor]:
    banks = [cache.bank, *(state.bank for state in cache.states)]
    return [bank for bank in banks if bank is not None]


def _lm2(name: str, is_float32: bool = True, **fields) -> Subject:
    return Subject(
        name=name,
        make=partial(_make_lm2, fields, dtype=torch.float32 if is_float32 else torch.bfloat16),
        new_cache=lambda model: LM2Cache(model.config),
        ablated_logits=_lm2_ablated_logits,
        banks=_banks,
        is_bounded=fields.get("attention_window", 1) is not None,
        is_float32=is_float32,
    )


SUBJECTS = [
    _lm2("default"),
    _lm2("gqa", num_key_value_heads=2, tie_word_embeddings=True, attention_bias=True),
    _lm2("separate", memory_read="separate", memory_init="identity"),
    _lm2("attend", memory_write="attend"),
    _lm2("from-attention", memory_write_source="attention"),
    _lm2("window-2", attention_window=2),
    _lm2("window-all", attention_window=None),
    _lm2("top-k", memory_top_k=3, memory_null_slot=True, memory_layers=[1]),
    _lm2(
        "all-other",
        memory_read="separate",
        memory_write="attend",
        memory_write_source="attention",
        attention_window=3,
        memory_top_k=3,
        memory_null_slot=True,
    ),
    _lm2("paper", memory_design="paper"),
    _lm2("paper-window-2", memory_design="paper", attention_window=2, memory_top_k=3, memory_layers=1),
    _lm2("bf16", is_float32=False),
    Subject(
        name="rmt",
        make=partial(_make_rival, RMTForCausalLM, RMTConfig, {}),
        new_cache=lambda model: RMTCache(model.config),
        ablated_logits=_rmt_ablated_logits,
        banks=_banks,
        written=("memory.tokens",),
        changes_llama_because="every token sees the memory tokens that are read before its segment",
    ),
    Subject(
        name="armt",
        # Narrower keys may overlap with nothing written, and then what is read is rounding divided by almost nothing.
        make=partial(_make_rival, ARMTForCausalLM, ARMTConfig, {"memory_key_size": 24}),
        new_cache=lambda model: ARMTCache(model.config),
        ablated_logits=_armt_ablated_logits,
        banks=_banks,
        written=("memory.key.weight", "memory.value.weight", "memory.tokens"),
    ),
    Subject(
        name="llama",
        make=partial(_make_lm2, {"memory_layers": 0}),
        new_cache=lambda model: DynamicCache(config=model.config),
        is_bounded=False,
    ),
]
SUBJECT = {subject.name: subject for subject in SUBJECTS}
