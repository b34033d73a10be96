"""How fresh models start, where a wrong start would only show after long training."""

import pytest
import torch

from lm2 import ARMTConfig, ARMTForCausalLM, LM2Config, LM2ForCausalLM, RMTConfig, RMTForCausalLM

LLAMA = {
    "vocab_size": 50,
    "hidden_size": 64,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
}


@pytest.mark.parametrize("bias", [0.0, -2.0])
@pytest.mark.parametrize("write", ["address", "attend"])
def test_input_gates_start_as_configured(write, bias):
    model = LM2ForCausalLM(LM2Config(**LLAMA, memory_write=write, memory_input_gate_bias=bias))
    for block in model.model.layers:
        assert bool((block.memory.write.input_gate.bias == bias).all())


def test_attended_slots_start_by_remembering():
    model = LM2ForCausalLM(LM2Config(**LLAMA, memory_write="attend"))
    for block in model.model.layers:
        assert bool((block.memory.write.forget_gate.bias == 1).all())


def test_slots_and_addresses_start_at_unit_width():
    for block in LM2ForCausalLM(LM2Config(**LLAMA)).model.layers:
        assert block.memory.initial_slots.std().item() == pytest.approx(1, rel=0.1)
        assert block.memory.write.address.std().item() == pytest.approx(1, rel=0.1)


def test_a_fresh_armt_writes_nothing():
    model = ARMTForCausalLM(ARMTConfig(**LLAMA))
    for block in model.model.layers:
        assert bool((block.memory.value.weight == 0).all())
        assert bool((block.memory.key.weight != 0).any())


@pytest.mark.parametrize(("given", "expected"), [({}, 0.1), ({"memory_init_std": 1.0}, 1.0)])
@pytest.mark.parametrize(("model_class", "config_class"), [(RMTForCausalLM, RMTConfig), (ARMTForCausalLM, ARMTConfig)])
def test_memory_tokens_start_as_wide_as_configured(model_class, config_class, given, expected):
    model = model_class(config_class(**LLAMA, initializer_range=0.1, **given))
    assert model.model.memory.tokens.std().item() == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize(
    "model",
    [LM2ForCausalLM(LM2Config(**LLAMA, memory_write="attend")), ARMTForCausalLM(ARMTConfig(**LLAMA))],
    ids=["lm2", "armt"],
)
def test_what_is_loaded_is_not_started_again(model, tmp_path):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(0.5)
    model.save_pretrained(tmp_path)
    for name, parameter in type(model).from_pretrained(tmp_path).named_parameters():
        assert bool((parameter == 0.5).all()), name
