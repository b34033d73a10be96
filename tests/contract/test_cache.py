"""The state of a conversation: rows, bytes, copies, files, and what it refuses."""

import copy
import subprocess
import sys

import pytest
import torch
from contract.helpers import (
    assert_close,
    assert_memory_matters,
    attention_window,
    gradients,
    logits_of,
    random_ids,
    stream,
)
from contract.subjects import LONGEST, SEGMENT, SUBJECT, subjects

from lm2 import LM2Cache

FIRST = SEGMENT + 3


def filled(subject, model, num_rows: int = 3, num_tokens: int = FIRST):
    cache = subject.new_cache(model)
    ids = random_ids(num_rows, num_tokens)
    logits_of(model, ids, cache=cache)
    return ids, cache


def rows_changed(cache, how: str):
    """The rows that are left, in order, after one of the ways to change the rows of a cache."""
    if how == "select":
        cache.select([2, 0, 2, 1])
        return [2, 0, 2, 1]
    if how == "reorder_cache":
        cache.reorder_cache(torch.tensor([1, 1, 0]))
        return [1, 1, 0]
    if how == "batch_select_indices":
        cache.batch_select_indices(torch.tensor([2]))
        return [2]
    cache.batch_repeat_interleave(2)
    return [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("num_tokens", [FIRST, 2 * SEGMENT], ids=["open segment", "full segment"])
@pytest.mark.parametrize("how", ["select", "reorder_cache", "batch_select_indices", "batch_repeat_interleave"])
@subjects("is_float32", "has_memory")
def test_rows_can_be_picked_and_repeated(subject, how, num_tokens):
    model = subject.make()
    ids, cache = filled(subject, model, num_tokens=num_tokens)
    # Rows that have seen different numbers of tokens.
    more, mask = random_ids(3, 2, seed=3), torch.tensor([[1, 1], [0, 1], [0, 0]])
    logits_of(model, more, attention_mask=mask, cache=cache)
    rows = rows_changed(cache, how)
    assert cache.batch_size == len(rows)
    rest = random_ids(len(rows), LONGEST, seed=2)
    logits = logits_of(model, rest, cache=cache)
    for index, row in enumerate(rows):
        text = torch.cat([ids[row], more[row][mask[row].bool()], rest[index]])
        assert_close(logits[index], logits_of(model, text[None], use_cache=False)[0, -LONGEST:])


@pytest.mark.parametrize("with_head", [True, False], ids=["with head", "without head"])
@subjects("is_float32")
def test_a_state_under_its_old_name_is_not_dropped(subject, with_head):
    causal = subject.make()
    model = causal if with_head else causal.model
    first, rest = random_ids(2, FIRST), random_ids(2, LONGEST, seed=2)
    expected, state = model(first).cache, model(first).cache
    with pytest.warns(FutureWarning, match="Use `cache` instead"):
        got = model(rest, past_key_values=state)
    assert got.cache is state
    assert torch.equal(got[0], model(rest, cache=expected)[0])


@subjects("has_memory")
def test_rows_that_do_not_fit_are_refused(subject):
    model = subject.make()
    _, cache = filled(subject, model)
    with pytest.raises(ValueError, match="the input has 2 rows, the cache 3"):
        model(random_ids(2, 4), cache=cache)
    for name in ("select", "reset"):
        with pytest.raises(ValueError, match=r"rows=\[3\] are out of range; the cache has rows 0 to 2"):
            getattr(cache, name)([3])
        with pytest.raises(ValueError, match=r"rows=\[0\] of an empty cache"):
            getattr(subject.new_cache(model), name)([0])


@subjects("has_memory")
def test_a_deep_copy_lives_its_own_life(subject):
    model = subject.make()
    _, cache = filled(subject, model)
    one, two = copy.deepcopy(cache), copy.deepcopy(cache)
    rest = random_ids(3, LONGEST, seed=2)
    logits_of(model, random_ids(3, LONGEST, seed=3), cache=one)
    assert torch.equal(logits_of(model, rest, cache=two), logits_of(model, rest, cache=cache))


@subjects("has_memory")
def test_detach_cuts_the_graph(subject):
    model = subject.make()
    first, second = random_ids(2, 2 * SEGMENT), random_ids(2, SEGMENT, seed=2)
    embed = model.get_input_embeddings()
    for detaches in (False, True):
        cache = subject.new_cache(model)
        early = embed(first).detach().requires_grad_()
        model(inputs_embeds=early, cache=cache)
        if detaches:
            cache.detach()
        model(second, cache=cache).logits.square().sum().backward()
        assert (early.grad is None) == detaches
        assert gradients(model)


@subjects("has_memory")
def test_what_has_been_read_cannot_be_taken_back(subject):
    model = subject.make()
    _, cache = filled(subject, model)
    with pytest.raises(ValueError, match="cannot be taken out"):
        cache.crop(1)


def test_offloading_is_refused():
    with pytest.raises(ValueError, match="not offloaded"):
        LM2Cache(SUBJECT["default"].make().config).offload()


@subjects("is_bounded", "has_memory")
def test_bytes_of_the_state(subject):
    model = subject.make()
    dtype_bytes = 4 if subject.is_float32 else 2
    num_rows, window = 3, attention_window(model)
    cache = subject.new_cache(model)
    logits_of(model, random_ids(num_rows, (window + 3) * SEGMENT - 1), cache=cache)
    # Besides, two counters of eight bytes each say how far a row has come.
    assert cache.num_bytes == num_rows * (model.config.num_state_bytes(dtype_bytes) + 16)


@subjects("has_memory")
def test_a_state_keeps_nothing_alive_but_itself(subject):
    # A view into a call's tensors would count as few bytes, and hold many.
    model = subject.make()
    _, cache = filled(subject, model, num_tokens=5 * SEGMENT + 3)
    for state in cache.states:
        for name, tensor in state.tensors().items():
            if "memory" not in name and name != "bank":
                assert tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size(), name
    assert cache.num_bytes > 0


@subjects("has_memory")
def test_save_and_load(subject, tmp_path):
    model = subject.make()
    if subject.is_float32:
        assert_memory_matters(subject, model, random_ids(2, LONGEST))
    for num_tokens in (1, SEGMENT, FIRST):
        _, cache = filled(subject, model, num_tokens=num_tokens)
        cache.reset([1])
        cache.save(tmp_path / "state.safetensors")
        loaded = type(cache).load(tmp_path / "state.safetensors", config=model.config)
        assert [path.name for path in tmp_path.iterdir()] == ["state.safetensors"]
        assert loaded.num_bytes == cache.num_bytes
        assert loaded.get_seq_length() == cache.get_seq_length()
        rest = random_ids(3, LONGEST, seed=2)
        assert torch.equal(logits_of(model, rest, cache=loaded), logits_of(model, rest, cache=cache))
        assert loaded.num_tokens.tolist() == cache.num_tokens.tolist()


CONTINUE = """
import sys
import torch
from safetensors.torch import load_file, save_file
from lm2 import LM2Cache, LM2ForCausalLM

torch.set_num_threads(1)
folder = sys.argv[1]
rest = load_file(f"{folder}/rest.safetensors")["ids"]
for name in sys.argv[2:]:
    model = LM2ForCausalLM.from_pretrained(f"{folder}/{name}").eval()
    cache = LM2Cache.load(f"{folder}/{name}.state")
    with torch.no_grad():
        save_file({"logits": model(rest, cache=cache).logits}, f"{folder}/{name}.logits")
"""


def test_a_conversation_goes_on_in_another_process(tmp_path):
    from safetensors.torch import load_file, save_file

    names = ["default", "paper", "all-other", "window-all"]
    rest = random_ids(3, LONGEST, seed=2)
    save_file({"ids": rest}, tmp_path / "rest.safetensors")
    expected = {}
    for name in names:
        model = SUBJECT[name].make()
        _, cache = filled(SUBJECT[name], model)
        model.save_pretrained(tmp_path / name)
        cache.save(tmp_path / f"{name}.state")
        expected[name] = logits_of(model, rest, cache=cache)
    subprocess.run([sys.executable, "-c", CONTINUE, str(tmp_path), *names], check=True, timeout=300)
    for name in names:
        assert torch.equal(load_file(tmp_path / f"{name}.logits")["logits"], expected[name]), name


def test_a_cache_of_another_model_is_refused_with_what_differs(tmp_path):
    subject = SUBJECT["default"]
    model, other = subject.make(), subject.make(num_memory_slots=5, memory_top_k=2)
    _, cache = filled(subject, model)
    reason = r"another model: it has num_memory_slots=6 \(model: 5\), memory_top_k=None \(model: 2\)"
    with pytest.raises(ValueError, match=reason):
        other(random_ids(3, 4), cache=cache)
    cache.save(tmp_path / "state")
    with pytest.raises(ValueError, match=reason):
        LM2Cache.load(tmp_path / "state", config=other.config)
    with pytest.raises(ValueError, match=reason):
        other(random_ids(3, 4), cache=LM2Cache.load(tmp_path / "state"))


@subjects(only=("default", "rmt", "armt"))
def test_models_of_one_kind_do_not_take_states_of_another(subject, tmp_path):
    for other in (SUBJECT[name] for name in ("default", "rmt", "armt") if name != subject.name):
        model, other_model = subject.make(), other.make()
        _, cache = filled(other, other_model)
        with pytest.raises(ValueError, match="another model"):
            model(random_ids(3, 4), cache=cache)
        cache.save(tmp_path / "state")
        with pytest.raises(ValueError, match=r"is not a saved|unknown field|another model"):
            type(subject.new_cache(model)).load(tmp_path / "state", config=model.config)


@subjects(only=("rmt", "armt"))
def test_a_state_of_another_configuration_is_refused_with_what_differs(subject, tmp_path):
    model, other = subject.make(), subject.make(num_memory_tokens=2, segment_length=4)
    _, cache = filled(subject, model)
    cache.save(tmp_path / "state")
    reason = r"num_memory_tokens=3 \(model: 2\), segment_length=8 \(model: 4\)"
    with pytest.raises(ValueError, match=reason):
        other(random_ids(3, 4), cache=cache)
    with pytest.raises(ValueError, match=reason):
        type(cache).load(tmp_path / "state", config=other.config)
    # What only training looks at makes no difference.
    assert type(cache).load(tmp_path / "state", config=subject.make(bptt_segments=2).config).batch_size == 3


def test_a_file_that_is_no_sound_cache_is_refused(tmp_path):
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    subject = SUBJECT["default"]
    model = subject.make()
    with pytest.raises(ValueError, match="cannot save an empty cache"):
        subject.new_cache(model).save(tmp_path / "state")
    save_file({"x": torch.ones(1)}, tmp_path / "other")
    with pytest.raises(ValueError, match="is not a saved LM2Cache"):
        LM2Cache.load(tmp_path / "other")
    _, cache = filled(subject, model)
    cache.save(tmp_path / "state")
    with safe_open(tmp_path / "state", framework="pt") as file:
        metadata = file.metadata()
    save_file(load_file(tmp_path / "state"), tmp_path / "newer", metadata | {"format_version": "99"})
    with pytest.raises(ValueError, match="has format version 99"):
        LM2Cache.load(tmp_path / "newer")
    edited = metadata["config"].replace('"segment_length": 8', '"segment_length": 9')
    assert edited != metadata["config"]
    save_file(load_file(tmp_path / "state"), tmp_path / "edited", metadata | {"config": edited})
    with pytest.raises(ValueError, match="does not match its own fingerprint"):
        LM2Cache.load(tmp_path / "edited")


@subjects("is_float32", "has_memory")
@torch.no_grad()
def test_a_state_is_continued_by_another_copy_of_the_model(subject):
    # No part of the state hides in the model object: two copies can take turns on one conversation.
    one, two = subject.make(), subject.make()
    ids = random_ids(2, LONGEST)
    cache, pieces = subject.new_cache(one), []
    for index, piece in enumerate(ids.split(5, dim=1)):
        pieces.append(logits_of((one, two)[index % 2], piece, cache=cache))
    assert_close(torch.cat(pieces, dim=1), stream(one, ids, [5], subject.new_cache(one)))
