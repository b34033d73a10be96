"""
What the model refuses, how it says so, and that a refused call leaves everything as it was.

Shapes: B rows, T tokens, D hidden size.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import DynamicCache, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from lm2 import LM2Cache, LM2Config, LM2ForCausalLM, LM2Model

SEGMENT = {
    "vocab_size": 11,
    "hidden_size": 16,
    "intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "segment_length": 4,
    "num_memory_slots": 3,
}
PAPER = SEGMENT | {"memory_design": "paper", "num_memory_slots": 16}

NUM_SEEN = 5  # columns that a cache has seen before the call under test


def make_model(**fields) -> LM2ForCausalLM:
    torch.manual_seed(0)
    return LM2ForCausalLM(LM2Config(**SEGMENT | fields)).eval()


@pytest.fixture(scope="module", params=["segment", "paper", "in turn"])
def model(request) -> LM2ForCausalLM:
    fields = {"segment": SEGMENT, "paper": PAPER, "in turn": SEGMENT | {"memory_write_source": "attention"}}
    return make_model(**fields[request.param])


def random_ids(num_rows: int = 2, num_tokens: int = 6) -> torch.Tensor:
    return torch.randint(11, (num_rows, num_tokens), generator=torch.Generator().manual_seed(1))


def filled_cache(model: LM2ForCausalLM) -> LM2Cache:
    cache = LM2Cache(model.config)
    mask = torch.ones(2, NUM_SEEN, dtype=torch.long)
    mask[1, :2] = 0
    with torch.no_grad():
        model(random_ids(2, NUM_SEEN), attention_mask=mask, cache=cache)
    return cache


def contents(cache: LM2Cache) -> dict:
    """Everything that a cache holds, copied."""
    held = {"columns": cache.num_columns, "tokens": cache.num_tokens, "document": cache.num_document_tokens}
    held |= {f"{index}.{name}": x for index, state in enumerate(cache.states) for name, x in state.tensors().items()}
    return copy.deepcopy(held | {"bank": cache.bank})


def assert_unchanged(cache: LM2Cache, before: dict) -> None:
    after = contents(cache)
    assert set(after) == set(before)
    for name, value in before.items():
        same = torch.equal(after[name], value) if isinstance(value, torch.Tensor) else after[name] == value
        assert same, f"{name} has changed"


@dataclass
class Refusal:
    """A call that must fail: arguments beside or instead of good ones, and words that the message must have."""

    name: str
    arguments: Callable[[], dict]
    words: list[str] = field(default_factory=list)


def mask_with(*zeros: tuple[int, int], num_columns: int = 6) -> torch.Tensor:
    mask = torch.ones(2, num_columns, dtype=torch.long)
    for place in zeros:
        mask[place] = 0
    return mask


def ids_with(token: int) -> torch.Tensor:
    ids = random_ids()
    ids[1, 3] = token
    return ids


REFUSALS = [
    Refusal(
        "mask-too-long",
        lambda: {"attention_mask": torch.ones(2, 7, dtype=torch.long)},
        ["attention_mask", "(2, 7)", "[2, 6]"],
    ),
    Refusal(
        "mask-too-short", lambda: {"attention_mask": torch.ones(2, 5, dtype=torch.long)}, ["attention_mask", "(2, 5)"]
    ),
    Refusal("mask-of-other-rows", lambda: {"attention_mask": torch.ones(3, 6, dtype=torch.long)}, ["(3, 6)", "2 rows"]),
    Refusal("mask-flat", lambda: {"attention_mask": torch.ones(6, dtype=torch.long)}, ["attention_mask", "(6,)"]),
    Refusal(
        "mask-of-four-dimensions",
        lambda: {"attention_mask": torch.ones(2, 1, 6, 6)},
        ["attention_mask", "(2, 1, 6, 6)", "four dimensions"],
    ),
    Refusal(
        "mask-with-a-hole", lambda: {"attention_mask": mask_with((1, 2))}, ["attention_mask", "row 1", "segment_reset"]
    ),
    Refusal(
        "mask-with-a-hole-behind-padding",
        lambda: {"attention_mask": mask_with((0, 0), (0, 2), (0, 3), (0, 5))},
        ["attention_mask", "row 0"],
    ),
    Refusal(
        "mask-of-twos", lambda: {"attention_mask": 2 * mask_with()}, ["attention_mask", "0 (padding)", "1 (token)"]
    ),
    Refusal(
        "mask-additive",
        lambda: {"attention_mask": torch.zeros(2, 6).index_fill(1, torch.tensor([0]), -1e9)},
        ["attention_mask", "additive"],
    ),
    Refusal("mask-of-nan", lambda: {"attention_mask": torch.full((2, 6), float("nan"))}, ["attention_mask"]),
    Refusal(
        "positions-of-other-length", lambda: {"position_ids": torch.arange(5).expand(2, -1)}, ["position_ids", "[2, 6]"]
    ),
    Refusal("positions-of-other-rows", lambda: {"position_ids": torch.arange(6).expand(3, -1)}, ["position_ids"]),
    Refusal("positions-flat", lambda: {"position_ids": torch.arange(6)}, ["position_ids", "(6,)"]),
    Refusal(
        "positions-with-a-gap",
        lambda: {"position_ids": torch.tensor([[0, 1, 2, 3, 4, 5], [0, 1, 2, 4, 5, 6]])},
        ["position_ids", "from 2 to 4", "row 1", "column 3"],
    ),
    Refusal(
        "reset-of-numbers",
        lambda: {"segment_reset": torch.zeros(2, 6, dtype=torch.long)},
        ["segment_reset", "torch.int64", "bool"],
    ),
    Refusal(
        "reset-of-other-shape",
        lambda: {"segment_reset": torch.zeros(2, 5, dtype=torch.bool)},
        ["segment_reset", "(2, 5)", "[2, 6]"],
    ),
    Refusal("token-too-high", lambda: {"input_ids": ids_with(11)}, ["input_ids", "token 11", "vocab_size=11"]),
    Refusal("token-below-zero", lambda: {"input_ids": ids_with(-1)}, ["input_ids", "token -1", "vocab_size=11"]),
    Refusal("label-as-token", lambda: {"input_ids": ids_with(-100)}, ["input_ids", "token -100"]),
    Refusal("ids-and-embeddings", lambda: {"inputs_embeds": torch.zeros(2, 6, 16)}, ["input_ids", "inputs_embeds"]),
    Refusal("neither-ids-nor-embeddings", lambda: {"input_ids": None}, ["input_ids", "inputs_embeds"]),
    Refusal("no-tokens", lambda: {"input_ids": torch.zeros(2, 0, dtype=torch.long)}, ["(2, 0)", "at least one"]),
    Refusal("no-rows", lambda: {"input_ids": torch.zeros(0, 6, dtype=torch.long)}, ["(0, 6)", "at least one"]),
    Refusal("no-embeddings", lambda: {"input_ids": None, "inputs_embeds": torch.zeros(2, 0, 16)}, ["at least one"]),
    Refusal("attention-maps", lambda: {"output_attentions": True}, ["output_attentions", "output_hidden_states"]),
]


@pytest.mark.parametrize("with_cache", [False, True], ids=["alone", "with-cache"])
@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda refusal: refusal.name)
def test_a_bad_call_is_refused_and_changes_nothing(model, refusal, with_cache):
    arguments = {"input_ids": random_ids(), "use_cache": with_cache} | refusal.arguments()
    cache = None
    if with_cache:
        cache = arguments["cache"] = filled_cache(model)
        before = contents(cache)
    with pytest.raises(ValueError, match=r"\w") as error:
        model(**arguments)
    for word in refusal.words:
        assert word in str(error.value)
    if with_cache:
        assert_unchanged(cache, before)
        # And it still works.
        arguments = {"input_ids": random_ids(), "cache": cache}
        expected = model(random_ids(), cache=filled_cache(model)).logits
        assert torch.equal(model(**arguments).logits, expected)


def test_the_good_call_that_the_refused_ones_differ_from(model):
    arguments = {
        "attention_mask": mask_with((0, 0), (1, 5)),
        "position_ids": torch.tensor([[1, 0, 1, 2, 0, 1], [0, 1, 2, 3, 4, 1]]),
        "segment_reset": torch.zeros(2, 6, dtype=torch.bool),
    }
    logits = model(random_ids(), **arguments).logits
    assert bool(torch.isfinite(logits).all())
    cache = filled_cache(model)
    for columns in (6, NUM_SEEN + 6 + 6):
        mask = torch.ones(2, columns, dtype=torch.long)
        assert bool(torch.isfinite(model(random_ids(), attention_mask=mask, cache=cache).logits).all())


@pytest.mark.parametrize("num_columns", [4, 6, 9, 11])
def test_a_mask_covers_the_new_columns_or_all(model, num_columns):
    cache = filled_cache(model)
    before = contents(cache)
    with pytest.raises(ValueError, match="attention_mask") as error:
        model(random_ids(2, 5), attention_mask=torch.ones(2, num_columns, dtype=torch.long), cache=cache)
    assert "[2, 5] or [2, 10]" in str(error.value)
    assert_unchanged(cache, before)


# --- caches ---


@pytest.mark.parametrize("num_rows", [1, 3])
def test_a_cache_of_other_rows(model, num_rows):
    cache = filled_cache(model)
    before = contents(cache)
    with pytest.raises(ValueError, match=rf"the input has {num_rows} rows, the cache 2") as error:
        model(random_ids(num_rows), cache=cache)
    assert "LM2Cache.select" in str(error.value)
    assert_unchanged(cache, before)


def test_a_cache_of_another_kind(model):
    with pytest.raises(ValueError, match="cache is a DynamicCache") as error:
        model(random_ids(), cache=DynamicCache(config=model.config))
    assert "LM2Cache(model.config)" in str(error.value)


@pytest.mark.parametrize("is_filled", [False, True])
def test_a_cache_of_another_model_names_what_differs(is_filled):
    other = make_model(num_memory_slots=5, segment_length=3)
    cache = filled_cache(other) if is_filled else LM2Cache(other.config)
    before = contents(cache)
    with pytest.raises(ValueError, match="this cache belongs to another model") as error:
        make_model()(random_ids(), cache=cache)
    for difference in ("num_memory_slots=5 (model: 3)", "segment_length=3 (model: 4)"):
        assert difference in str(error.value)
    assert "hidden_size" not in str(error.value)
    assert_unchanged(cache, before)


def test_a_cache_of_an_equal_config_is_taken():
    cache = LM2Cache(LM2Config(**SEGMENT))
    make_model()(random_ids(), cache=cache)
    assert cache.num_columns == 6


def test_a_cache_that_is_not_wanted(model):
    cache = filled_cache(model)
    before = contents(cache)
    with pytest.raises(ValueError, match="cache with use_cache=False"):
        model(random_ids(), cache=cache, use_cache=False)
    assert_unchanged(cache, before)


@pytest.mark.parametrize("num_tokens", [1, -1, 3])
def test_a_bank_cannot_be_cropped(model, num_tokens):
    cache = filled_cache(model)
    before = contents(cache)
    with pytest.raises(ValueError, match=rf"crop\({num_tokens}\)") as error:
        cache.crop(num_tokens)
    assert "deepcopy" in str(error.value)
    cache.crop(0)
    assert_unchanged(cache, before)


@pytest.mark.parametrize("rows", [[2], [-1], [0, 5]])
@pytest.mark.parametrize("method", ["reset", "select"])
def test_rows_that_a_cache_does_not_have(model, method, rows):
    cache = filled_cache(model)
    before = contents(cache)
    with pytest.raises(ValueError, match="out of range") as error:
        getattr(cache, method)(rows)
    assert "rows 0 to 1" in str(error.value)
    assert_unchanged(cache, before)


def test_rows_of_an_empty_cache(model):
    for method in ("reset", "select"):
        with pytest.raises(ValueError, match="empty cache"):
            getattr(LM2Cache(model.config), method)([0])


def test_a_failure_inside_the_model_leaves_the_cache_as_it_was(model):
    # Not a bad argument, but whatever may happen in the last block after the others have made their next states.
    cache = filled_cache(model)
    before = contents(cache)
    hook = model.model.layers[-1].mlp.register_forward_pre_hook(lambda *_: 1 / 0)
    try:
        with pytest.raises(ZeroDivisionError):
            model(random_ids(), cache=cache)
    finally:
        hook.remove()
    assert_unchanged(cache, before)


# --- training ---


def checkpointed_model() -> LM2ForCausalLM:
    model = make_model().train()
    model.activation_checkpointing_enable()
    return model


def test_a_state_with_gradient_checkpointing():
    model = checkpointed_model()
    with pytest.raises(ValueError, match="use_cache=True with gradient checkpointing"):
        model(random_ids(), use_cache=True)
    cache = filled_cache(make_model())
    before = contents(cache)
    with pytest.raises(ValueError, match="cache with gradient checkpointing"):
        model(random_ids(), cache=cache)
    assert_unchanged(cache, before)
    assert model(random_ids()).cache is None
    # It is the replay in training that is in the way.
    assert model.eval()(random_ids(), use_cache=True).cache is not None


def test_reentrant_checkpointing():
    with pytest.raises(ValueError, match="use_reentrant=True loses the gradient") as error:
        make_model().activation_checkpointing_enable({"use_reentrant": True})
    assert "'use_reentrant': False" in str(error.value)


def test_training_a_memory_that_is_not_there():
    with pytest.raises(ValueError, match="memory_layers empty"):
        make_model(memory_layers=0).train_memory_only()


# --- without memory ---


@pytest.mark.parametrize("token", [-1, 11])
def test_a_model_without_memory_looks_at_tokens_too(token):
    with pytest.raises(ValueError, match=f"the token {token}"):
        make_model(memory_layers=0)(ids_with(token))


def test_a_model_without_memory_has_no_segments_to_reset():
    with pytest.raises(ValueError, match="segment_reset has no effect without memory"):
        make_model(memory_layers=[])(random_ids(), segment_reset=torch.zeros(2, 6, dtype=torch.bool))


# --- loading ---


def tiny_llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    names = ("segment_length", "num_memory_slots")
    return LlamaForCausalLM(LlamaConfig(**{name: value for name, value in SEGMENT.items() if name not in names}))


@pytest.mark.parametrize(
    "wrong",
    [
        None,
        7,
        LlamaConfig(),
        torch.nn.Linear(2, 2),
        GPT2LMHeadModel(GPT2Config(vocab_size=11, n_embd=8, n_layer=1, n_head=1)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_from_llama_takes_llamas_only(wrong):
    with pytest.raises(ValueError, match=f"not a {type(wrong).__name__}"):
        LM2ForCausalLM.from_llama(wrong)


def test_from_llama_takes_no_lm2_and_no_model_without_head():
    for wrong in (make_model(), tiny_llama().model):
        with pytest.raises(ValueError, match=f"not a {type(wrong).__name__}"):
            LM2ForCausalLM.from_llama(wrong)


@pytest.mark.parametrize("fields", [{"hidden_size": 32}, {"vocab_size": 5}, {"rms_norm_eps": 1e-5}, {"slots": 3}])
def test_from_llama_takes_fields_of_the_memory_only(fields):
    (name,) = fields
    with pytest.raises(ValueError, match=f"{name}: not a field of the memory") as error:
        LM2ForCausalLM.from_llama(tiny_llama(), segment_length=4, **fields)
    assert "num_memory_slots" in str(error.value)


def test_from_llama_checks_the_fields_against_the_llama():
    with pytest.raises(ValueError, match=r"memory_layers=3 is out of range.*num_hidden_layers=2"):
        LM2ForCausalLM.from_llama(tiny_llama(), memory_layers=3)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", ["model.layers.1.memory.write.content.weight", "model.embed_tokens.weight"])
def test_weights_that_are_no_numbers(tmp_path, name, number):
    make_model().save_pretrained(tmp_path)
    for model_class in (LM2ForCausalLM, LM2Model):
        model_class.from_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    weights[name][0, 0] = number
    save_file(weights, file, {"format": "pt"})
    with pytest.raises(ValueError, match=f"weight {name} has NaN or infinite numbers"):
        LM2ForCausalLM.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match=name.removeprefix("model.")):
        LM2Model.from_pretrained(tmp_path)


# --- padding ---


def test_a_row_of_padding_alone_keeps_its_state(model):
    cache = filled_cache(model)
    before = contents(cache)
    mask = torch.ones(2, 6, dtype=torch.long)
    mask[0] = 0
    with torch.no_grad():
        output = model(random_ids(), attention_mask=mask, cache=cache)
    assert bool(torch.isfinite(output.logits).all())
    after = contents(cache)
    assert after["tokens"].tolist() == [NUM_SEEN, NUM_SEEN - 2 + 6]
    for name, value in before.items():
        if name.endswith("bank") and value is not None:
            assert torch.equal(after[name][0], value[0]), name
