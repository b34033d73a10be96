"""Invariant 4: without memory blocks the model is transformers' Llama, bit for bit."""

import pytest
import torch
from contract.helpers import enlarged_llama, gradients, logits_of, pad, random_ids
from contract.subjects import LONGEST, SEGMENT, SUBJECT, TINY, VOCAB
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from lm2 import LM2Config, LM2ForCausalLM

VARIANTS = {
    "plain": {},
    "gqa": {"num_key_value_heads": 2},
    "tied": {"tie_word_embeddings": True},
    "biased": {"attention_bias": True, "mlp_bias": True},
    "eager": {"attn_implementation": "eager"},
}
all_variants = pytest.mark.parametrize("fields", VARIANTS.values(), ids=VARIANTS.keys())


def twins(memory_layers=0, **fields) -> tuple[LlamaForCausalLM, LM2ForCausalLM]:
    llama = enlarged_llama(**fields)
    ours = LM2ForCausalLM(LM2Config(**(TINY | fields), memory_layers=memory_layers)).eval()
    ours.load_state_dict(llama.state_dict())
    return llama, ours


@pytest.mark.parametrize("memory_layers", [0, []], ids=["0", "empty list"])
@all_variants
def test_forward(fields, memory_layers):
    llama, ours = twins(memory_layers, **fields)
    ids = random_ids(3, LONGEST)
    assert torch.equal(logits_of(ours, ids), logits_of(llama, ids))
    ids, mask = pad(list(ids[:, :SEGMENT]), [0, 2, 5], SEGMENT + 5)
    padded = [logits_of(model, ids, attention_mask=mask) for model in (llama, ours)]
    assert torch.equal(*padded)
    positions = torch.cat([torch.arange(SEGMENT), torch.arange(5)]).expand(3, -1)
    packed = [logits_of(model, ids, position_ids=positions, use_cache=False) for model in (llama, ours)]
    assert torch.equal(*packed)
    assert not torch.equal(*padded[:1], *packed[:1])


@all_variants
def test_loss_and_gradients(fields):
    llama, ours = twins(**fields)
    ids = random_ids(3, LONGEST)
    losses, taken = [], []
    for model in (llama, ours):
        model.train()
        losses.append(model(ids, labels=ids).loss)
        losses[-1].backward()
        taken.append(gradients(model))
    assert torch.equal(*losses)
    assert taken[0].keys() == taken[1].keys()
    assert all(torch.equal(taken[0][name], taken[1][name]) for name in taken[0])


@all_variants
def test_cache(fields):
    llama, ours = twins(**fields)
    ids = random_ids(2, LONGEST)
    caches = [DynamicCache(config=model.config) for model in (llama, ours)]
    for piece in ids.split(11, dim=1):
        logits = [logits_of(model, piece, cache=cache) for model, cache in zip((llama, ours), caches, strict=True)]
        assert torch.equal(*logits)


@pytest.mark.parametrize("how", [{"do_sample": False}, {"do_sample": True}, {"num_beams": 3, "do_sample": False}])
def test_generate(how):
    llama, ours = twins()
    ids, mask = pad(list(random_ids(2, SEGMENT)), [0, 3], SEGMENT + 3)
    outputs = []
    for model in (llama, ours):
        torch.manual_seed(0)
        outputs.append(
            model.generate(
                ids,
                attention_mask=mask,
                max_new_tokens=SEGMENT,
                return_dict_in_generate=True,
                output_logits=True,
                **how,
            )
        )
    assert torch.equal(outputs[0].sequences, outputs[1].sequences)
    assert all(torch.equal(*step) for step in zip(outputs[0].logits, outputs[1].logits, strict=True))


def test_there_is_no_segment_and_no_bank_without_memory():
    model = SUBJECT["llama"].make()
    ids = random_ids(1, LONGEST)
    assert isinstance(model(ids).cache, DynamicCache)
    assert not any("memory" in name for name in model.state_dict())
    assert model.count_parameters()["memory"] == 0
    with pytest.raises(ValueError, match="segment_reset has no effect"):
        model(ids, segment_reset=torch.zeros(1, LONGEST, dtype=torch.bool))


def test_it_is_a_llama_to_load():
    # The other way round: a state dict of ours is one of Llama's.
    ours = SUBJECT["llama"].make()
    llama = LlamaForCausalLM(LlamaConfig(**TINY)).eval()
    llama.load_state_dict(ours.state_dict())
    ids = random_ids(2, LONGEST)
    assert logits_of(llama, ids).shape == (2, LONGEST, VOCAB)
    assert torch.equal(logits_of(llama, ids), logits_of(ours, ids))
