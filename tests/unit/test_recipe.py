"""Recipes: read strictly, refused with the key's name, changed by overrides, written and read again."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from toy_recipe import TOY, write_toy
from transformers import AutoModelForCausalLM, LlamaConfig

from lm2 import ARMTConfig, LM2Config, RMTConfig
from lm2.train.checking import dump_yaml, parse_yaml
from lm2.train.config import Recipe, differing_keys, dump_recipe, load_recipe
from lm2.train.sections import (
    DataRecipe,
    EvaluationRecipe,
    LossRecipe,
    ModelRecipe,
    OptimizerRecipe,
    ScheduleRecipe,
    SegmentsRecipe,
    StageEnd,
    StageRecipe,
    TrainRecipe,
)

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    return write_toy(tmp_path)


def _refusal(path: Path, *overrides: str) -> str:
    """The message, which begins with the file's name, without it."""
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))}: ") as caught:
        load_recipe(path, overrides)
    return str(caught.value).removeprefix(f"{path}: ")


# --- reading ---


def test_values_have_the_types_of_their_fields(toy: Path) -> None:
    recipe = load_recipe(toy)
    assert recipe.optimizer.learning_rate == 1e-3
    assert recipe.optimizer.betas == (0.9, 0.95)
    assert recipe.curriculum[2].tasks == {1: 2.0, 4: 1.0}
    assert recipe.curriculum[2].segments == SegmentsRecipe(3, "uniform")
    assert recipe.curriculum[1].until == StageEnd(accuracy=0.9, min_steps=2, max_steps=5)
    assert recipe.evaluation.lengths == ("0k", "1k")
    assert recipe.train.loss == LossRecipe("answers")
    whole = load_recipe(toy, ["optimizer.learning_rate=1"]).optimizer.learning_rate
    assert (whole, type(whole)) == (1.0, float)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_that_ship_are_read(path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe.name == path.stem


def test_there_are_recipes() -> None:
    names = {"tiny", "ten", "gpu", "base", "paper"}
    assert names | {f"{name}-llama" for name in names} <= {path.stem for path in RECIPES}


CONFIGS = {"lm2": LM2Config, "llama": LlamaConfig, "rmt": RMTConfig, "armt": ARMTConfig}


@pytest.mark.parametrize("name", ["tiny", "ten", "gpu", "base", "paper"])
def test_rivals_train_on_one_stream(name: str) -> None:
    """Data, curriculum, optimizer, schedule and loop of all rivals are the LM2's; what they are asked is part."""
    by_name = {path.stem: load_recipe(path) for path in RECIPES}
    lm2 = by_name[name]
    rivals = [recipe for stem, recipe in by_name.items() if stem.startswith(f"{name}-")]
    assert len(rivals) >= 1
    for rival in rivals:
        assert replace(rival, name=lm2.name, model=lm2.model, evaluation=lm2.evaluation) == lm2
        assert rival.evaluation.tasks == lm2.evaluation.tasks
        assert set(rival.evaluation.lengths) <= set(lm2.evaluation.lengths)
        for length in rival.evaluation.lengths:
            assert rival.evaluation.num_samples(length) <= lm2.evaluation.num_samples(length)
    assert lm2.data.segment_length_tokens == lm2.model.config["segment_length"]


@pytest.mark.parametrize("name", ["tiny", "ten", "gpu", "base", "paper"])
def test_rivals_have_as_many_parameters(name: str) -> None:
    by_name = {path.stem: load_recipe(path).model for path in RECIPES}
    lm2, llama = by_name[name], by_name[f"{name}-llama"]
    rivals = [recipe for stem, recipe in by_name.items() if stem in (f"{name}-llama", f"{name}-rmt", f"{name}-armt")]
    with torch.device("meta"):
        models = [
            AutoModelForCausalLM.from_config(CONFIGS[recipe.architecture](**recipe.config)) for recipe in (lm2, *rivals)
        ]
    own, *others = (model.num_parameters() for model in models)
    assert all(0.998 <= count / own <= 1.002 for count in others)
    # A Llama's positions are as many as it is asked to read.
    free = ("intermediate_size", "max_position_embeddings")
    assert {key: value for key, value in llama.config.items() if key not in free}.items() <= lm2.config.items()


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("1E5", 1e5),
        ("-2.5e+3", -2500.0),
        (".5", 0.5),
        ("3.", 3.0),
        ("7", 7),
        ("-7", -7),
        ("010", "010"),
        ("1:30", "1:30"),
        ("on", "on"),
        ("no", "no"),
        ("true", True),
        ("null", None),
        ("", None),
        ("2026-01-01", "2026-01-01"),
        ("e3", "e3"),
        ("0x10", "0x10"),
        ("{on: answers}", {"on": "answers"}),
        ("[1, 1e2]", [1, 100.0]),
    ],
)
def test_yaml_scalars(text: str, value: Any) -> None:
    read = parse_yaml(text)
    assert (read, type(read)) == (value, type(value))


_SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
    | st.sampled_from(["1e3", "1e-3", "on", "no", "~", "010", "0o7", "1_000", "1:30", "2026-01-01", "=", "<<", ".5"])
)


# PyYAML writes the first as it is, and reads a line's end.
@example("a\x85b")
@example({"é": "\u2028"})
@settings(max_examples=50, deadline=None)
@given(
    st.recursive(
        _SCALARS,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text() | st.integers(), inner, max_size=3),
        max_leaves=6,
    )
)
def test_yaml_round_trip(value: Any) -> None:
    read = parse_yaml(dump_yaml(value))
    assert read == value
    assert repr(read) == repr(value)


# --- what is refused ---


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("batch_size: 12", "batchsize: 12"), "train.batchsize is not a key; did you mean 'batch_size'?"),
        (("  checkpoint_every_steps: 4\n", ""), "train.checkpoint_every_steps is missing"),
        (("seed: 3", "sead: 3"), "sead is not a key; did you mean 'seed'?"),
        (("accuracy: 0.9", "acuracy: 0.9"), "curriculum.1.until.acuracy is not a key; did you mean 'accuracy'?"),
        (("seed: 3", "seed: 3\nseed: 4"), "key 'seed' comes twice"),
        (("seed: 3", "seed: [3"), "not valid YAML"),
        (("schedule: {name", "schedule: {*base, name"), "not valid YAML"),
    ],
)
def test_files_that_are_refused(tmp_path: Path, change: tuple[str, str], message: str) -> None:
    assert TOY.count(change[0]) == 1
    assert message in _refusal(write_toy(tmp_path, TOY.replace(*change)))


def test_other_things_that_are_refused(tmp_path: Path) -> None:
    assert "must be a mapping" in _refusal(write_toy(tmp_path, ""))
    assert "the recipe is [1, 2]" in _refusal(write_toy(tmp_path, "[1, 2]"))
    binary = tmp_path / "toy.yaml"
    binary.write_bytes(b"\xff\xfe\x00")
    assert "not a text file" in _refusal(binary)
    with pytest.raises(FileNotFoundError):
        load_recipe(tmp_path / "absent.yaml")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        # Types.
        ("train.batch_size=eight", "train.batch_size is 'eight', but must be a whole number"),
        ("train.batch_size=8.0", "train.batch_size is 8.0, but must be a whole number"),
        ("train.batch_size=true", "train.batch_size is True, but must be a whole number"),
        ("train.batch_size=null", "train.batch_size is nothing, but must be a whole number"),
        ("train.compile=1", "train.compile is 1, but must be true or false"),
        ("train.clip_norm=true", "train.clip_norm is True, but must be a number"),
        ("optimizer.learning_rate=.inf", "optimizer.learning_rate is inf, but must be a finite number"),
        ("optimizer.betas=[0.9]", "optimizer.betas is [0.9], but must be a list of 2"),
        ("optimizer.betas=0.9", "optimizer.betas is 0.9, but must be a list"),
        ("train.precision=fp16", "train.precision is 'fp16', but must be 'float32' or 'bfloat16'"),
        ("train.loss=answers", "train.loss is 'answers', but must be a mapping"),
        ("name=2026", "name is 2026, but must be a text"),
        ("curriculum.2.tasks={one: 1.0}", "a key of curriculum.2.tasks is 'one', but must be a whole number"),
        ("curriculum.2.tasks={1: lots}", "curriculum.2.tasks.1 is 'lots', but must be a number"),
        ("curriculum=short", "curriculum is 'short', but must be a list"),
        # Ranges.
        ("seed=-1", "seed is -1, but must be at least 0"),
        ("name=../x", "name is '../x', but must be a file name"),
        ("train.keep_last=0", "train.keep_last is 0, but must be at least 1"),
        ("train.clip_norm=0", "train.clip_norm is 0.0, but must be more than 0"),
        ("train.batch_size=13", "train.batch_size is 13, but must be a multiple of micro_batch_size times processes"),
        ("optimizer.learning_rate=0", "optimizer.learning_rate is 0.0, but must be more than 0"),
        ("optimizer.weight_decay=-0.1", "optimizer.weight_decay is -0.1, but must be at least 0"),
        ("optimizer.betas=[0.9, 1.0]", "optimizer.betas is [0.9, 1.0], but each must be from 0 to less than 1"),
        ("schedule.final_fraction=1.5", "schedule.final_fraction is 1.5, but must be from 0.0 to 1.0"),
        ("schedule.warmup_steps=21", "schedule.total_steps is 20, but must be at least the steps of warm-up and decay"),
        ("schedule.total_steps=7", "schedule.total_steps is 7, but must be more than the stages before the last"),
        (
            "schedule={name: wsd, total_tokens: 6528, decay_tokens: 100}",
            "schedule.total_tokens is 6528, but must be more than the stages before the last can take, which is 6528",
        ),
        (
            "schedule={name: wsd, total_tokens: 10000, decay_tokens: 10001}",
            "schedule.total_tokens is 10000, but must be at least the tokens of the decay",
        ),
        ("schedule={name: wsd, total_tokens: 10000, decay_tokens: 0}", "schedule.decay_tokens is 0, but must be at"),
        ("curriculum.2.tasks={21: 1.0}", "curriculum.2.tasks has 21, but tasks are 1 to 20"),
        ("curriculum.2.tasks={1: 0}", "curriculum.2.tasks.1 is 0.0, but must be more than 0"),
        ("curriculum.2.tasks={}", "curriculum.2.tasks is empty"),
        ("curriculum.2.segments.max=0", "curriculum.2.segments.max is 0, but must be at least 1"),
        ("curriculum.2.name=short", "curriculum.2.name is 'short', as another stage's"),
        ("curriculum.1.until.accuracy=95", "curriculum.1.until.accuracy is 95.0, but must be from 0.0 to 1.0"),
        ("curriculum.1.until.min_steps=6", "curriculum.1.until.min_steps is 6, but must be at most max_steps"),
        ("curriculum=[]", "curriculum is empty"),
        ("data.margin_tokens=96", "data.margin_tokens is 96, but must be less than segment_length_tokens"),
        ("data.primer_vocab_size=3", "data.primer_vocab_size is 3, but must be at least 4"),
        ("data={segment_length_tokens: 96, primer_vocab_size: 50}", "data.primer_vocab_size is 50, but has no effect"),
        ("data.primer_length_tokens=7", "data.primer_length_tokens is 7, but must be at least 8"),
        ("evaluation.tasks=[1, 1]", "evaluation.tasks is [1, 1], but must name one or more of 1 to 20, each once"),
        ("evaluation.tasks=[]", "evaluation.tasks is [], but must name"),
        ("evaluation.lengths=[3]", "evaluation.lengths.0 is 3, but must be a text"),
        ("evaluation.lengths=[3x]", "evaluation.lengths: length is '3x'"),
        # Missing together with others.
        ("optimizer.name=muon", "optimizer.momentum is None, but must be from 0 to less than 1 with muon"),
        ("schedule.name=wsd", "schedule.decay_steps is missing: wsd needs it"),
        ("schedule={name: wsd, total_tokens: 10000}", "schedule.decay_tokens is missing: wsd needs it"),
        ("schedule={name: wsd}", "schedule.total_steps is None and total_tokens None, but a run ends by exactly one"),
        ("train.loss.on=weighted", "train.loss.answer_weight is None and on 'weighted'"),
        ("train.validate_every_steps=null", "curriculum.1.until.accuracy needs validation"),
        ("curriculum.1.until=null", "curriculum.1.until is missing"),
        ("curriculum.1.until.max_steps=null", "curriculum.1.until.max_steps is missing"),
        ("curriculum.1.until={}", "curriculum.1.until.steps is None and accuracy None"),
        ("curriculum.2.segments=null", "curriculum.2.segments and lengths_tokens: give exactly one"),
        ("data.segment_length_tokens=null", "data.segment_length_tokens is missing: a stage of the curriculum has"),
        ("data.primer_length_tokens=null", "data.primer_length_tokens is missing: a stage of the curriculum has"),
        ("data.background=null", "data.background is missing"),
        # Without effect together with others.
        ("optimizer.momentum=0.9", "optimizer.momentum is 0.9, but has no effect with adamw"),
        ("schedule.decay_steps=3", "schedule.decay_steps is 3, but has no effect with cosine"),
        ("schedule.total_tokens=10000", "schedule.total_steps is 20 and total_tokens 10000, but a run ends by exactly"),
        ("schedule={name: cosine, total_tokens: 10000}", "schedule.total_tokens is 10000, but cosine counts steps"),
        (
            "schedule={name: wsd, total_tokens: 10000, decay_steps: 3}",
            "schedule.decay_steps is 3, but has no effect with total_tokens",
        ),
        (
            "schedule={name: wsd, total_steps: 20, decay_tokens: 3}",
            "schedule.decay_tokens is 3, but has no effect with total_steps",
        ),
        ("evaluation.samples_at={4k: 3}", "evaluation.samples_at has 4k, but lengths has 0k, 1k only"),
        ("evaluation.samples_at={1k: 0}", "evaluation.samples_at.1k is 0, but must be at least 1"),
        ("evaluation={tasks: [1], lengths: [0k], allow_repeats: true}", "evaluation.allow_repeats has no effect at 0k"),
        ("train.loss.answer_weight=2", "train.loss.answer_weight is 2.0 and on 'answers'"),
        ("train.processes=2", "train.processes is 2, but must be 1 with parallel 'single'"),
        ("optimizer.adamw_learning_rate=1e-3", "optimizer.adamw_learning_rate is 0.001, but has no effect with adamw"),
        ("model.embedding_std=0", "model.embedding_std is 0.0, but must be more than 0"),
        (
            "model={architecture: lm2, config: {}, init: x, embedding_std: 1}",
            "model.embedding_std is 1.0, but has no effect",
        ),
        ("train.reshard_after_forward=false", "train.reshard_after_forward is false, but has no effect"),
        ("curriculum.0.tasks={1: 1.0}", "curriculum.0.tasks has no effect with primer_every 1"),
        ("curriculum.0.segments={max: 2}", "curriculum.0.segments has no effect with primer_every 1"),
        ("curriculum.0.questions=end", "curriculum.0.questions has no effect with primer_every 1"),
        ("curriculum.0.until.min_steps=1", "curriculum.0.until.min_steps and max_steps have no effect"),
        ("curriculum.1.until.steps=9", "curriculum.1.until.steps is 9 and accuracy 0.9, but a stage ends by exactly"),
        ("curriculum.2.until={steps: 3}", "curriculum.2.until has no effect in the last stage"),
        ("curriculum.2.lengths_tokens=[300]", "curriculum.2.segments and lengths_tokens: give exactly one"),
        # Overrides themselves.
        ("train.batch_size", "--set is 'train.batch_size', but must be KEY=VALUE"),
        ("=3", "--set is '=3', but must be KEY=VALUE"),
        ("train.batch_sise=8", "train.batch_sise is not a key; did you mean 'batch_size'?"),
        ("trian.batch_size=8", "trian is not a key; did you mean 'train'?"),
        ("curriculum.9.name=x", "--set curriculum.9.name=x: '9' is no entry of a list of 3"),
        ("curriculum.short.name=x", "'short' is no entry of a list of 3"),
        ("seed.x=1", "--set seed.x=1: nothing is below 3"),
        ("seed=[1", "--set seed=[1: not valid YAML"),
    ],
)
def test_values_that_are_refused(toy: Path, override: str, message: str) -> None:
    assert message in _refusal(toy, override)


def test_combinations_that_are_refused(toy: Path) -> None:
    muon = ("optimizer.name=muon", "optimizer.momentum=0.95", "train.parallel=fsdp")
    assert "Muon updates shards otherwise" in _refusal(toy, *muon)
    assert "max_questions has no effect with questions 'end'" in _refusal(
        toy, "curriculum.2.questions=end", "curriculum.2.max_questions=2"
    )
    by_steps = ("curriculum.1.until={steps: 2}", "train.validate_every_steps=null")
    assert "keep_best is true, but nothing is validated" in _refusal(toy, *by_steps, "train.keep_best=true")
    no_segments = (
        "curriculum.1={name: b, primer_every: 1, until: {steps: 2}}",
        "curriculum.2={name: c, tasks: {1: 1}, lengths_tokens: [0]}",
    )
    assert "data.segment_length_tokens is 96, but no stage has segments" in _refusal(toy, *no_segments)
    assert "margin_tokens is 5, but has no effect without segment_length_tokens" in _refusal(
        toy, *no_segments, "data={margin_tokens: 5, primer_length_tokens: 32}"
    )
    without_primer = ("curriculum.0={name: a, tasks: {1: 1}, segments: {max: 1}, until: {steps: 2}}",)
    assert "data.primer_length_tokens is 32, but no stage has primer_every" in _refusal(
        toy, *without_primer, "curriculum.1.primer_every=null"
    )
    facts_only = "curriculum.1={name: short, tasks: {1: 1.0}, lengths_tokens: [0, 96], until: {steps: 3}}"
    by_tokens = "schedule={name: wsd, total_tokens: 100000, decay_tokens: 100}"
    assert "'short' has rows of facts only" in _refusal(toy, facts_only, by_tokens)


# --- overrides ---


def test_overrides_are_yaml_and_the_last_one_counts(toy: Path) -> None:
    recipe = load_recipe(
        toy,
        [
            "train.batch_size=4",
            "train.batch_size=8",
            "optimizer.learning_rate=5e-4",
            "train.loss={on: weighted, answer_weight: 4}",
            "curriculum.0.until.steps=1",
            "curriculum.2.tasks.7=0.5",
            "model.config.hidden_size=32",
            "model.config.note=a=b",
        ],
    )
    assert (recipe.train.batch_size, recipe.optimizer.learning_rate) == (8, 5e-4)
    assert recipe.train.loss == LossRecipe("weighted", 4.0)
    assert recipe.curriculum[0].until == StageEnd(steps=1)
    assert recipe.curriculum[2].tasks == {1: 2.0, 4: 1.0, 7: 0.5}
    assert (recipe.model.config["hidden_size"], recipe.model.config["note"]) == (32, "a=b")
    assert load_recipe(toy) != recipe


# --- writing ---

_names = st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9._-]{0,8}\Z")
_positive = st.floats(1e-12, 1e6)
_counts = st.integers(1, 10**6)
_ends = st.builds(StageEnd, steps=_counts) | st.builds(
    StageEnd, accuracy=st.floats(0, 1), min_steps=st.integers(0, 9), max_steps=st.integers(9, 99)
)
_stages = st.builds(
    StageRecipe,
    name=st.text(),
    tasks=st.dictionaries(st.integers(1, 20), _positive, min_size=1),
    segments=st.builds(SegmentsRecipe, max=_counts, draw=st.sampled_from(["uniform", "max"])),
    max_questions=st.none() | _counts,
    primer_every=st.integers(2, 9),
)


@st.composite
def _recipes(draw: st.DrawFn) -> Recipe:
    stages = draw(st.lists(_stages, min_size=1, max_size=4, unique_by=lambda stage: stage.name))
    stages = [replace(stage, until=draw(_ends)) for stage in stages[:-1]] + stages[-1:]
    longest = sum(stage.until.longest_steps for stage in stages if stage.until)
    micro, processes = draw(st.integers(1, 8)), draw(st.integers(1, 4))
    return Recipe(
        name=draw(_names),
        seed=draw(st.integers(0, 2**63)),
        model=ModelRecipe(draw(_names), draw(st.dictionaries(st.text(), _SCALARS | st.lists(_SCALARS)))),
        data=DataRecipe(draw(_names), segment_length_tokens=draw(_counts), primer_length_tokens=draw(_counts) + 7),
        curriculum=tuple(stages),
        optimizer=OptimizerRecipe("adamw", draw(_positive), weight_decay=draw(st.floats(0, 1))),
        schedule=ScheduleRecipe("cosine", longest + draw(_counts)),
        train=TrainRecipe(
            batch_size=micro * processes * draw(st.integers(1, 9)),
            micro_batch_size=micro,
            validate_every_steps=draw(_counts),
            validation_samples=draw(_counts),
            checkpoint_every_steps=draw(_counts),
            clip_norm=draw(st.none() | _positive),
            loss=draw(st.builds(LossRecipe) | st.builds(LossRecipe, st.just("weighted"), _positive)),
            parallel="ddp",
            processes=processes,
        ),
        evaluation=EvaluationRecipe(tuple(draw(st.sets(st.integers(1, 20), min_size=1))), ("0k", "1M")),
    )


@settings(max_examples=15, deadline=None)
@given(recipe=_recipes())
def test_dumped_recipes_load_to_equal_ones(tmp_path_factory: pytest.TempPathFactory, recipe: Recipe) -> None:
    path = tmp_path_factory.mktemp("recipes") / "dumped.yaml"
    path.write_text(dump_recipe(recipe), encoding="utf-8")
    loaded = load_recipe(path)
    assert loaded == recipe
    assert differing_keys(loaded, recipe) == []


def test_differing_keys_name_both_values(toy: Path) -> None:
    a = load_recipe(toy)
    b = load_recipe(
        toy,
        ["train.batch_size=16", "model.config.extra=1", "curriculum.1.until.accuracy=0.8", "evaluation.lengths=[0k]"],
    )
    assert differing_keys(a, a) == []
    assert differing_keys(a, b) == [
        "curriculum.1.until.accuracy: 0.9 != 0.8",
        "train.batch_size: 12 != 16",
        "evaluation.lengths: ['0k', '1k'] != ['0k']",
        "model.config.extra: (absent) != 1",
    ]
