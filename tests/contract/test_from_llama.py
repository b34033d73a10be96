"""Invariant 5: a pretrained Llama that is given a memory keeps its logits, and every memory parameter learns."""

import pytest
import torch
from contract.helpers import assert_close, enlarged_llama, gradients, logits_of, random_ids
from contract.subjects import LONGEST, SEGMENT, VOCAB, subjects
from torch.nn.functional import cross_entropy
from transformers import LlamaForCausalLM

from lm2 import LM2ForCausalLM

MEMORIES = {
    "default": {},
    "separate": {"memory_read": "separate"},
    "attend": {"memory_write": "attend"},
    "separate attend": {"memory_read": "separate", "memory_write": "attend"},
    "from attention": {"memory_write_source": "attention"},
    "window 2": {"attention_window": 2},
    "window all": {"attention_window": None},
    "top-k": {"memory_top_k": 3, "memory_null_slot": True, "memory_layers": [1]},
    "separate top-k": {"memory_read": "separate", "memory_top_k": 3, "memory_null_slot": True},
    "identity": {"memory_init": "identity"},
    "paper": {"memory_design": "paper", "num_memory_slots": None, "num_memory_heads": None},
}
all_memories = pytest.mark.parametrize("memory", MEMORIES.values(), ids=MEMORIES.keys())

LLAMAS = {
    "gqa": {"num_key_value_heads": 2},
    "one key-value head": {"num_key_value_heads": 1},
    "tied": {"tie_word_embeddings": True},
    "biased": {"attention_bias": True, "mlp_bias": True},
    "wide heads": {"head_dim": 12},
    "eager": {"attn_implementation": "eager"},
    "linear rope": {"rope_parameters": {"rope_type": "linear", "rope_theta": 100.0, "factor": 2.0}},
    "dynamic rope": {
        "rope_parameters": {"rope_type": "dynamic", "rope_theta": 100.0, "factor": 2.0},
        "max_position_embeddings": 4,
    },
    "yarn rope": {
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 100.0,
            "factor": 4.0,
            "original_max_position_embeddings": 8,
        }
    },
    "llama3 rope": {
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 100.0,
            "factor": 4.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8,
        }
    },
    "long rope": {
        "rope_parameters": {
            "rope_type": "longrope",
            "rope_theta": 100.0,
            "factor": 4.0,
            "short_factor": [1.0, 1.1, 1.2, 1.3],
            "long_factor": [2.0, 3.0, 4.0, 5.0],
            "original_max_position_embeddings": 4,
        }
    },
}


def retrofit(llama, **memory) -> LM2ForCausalLM:
    fields = {"segment_length": SEGMENT, "num_memory_slots": 6, "num_memory_heads": 2} | memory
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return LM2ForCausalLM.from_llama(llama, **fields).eval()


def window_tokens(model: LM2ForCausalLM) -> int:
    window = model.config.attention_window
    return LONGEST if window is None else window * SEGMENT


def open_output_path(model: LM2ForCausalLM) -> None:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".memory." in name and name.endswith("scale"):
                parameter.fill_(1.0)


@all_memories
def test_a_fresh_retrofit_has_the_logits_of_the_llama_inside_a_window(memory):
    llama = enlarged_llama()
    model = retrofit(llama, **memory)
    ids = random_ids(2, window_tokens(model))
    expected = logits_of(llama, ids)
    assert_close(logits_of(model, ids), expected)
    assert_close(logits_of(model, ids, use_cache=False), expected)
    # The memory is there, and only its output path is shut.
    open_output_path(model)
    assert (logits_of(model, ids) - expected).abs().max() > 1e-2


@pytest.mark.parametrize("memory", [MEMORIES["default"], MEMORIES["paper"]], ids=["default", "paper"])
@pytest.mark.parametrize("fields", LLAMAS.values(), ids=LLAMAS.keys())
def test_any_llama_keeps_its_logits(fields, memory):
    llama = enlarged_llama(**fields)
    model = retrofit(llama, **memory)
    ids = random_ids(2, SEGMENT)
    assert_close(logits_of(model, ids), logits_of(llama, ids))
    ours, theirs = model.state_dict(), llama.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert model.config.tie_word_embeddings == llama.config.tie_word_embeddings
    if llama.config.tie_word_embeddings:
        assert model.lm_head.weight is model.model.embed_tokens.weight


@pytest.mark.parametrize("max_shard_size", ["1GB", "10KB"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_from_a_folder(tmp_path, max_shard_size, dtype):
    llama = enlarged_llama(tie_word_embeddings=True).to(dtype)
    llama.save_pretrained(tmp_path, max_shard_size=max_shard_size)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (max_shard_size == "10KB")
    loaded = LlamaForCausalLM.from_pretrained(tmp_path)
    model = retrofit(str(tmp_path))
    assert model.dtype == loaded.dtype == dtype
    ours, theirs = model.state_dict(), loaded.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    # Not in the state dict, and easily rounded together with the weights.
    assert torch.equal(model.model.rotary_emb.inv_freq, loaded.model.rotary_emb.inv_freq)
    ids = random_ids(2, SEGMENT)
    if dtype == torch.float32:
        assert_close(logits_of(model, ids), logits_of(loaded, ids))
    else:
        assert logits_of(model, ids).float().sub(logits_of(loaded, ids).float()).abs().mean() < 0.02


def test_the_llama_is_copied_not_shared():
    llama = enlarged_llama()
    ids = random_ids(2, SEGMENT)
    expected = logits_of(llama, ids)
    model = retrofit(llama)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert torch.equal(logits_of(llama, ids), expected)


def loss_of(model: LM2ForCausalLM, ids: torch.Tensor) -> torch.Tensor:
    # Random targets, so that no gradient vanishes because a prediction is right.
    return cross_entropy(model(ids, use_cache=False).logits.reshape(-1, VOCAB), ids.flip(1).reshape(-1))


@all_memories
def test_every_memory_parameter_has_a_gradient_within_two_steps(memory):
    model = retrofit(enlarged_llama(), **memory).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
    ids = random_ids(4, 4 * SEGMENT)
    memory_names = {name for name, _ in model.named_parameters() if ".memory." in name}
    loss_of(model, ids).backward()
    # The first step opens the output path, for which it must have a gradient in every head; up to rounding in the
    # joint softmax, nothing else of the memory has one yet.
    first = {name: model.get_parameter(name).grad.abs() for name in memory_names}
    optimizer.step()
    optimizer.zero_grad()
    loss_of(model, ids).backward()
    second = gradients(model)
    for name in memory_names:
        if name.endswith("scale"):
            assert first[name].min() > 1e-5, name
        else:
            assert first[name].max() < 1e-6, name
            assert second[name].abs().max() > 10 * first[name].max(), name


@all_memories
def test_train_memory_only_changes_the_memory_and_nothing_else(memory):
    model = retrofit(enlarged_llama(tie_word_embeddings=True), **memory)
    assert model.train_memory_only() is model
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trainable == {name for name, _ in model.named_parameters() if ".memory." in name}
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-2, weight_decay=0.0)
    ids = random_ids(4, 4 * SEGMENT)
    first_loss = loss_of(model, ids)
    loss = first_loss
    for _ in range(10):
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        loss = loss_of(model, ids)
    assert loss < first_loss
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) == (name not in trainable), name


def rival_from_llama(subject, llama, **fields):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model_class = type(subject.make())
        return model_class.from_llama(llama, segment_length=SEGMENT, num_memory_tokens=3, **fields).eval()


@pytest.mark.parametrize("fields", [LLAMAS[name] for name in ("gqa", "tied", "biased", "wide heads", "dynamic rope")])
@subjects(only=("rmt", "armt"))
def test_rivals_keep_the_weights_of_any_llama_and_its_logits_where_they_can(subject, fields):
    llama = enlarged_llama(**fields)
    model = rival_from_llama(subject, llama)
    ours, theirs = model.state_dict(), llama.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    width_of_embeddings = llama.model.embed_tokens.weight.std().item()
    assert model.model.memory.tokens.std().item() == pytest.approx(width_of_embeddings, rel=0.2)
    # As long as nothing is in memory, every segment is a text of its own.
    ids = random_ids(2, 2 * SEGMENT)
    if fields == LLAMAS["dynamic rope"]:
        # The Llama's frequencies depend on the length of its call, ours on that of a segment with all its places.
        ids = ids[:, :1]
    expected = torch.cat([logits_of(llama, segment) for segment in ids.split(SEGMENT, dim=1)], dim=1)
    logits = logits_of(model, ids)
    if subject.changes_llama_because is None:
        assert_close(logits, expected)
    else:
        assert (logits - expected)[:, 0].abs().max() > 0.1


@subjects(only=("rmt", "armt"))
def test_every_memory_parameter_of_a_rival_has_a_gradient_within_two_steps(subject):
    model = rival_from_llama(subject, enlarged_llama()).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
    ids = random_ids(4, 4 * SEGMENT)
    for _ in range(2):
        optimizer.zero_grad()
        loss_of(model, ids).backward()
        optimizer.step()
    for name, parameter in model.named_parameters():
        if ".memory." in name:
            assert parameter.grad.abs().max() > 1e-6, name


@subjects(only=("rmt", "armt"))
def test_rivals_from_a_folder_and_with_their_memory_trained_alone(subject, tmp_path):
    llama = enlarged_llama()
    llama.save_pretrained(tmp_path)
    model = rival_from_llama(subject, str(tmp_path), memory_init_std=0.5)
    assert model.model.memory.tokens.std().item() == pytest.approx(0.5, rel=0.2)
    model.train_memory_only()
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trainable == {name for name, _ in model.named_parameters() if ".memory." in name}
    assert trainable
    with pytest.raises(ValueError, match="hidden_size: not a field of the memory"):
        rival_from_llama(subject, llama, hidden_size=64)
    with pytest.raises(ValueError, match="takes a LlamaForCausalLM or a path"):
        rival_from_llama(subject, model)


def test_what_is_no_llama_is_refused():
    with pytest.raises(ValueError, match="from_llama takes a LlamaForCausalLM or a path"):
        LM2ForCausalLM.from_llama(torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match="hidden_size: not a field of the memory"):
        LM2ForCausalLM.from_llama(enlarged_llama(), hidden_size=64)
    with pytest.raises(ValueError, match="nothing would be left to train"):
        retrofit(enlarged_llama(), memory_layers=0).train_memory_only()
