"""Associative recall: answers are the latest values, rows are as the task says, a recipe can have stages of it."""

from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare
from toy_recipe import toy_recipe, write_toy

from lm2.data.recall import (
    CELL_TOKENS,
    MIN_ROW_TOKENS,
    NUM_NOISE_TOKENS,
    RecallRow,
    RecallTask,
    RecallVocabulary,
    draw_recall_vocabulary,
    recall_row,
)
from lm2.train.batches import BatchSource
from lm2.train.checking import dump_yaml
from lm2.train.config import load_recipe
from lm2.train.curriculum import Progress

TASK = RecallTask(num_keys=8, num_values=5, keys_per_row=3, noise=0.4)
VOCABULARY = draw_recall_vocabulary(Random(0), range(100, 200), TASK)
STAGE = {"name": "long", "recall": {"num_keys": 8, "num_values": 5, "keys_per_row": 3, "noise": 0.4}}


def replay(row: RecallRow, vocabulary: RecallVocabulary) -> list[tuple[int, int]]:
    """The slow twin: reads the row token by token; the places of answers, and how old what they repeat is."""
    told: dict[int, tuple[int, int]] = {}
    found = []
    ids = row.input_ids.tolist()
    place = 0
    while place < len(ids):
        if ids[place] == vocabulary.ask:
            key, value = ids[place + 1], ids[place + 2]
            latest, told_at = told[key]
            assert value == latest
            found.append((place + 2, place + 2 - told_at))
            place += 3
        elif ids[place] in vocabulary.keys:
            assert ids[place + 1] in vocabulary.values
            told[ids[place]] = ids[place + 1], place + 1
            place += 2
        else:
            assert ids[place] in vocabulary.noise
            place += 1
    return found


@given(seed=st.integers(0, 2**32), length=st.integers(MIN_ROW_TOKENS, 300), noise=st.floats(0, 0.99))
def test_answers_are_the_latest_values(seed: int, length: int, noise: float) -> None:
    task = RecallTask(8, 5, 3, noise)
    row = recall_row(Random(seed), length, task, VOCABULARY)
    assert row.input_ids.dtype == np.int64
    assert len(row.input_ids) == length
    found = replay(row, VOCABULARY)
    assert found == list(zip(row.answers.tolist(), row.ages.tolist(), strict=True))
    # The last cell asks.
    assert found[-1][0] == length // CELL_TOKENS * CELL_TOKENS - 1


def test_rows_are_drawn_as_the_task_says() -> None:
    kinds: Counter[str] = Counter()
    asked: Counter[int] = Counter()
    for seed in range(200):
        row = recall_row(Random(seed), 300, TASK, VOCABULARY)
        cells = row.input_ids.reshape(-1, CELL_TOKENS)[10:-1]
        told = {key for key in row.input_ids.tolist() if key in VOCABULARY.keys}
        assert len(told) == 3
        kinds.update(
            "question" if first == VOCABULARY.ask else "fact" if first in VOCABULARY.keys else "noise"
            for first in cells[:, 0].tolist()
        )
        asked.update(row.input_ids[row.answers - 1].tolist())
    total = sum(kinds.values())
    expected = [0.4 * total, 0.3 * total, 0.3 * total]
    assert chisquare([kinds["noise"], kinds["fact"], kinds["question"]], expected).pvalue > 1e-3
    assert set(asked) == set(VOCABULARY.keys)
    assert row.ages.max() > 2 * CELL_TOKENS


def test_a_key_is_told_again_with_another_value() -> None:
    task = RecallTask(num_keys=1, num_values=5, keys_per_row=1, noise=0.0)
    row = recall_row(Random(1), 300, task, VOCABULARY)
    assert len(set(row.input_ids[row.answers].tolist())) == 5


def test_tokens_of_a_vocabulary_are_different() -> None:
    used = [VOCABULARY.ask, *VOCABULARY.keys, *VOCABULARY.values, *VOCABULARY.noise]
    assert len(set(used)) == len(used) == 1 + 8 + 5 + NUM_NOISE_TOKENS
    assert VOCABULARY.content == set(used) - set(VOCABULARY.noise)
    assert draw_recall_vocabulary(Random(1), range(100, 200), TASK) != VOCABULARY
    with pytest.raises(ValueError, match="recall needs 46 tokens, but the tokenizer has 45"):
        draw_recall_vocabulary(Random(0), range(45), TASK)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((0, 5, 1, 0.5), "num_keys is 0"),
        ((8, 0, 1, 0.5), "num_values is 0"),
        ((8, 5, 0, 0.5), "keys_per_row is 0"),
        ((8, 5, 9, 0.5), "keys_per_row is 9, but must be at most num_keys, which is 8"),
        ((8, 5, 3, 1.0), "noise is 1.0, but must be from 0 to less than 1"),
        ((8, 5, 3, -0.1), "noise is -0.1"),
    ],
)
def test_tasks_that_are_refused(values: tuple[int, int, int, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RecallTask(*values)


# --- in a recipe ---


def source_of(tmp_path: Path, **changes: Any) -> BatchSource:
    stage = {**STAGE, "segments": {"max": 2}}
    return BatchSource(toy_recipe(tmp_path, curriculum__2=stage, **changes))


def test_batches_of_recall(tmp_path: Path) -> None:
    source = source_of(tmp_path)
    vocabulary = source.recall_vocabulary(2)
    batches = source.micro_batches(Progress(2, 0, 9))
    assert [batch.first_index for batch in batches] == list(range(9 * 12, 10 * 12, 2))
    rows = set()
    for batch in batches:
        assert (batch.kind, batch.tasks) == ("recall", ())
        assert batch.attention_mask.all()
        for row, answers in enumerate(batch.answers):
            ids = batch.input_ids[row]
            rows.add(tuple(ids.tolist()))
            replayed = replay(RecallRow(ids.numpy(), np.empty(0), np.empty(0)), vocabulary)
            assert [(place, place + 1) for place, _ in replayed] == list(answers)
            is_answer = torch.zeros_like(ids, dtype=torch.bool)
            is_answer[[place for place, _ in replayed]] = True
            assert torch.equal(batch.labels[row], torch.where(is_answer, ids, -100))
    assert len(rows) == 12
    again = source_of(tmp_path).micro_batches(Progress(2, 0, 9))
    assert all(torch.equal(one.input_ids, other.input_ids) for one, other in zip(batches, again, strict=True))
    others = source_of(tmp_path, seed=4).micro_batches(Progress(2, 0, 9))
    assert not any(torch.equal(one.input_ids, other.input_ids) for one, other in zip(batches, others, strict=True))


def test_validation_of_recall_has_rows_of_its_own(tmp_path: Path) -> None:
    source = source_of(tmp_path)
    steps = (Progress(2, step, step) for step in range(8))
    batches = [batch for progress in steps for batch in source.micro_batches(progress)]
    trained = {tuple(row.tolist()) for batch in batches for row in batch.input_ids}
    asked = [row for batch in source.validation(Progress(2, 0, 9), 6) for row in batch.input_ids]
    assert sorted(len(row) for row in asked) == [96] * 3 + [192] * 3
    assert not trained & {tuple(row.tolist()) for row in asked}


def test_the_primer_has_what_recall_needs(tmp_path: Path) -> None:
    source = source_of(tmp_path, data__primer_vocab_size=4)
    seen = {
        token
        for step in range(40)
        for batch in source.micro_batches(Progress(0, step, step))
        for token in batch.input_ids.flatten().tolist()
    }
    assert seen >= source.recall_vocabulary(2).content


def test_recall_needs_no_background(tmp_path: Path) -> None:
    only = {
        "data__background": None,
        "curriculum__1": {**STAGE, "name": "short", "lengths_tokens": [30], "until": {"steps": 2}},
        "data__primer_length_tokens": 32,
    }
    source = source_of(tmp_path, **only)
    assert source.micro_batches(Progress(1, 0, 2))[0].input_ids.shape == (2, 30)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tasks": {1: 1.0}}, "tasks has no effect with recall"),
        ({"questions": "end"}, "questions has no effect with recall"),
        ({"max_questions": 2}, "max_questions has no effect with recall"),
        ({"shortened": 0.5}, "shortened has no effect with recall"),
        ({"primer_every": 1}, "recall has no effect with primer_every 1"),
        ({"segments": None, "lengths_tokens": [5]}, "lengths_tokens is [5], but recall needs 6 or more each"),
        ({"segments": None}, "segments and lengths_tokens: give exactly one"),
        ({"recall": {"num_keys": 8}}, "recall.num_values is missing"),
        ({"recall": {**STAGE["recall"], "noise": 2}}, "recall.noise is 2.0"),  # type: ignore[dict-item]
    ],
)
def test_stages_that_are_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    stage = {**STAGE, "segments": {"max": 2}, **change}
    with pytest.raises(ValueError) as refused:  # noqa: PT011
        load_recipe(write_toy(tmp_path), [f"curriculum.2={dump_yaml(stage)}"])
    assert message in str(refused.value)


def test_segments_that_no_row_fits_are_refused(tmp_path: Path) -> None:
    stages = [
        f"curriculum.1={dump_yaml({**STAGE, 'name': 'short', 'segments': {'max': 1}, 'until': {'steps': 2}})}",
        f"curriculum.2={dump_yaml({**STAGE, 'segments': {'max': 2}})}",
    ]
    with pytest.raises(
        ValueError, match=r"data.segment_length_tokens is 9 and margin_tokens 4, but recall \(curriculum.1"
    ):
        load_recipe(write_toy(tmp_path), [*stages, "data.segment_length_tokens=9", "data.margin_tokens=4"])
