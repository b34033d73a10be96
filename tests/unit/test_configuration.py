"""LM2Config: its defaults, what it refuses and how it says so, and what identifies a state."""

import json
import re

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, LlamaConfig

from lm2 import LM2Cache, LM2Config, LM2ForCausalLM

BACKBONE = {
    "vocab_size": 11,
    "hidden_size": 16,
    "intermediate_size": 12,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
PAPER = {"memory_design": "paper"}

OWN_FIELDS = tuple(LM2Config.__annotations__)


# --- refusals ---


@pytest.mark.parametrize(
    ("fields", "what_it_says"),
    [
        ({"segment_length": 0}, ["segment_length=0", "at least 1"]),
        ({"segment_length": -3}, ["segment_length=-3", "at least 1"]),
        ({"num_memory_slots": 0}, ["num_memory_slots=0", "at least 1"]),
        ({"num_memory_heads": 0}, ["num_memory_heads=0", "at least 1"]),
        ({"attention_window": 0}, ["attention_window=0", "at least 1", "None for the whole past"]),
        ({"bptt_segments": 1}, ["bptt_segments=1", "at least 2", "None for no truncation"]),
        ({"memory_top_k": 0}, ["memory_top_k=0", "at least 1", "None to read all slots"]),
        ({"memory_top_k": 65}, ["memory_top_k=65", "num_memory_slots=64", "at most the number of slots"]),
        ({"memory_top_k": 6, "num_memory_slots": 5}, ["memory_top_k=6", "num_memory_slots=5"]),
        ({"num_attention_heads": 0}, ["num_attention_heads=0", "at least 1"]),
        ({"num_key_value_heads": 0}, ["num_key_value_heads=0", "at least 1"]),
        ({"num_attention_heads": 3}, ["num_attention_heads=3", "hidden_size=16", "divides the hidden size"]),
        ({"num_key_value_heads": 3}, ["num_key_value_heads=3", "num_attention_heads=4", "same number of heads"]),
        ({"num_memory_heads": 3}, ["num_memory_heads=3", "hidden_size=16", "equal part"]),
        ({"memory_layers": 4}, ["memory_layers=4", "num_hidden_layers=3", "0 <= k <= 3"]),
        ({"memory_layers": -1}, ["memory_layers=-1", "num_hidden_layers=3", "0 <= k <= 3"]),
        ({"memory_layers": [0, 3]}, ["memory_layers=[0, 3]", "[3]", "from 0 to 2"]),
        ({"memory_layers": [-1]}, ["memory_layers=[-1]", "from 0 to 2"]),
        ({"memory_layers": [1, 0, 1]}, ["memory_layers=[1, 0, 1]", "twice", "once"]),
        ({"memory_design": "segments"}, ["memory_design='segments'", "'segment', 'paper'"]),
        ({"memory_read": "both"}, ["memory_read='both'", "'joint', 'separate'"]),
        ({"memory_write": "erase"}, ["memory_write='erase'", "'address', 'attend'"]),
        ({"memory_write_source": "output"}, ["memory_write_source='output'", "'input', 'attention'"]),
        ({"memory_write_floor": 1.0}, ["memory_write_floor=1.0", "at least 0 and below 1"]),
        ({"memory_write_floor": -0.1}, ["memory_write_floor=-0.1", "at least 0 and below 1"]),
        (
            {"memory_write": "attend", "memory_write_floor": 0.25},
            ["memory_write_floor=0.25", "no effect", "memory_write='attend'", "leave it out"],
        ),
        ({"memory_init": "zeros"}, ["memory_init='zeros'", "'learned', 'identity'"]),
        ({"num_memory_slot": 5}, ["'num_memory_slot'", "did you mean 'num_memory_slots'?"]),
        ({"segment_lenght": 5}, ["'segment_lenght'", "did you mean 'segment_length'?"]),
        ({"memory_topk": 5}, ["'memory_topk'", "did you mean 'memory_top_k'?"]),
        (PAPER | {"num_memory_slots": 8}, ["num_memory_slots=8", "hidden_size=16", "use memory_design='segment'"]),
        (PAPER | {"segment_length": 17}, ["segment_length=17", "num_memory_slots=16", "shorten the segment"]),
        (PAPER | {"segment_length": 0}, ["segment_length=0", "at least 1"]),
        (PAPER | {"memory_top_k": 17}, ["memory_top_k=17", "num_memory_slots=16"]),
        (PAPER | {"memory_read": "joint"}, ["memory_read='joint'", "no effect", "leave it out"]),
        (PAPER | {"memory_init": "learned"}, ["memory_init='learned'", "no effect", "leave it out"]),
        (PAPER | {"num_memory_heads": 2}, ["num_memory_heads=2", "no effect", "leave it out"]),
        (PAPER | {"memory_write": "address"}, ["memory_write='address'", "no effect", "leave it out"]),
        (PAPER | {"memory_write_source": "input"}, ["memory_write_source='input'", "no effect", "leave it out"]),
        (PAPER | {"memory_write_floor": 0.25}, ["memory_write_floor=0.25", "no effect", "leave it out"]),
        (PAPER | {"memory_null_slot": True}, ["memory_null_slot=True", "no effect", "leave it out"]),
        (PAPER | {"memory_input_gate_bias": -1.0}, ["memory_input_gate_bias=-1.0", "no effect", "leave it out"]),
    ],
    ids=lambda value: "-".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else "",
)
def test_a_wrong_field_is_named_with_its_value_and_the_fix(fields, what_it_says):
    with pytest.raises(ValueError, match=re.escape(what_it_says[0])) as error:
        LM2Config(**BACKBONE | fields)
    for part in what_it_says:
        assert part in str(error.value)


@pytest.mark.parametrize(
    "fields",
    [
        {"memory_layers": True},
        {"memory_layers": [True]},
        {"memory_layers": 1.5},
        {"memory_layers": "all"},
        {"segment_length": 2.5},
        {"segment_length": True},
        {"num_memory_slots": "8"},
    ],
    ids=str,
)
def test_a_field_of_a_wrong_type_is_named_with_its_value(fields):
    # transformers' own check of types, which comes first and raises its own error.
    ((name, value),) = fields.items()
    with pytest.raises(StrictDataclassError) as error:
        LM2Config(**BACKBONE | fields)
    assert f"'{name}'" in str(error.value)
    assert str(value) in str(error.value)


def test_fields_that_are_not_like_ours_are_kept_as_transformers_does():
    assert LM2Config(**BACKBONE, label2id={"a": 0}, summary_note="x").summary_note == "x"


# --- defaults ---


def test_defaults_of_design_segment():
    config = LM2Config()
    assert {name: getattr(config, name) for name in OWN_FIELDS} == {
        "memory_design": "segment",
        "memory_layers": None,
        "num_memory_slots": 64,
        "num_memory_heads": 4,
        "segment_length": 512,
        "attention_window": 1,
        "memory_read": "joint",
        "memory_write": "address",
        "memory_write_source": "input",
        "memory_write_floor": 0.03,
        "memory_top_k": None,
        "memory_null_slot": False,
        "memory_init": "learned",
        "memory_input_gate_bias": 0.0,
        "bptt_segments": None,
    }


@pytest.mark.parametrize(("hidden_size", "segment_length"), [(64, 64), (512, 512), (1024, 512)])
def test_defaults_of_design_paper(hidden_size, segment_length):
    config = LM2Config(memory_design="paper", hidden_size=hidden_size)
    assert {name: getattr(config, name) for name in OWN_FIELDS} == {
        "memory_design": "paper",
        "memory_layers": None,
        "num_memory_slots": hidden_size,
        "num_memory_heads": 1,
        "segment_length": segment_length,
        "attention_window": 1,
        "memory_read": "separate",
        "memory_write": None,
        "memory_write_source": None,
        "memory_write_floor": None,
        "memory_top_k": None,
        "memory_null_slot": False,
        "memory_init": "identity",
        "memory_input_gate_bias": 0.0,
        "bptt_segments": None,
    }


def test_llamas_fields_keep_their_defaults():
    ours, llamas = LM2Config().to_dict(), LlamaConfig().to_dict()
    differing = {name for name in llamas if ours[name] != llamas[name]}
    assert differing <= {"model_type"}


@pytest.mark.parametrize(
    ("memory_layers", "indices"),
    [(None, (0, 1, 2)), (0, ()), (1, (0,)), (3, (0, 1, 2)), ([], ()), ([2, 0], (0, 2)), ([1], (1,))],
)
def test_blocks_that_have_memory(memory_layers, indices):
    config = LM2Config(**BACKBONE, memory_layers=memory_layers)
    assert config.memory_block_indices == indices
    assert config.has_memory == bool(indices)


# --- documentation ---


def documented_fields() -> dict[str, str]:
    """Name -> type and default as the docstring gives them."""
    head = re.compile(r"^ {8}(\w+) \((.+)\):$", re.MULTILINE)
    arguments = LM2Config.__doc__.split("Args:")[1].split("Raises:")[0]
    return {match[1]: match[2] for match in head.finditer(arguments)}


def test_every_field_is_documented_in_order():
    assert tuple(documented_fields()) == OWN_FIELDS


@pytest.mark.parametrize("name", OWN_FIELDS)
def test_the_documented_default_is_the_default(name):
    text, default = documented_fields()[name], getattr(LM2Config, name)
    stated = re.search(r"defaults to `?([^`]+)`?$", text)
    if stated:
        assert stated[1].replace('"', "'") == repr(default)
    else:
        # It depends on the design, or is that of all blocks, all slots, never.
        assert default is None
        assert "*optional*" in text


# --- to a file and back ---


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"memory_layers": [2, 0]},
        {"memory_layers": []},
        {"memory_layers": 0},
        {"memory_layers": 2, "attention_window": None, "memory_top_k": 3, "bptt_segments": 4},
        {"memory_read": "separate", "memory_write": "attend", "memory_null_slot": True, "memory_init": "identity"},
        {
            "memory_input_gate_bias": -2.0,
            "memory_write_floor": 0.1,
            "num_memory_heads": 2,
            "segment_length": 7,
            "num_memory_slots": 5,
        },
        {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 500.0}},
        PAPER,
        PAPER | {"segment_length": 9, "memory_layers": [1]},
    ],
    ids=lambda fields: "-".join(f"{k}={v}" for k, v in fields.items() if k != "rope_parameters") or "plain",
)
def test_json_round_trip(fields, tmp_path):
    config = LM2Config(**BACKBONE | fields)
    for name in fields:
        assert getattr(config, name) == fields[name] or name == "rope_parameters"
    config.save_pretrained(tmp_path)
    copies = {
        "from_dict": LM2Config.from_dict(config.to_dict()),
        "json": LM2Config.from_dict(json.loads(config.to_json_string(use_diff=False))),
        "file": LM2Config.from_pretrained(tmp_path),
        "auto": AutoConfig.from_pretrained(tmp_path),
    }
    for name, copy in copies.items():
        assert type(copy) is LM2Config, name
        assert {field: getattr(copy, field) for field in OWN_FIELDS} == {
            field: getattr(config, field) for field in OWN_FIELDS
        }, name
        assert copy.memory_block_indices == config.memory_block_indices
        assert copy.fingerprint() == config.fingerprint(), name


# --- what identifies a state ---


def test_the_fingerprint_is_that_of_the_fields_behind_it():
    config = LM2Config(**BACKBONE)
    assert re.fullmatch("[0-9a-f]{64}", config.fingerprint())
    assert config.fingerprint() == LM2Config(**BACKBONE).fingerprint()
    assert json.loads(json.dumps(config.state_fields())) == config.state_fields()
    # The order in which a file happens to name things says nothing.
    ropes = [{"rope_type": "default", "rope_theta": 77.0}, {"rope_theta": 77.0, "rope_type": "default"}]
    one, other = (LM2Config(**BACKBONE, rope_parameters=rope).fingerprint() for rope in ropes)
    assert one == other


@pytest.mark.parametrize(
    "fields",
    [
        {"vocab_size": 12},
        {"hidden_size": 32},
        {"intermediate_size": 13},
        {"num_hidden_layers": 4},
        {"num_attention_heads": 2},
        {"num_key_value_heads": 1},
        {"head_dim": 8},
        {"hidden_act": "gelu"},
        {"rms_norm_eps": 1e-5},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 77.0}},
        {"attention_bias": True},
        {"mlp_bias": True},
        {"tie_word_embeddings": True},
        PAPER,
        {"memory_layers": 1},
        {"num_memory_slots": 5},
        {"num_memory_heads": 2},
        {"segment_length": 7},
        {"attention_window": 2},
        {"attention_window": None},
        {"memory_read": "separate"},
        {"memory_write": "attend"},
        {"memory_write_source": "attention"},
        {"memory_write_floor": 0.0},
        {"memory_init": "identity"},
        {"memory_top_k": 3},
        {"memory_null_slot": True},
    ],
    ids=str,
)
def test_the_fingerprint_changes_with_what_a_state_means(fields):
    base, changed = LM2Config(**BACKBONE), LM2Config(**BACKBONE | fields)
    assert changed.fingerprint() != base.fingerprint()
    theirs, ours = changed.state_fields(), base.state_fields()
    assert set(fields) <= {name for name in ours if theirs[name] != ours[name]}


@pytest.mark.parametrize(
    "fields",
    [
        {"bptt_segments": 3},
        {"memory_input_gate_bias": -1.0},
        {"initializer_range": 0.1},
        {"attention_dropout": 0.5},
        {"use_cache": False},
        {"memory_layers": 3},
        {"memory_layers": [2, 1, 0]},
        {"num_memory_slots": 64},
        {"bos_token_id": 5},
    ],
    ids=str,
)
def test_the_fingerprint_does_not_change_with_training_or_spelling(fields):
    assert LM2Config(**BACKBONE | fields).fingerprint() == LM2Config(**BACKBONE).fingerprint()


# --- bytes of a state ---


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"attention_window": 3},
        {"num_memory_slots": 5, "memory_null_slot": True},
        {"memory_read": "separate", "memory_null_slot": True},
        {"memory_read": "separate", "memory_write": "attend"},
        {"memory_write_source": "attention"},
        {"memory_layers": [1]},
        {"segment_length": 1},
        {"head_dim": 6},
        PAPER,
        PAPER | {"segment_length": 16, "attention_window": 2, "memory_layers": 2},
    ],
    ids=str,
)
def test_bytes_of_a_full_state(fields, dtype):
    config = LM2Config(**BACKBONE | {"segment_length": 4} | fields)
    model = LM2ForCausalLM(config).eval().to(dtype)
    cache = LM2Cache(config)
    # The last token is missing, so the open segment is as full as it can be after a call.
    model(torch.zeros(2, 4 * config.segment_length - 1, dtype=torch.long), cache=cache)
    num_counter_bytes = 2 * 8
    assert cache.num_bytes == 2 * (config.num_state_bytes(dtype.itemsize) + num_counter_bytes)


@pytest.mark.parametrize("fields", [{"attention_window": None}, {"memory_layers": 0}, {"memory_layers": []}], ids=str)
def test_a_state_without_bound_has_no_size(fields):
    with pytest.raises(ValueError, match=r"attention_window=None|memory_layers is empty") as error:
        LM2Config(**BACKBONE | fields).num_state_bytes(4)
    assert "grows" in str(error.value)
