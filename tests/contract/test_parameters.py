"""Numbers of parameters, counted on the meta device at the paper's size (section 3 there: 1.2B, and 0.5B of memory)."""

import dataclasses

import pytest
import torch
from contract.subjects import subjects
from transformers import LlamaConfig, LlamaForCausalLM

from lm2 import LM2Config, LM2ForCausalLM

BLOCKS, HIDDEN, HEADS, SLOTS = 16, 2048, 32, 2048
HEAD_DIM = HIDDEN // HEADS
BACKBONE = 1_235_814_400


def count(**memory_fields) -> dict[str, int]:
    config = LM2Config(
        vocab_size=128256,
        hidden_size=HIDDEN,
        intermediate_size=8192,
        num_hidden_layers=BLOCKS,
        num_attention_heads=HEADS,
        num_key_value_heads=8,
        tie_word_embeddings=True,
        **memory_fields,
    )
    with torch.device("meta"):
        return LM2ForCausalLM(config).count_parameters()


def test_backbone():
    assert count(memory_layers=0) == {"backbone": BACKBONE, "memory": 0, "total": BACKBONE}


def test_paper():
    # Three projections of Eq. 1, three gates of Eq. 2, 4 and 5, and one scale.
    memory = BLOCKS * (6 * HIDDEN**2 + 1)
    assert count(memory_design="paper") == {"backbone": BACKBONE, "memory": memory, "total": BACKBONE + memory}


@pytest.mark.parametrize("blocks", [1, 8, BLOCKS])
def test_default(blocks):
    memory_heads = 4
    initial_slots = SLOTS * HIDDEN
    read = HIDDEN + (HIDDEN + 1) * HEADS + HEADS
    write = HIDDEN * memory_heads * HEAD_DIM + memory_heads * SLOTS * HEAD_DIM + HIDDEN**2 + (HIDDEN + 1) * memory_heads
    memory = blocks * (initial_slots + read + write)
    expected = {"backbone": BACKBONE, "memory": memory, "total": BACKBONE + memory}
    assert count(num_memory_slots=SLOTS, memory_layers=blocks) == expected


@subjects()
def test_the_count_is_that_of_distinct_parameters(subject):
    model = subject.make()
    counts = model.count_parameters()
    assert counts["total"] == counts["backbone"] + counts["memory"] == sum(p.numel() for p in model.parameters())
    of_llama = {field.name: getattr(model.config, field.name) for field in dataclasses.fields(LlamaConfig)}
    assert counts["backbone"] == LlamaForCausalLM(LlamaConfig(**of_llama)).num_parameters()
    assert (counts["memory"] > 0) == subject.has_memory
