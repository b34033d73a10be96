"""Batches of a run: a pure function of recipe and progress, whatever the number of processes.

The rows of an optimizer step are numbered over the whole run. All rows of a step have about one length, drawn once per
step (as `vary_n_segments` in RMT's training), so that little is padding. Micro-batch j of a step is rows j * m to
(j + 1) * m - 1; process r of W takes micro-batches r, r + W and so on. So the union over processes is the same for any
W.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lm2.data.encoding import TextEncoder
from lm2.data.facts import open_facts
from lm2.data.noise import TokenizedBackground
from lm2.data.recall import RecallVocabulary, draw_recall_vocabulary, recall_row
from lm2.data.stage import Length, Stage, segment_lengths
from lm2.data.stream import IGNORED_LABEL, BabilongStream
from lm2.data.text import open_background
from lm2.data.tokenizer import load_tokenizer
from lm2.train.config import Recipe
from lm2.train.curriculum import Progress
from lm2.train.primer import copying_row, draw_vocabulary
from lm2.train.sections import DataRecipe, LossRecipe, StageRecipe, check_shares

# Enough to meet every name, place and object of a task.
_CONTENT_STORIES = 64

Spans = tuple[tuple[int, int], ...]
Kind = Literal["task", "recall", "primer"]


@dataclass(frozen=True, eq=False)
class Batch:
    """Rows for one forward pass, padded on the right.

    Attributes:
        input_ids: int64 [B, T].
        labels: int64 [B, T], not shifted, -100 where nothing is learned.
        attention_mask: int64 [B, T], 0 at padding.
        weights: float32 [B, T], how much each label counts; None for equally.
        first_index: Number of the first row, in the whole run or in the validation.
        kind: "task", "recall" or "primer".
        tasks: bAbI task of each row; empty for recall and primer.
        answers: Of each row, where its answers are: tokens `begin` to `end` - 1. Of primer, each token is one.
        seed: In words, how to make the batch again.
    """

    input_ids: Tensor
    labels: Tensor
    attention_mask: Tensor
    weights: Tensor | None
    first_index: int
    kind: Kind
    tasks: tuple[int, ...]
    answers: tuple[Spans, ...]
    seed: str

    def to(self, device: torch.device | str) -> "Batch":
        """The batch with its tensors on a device."""
        return replace(
            self,
            input_ids=self.input_ids.to(device),
            labels=self.labels.to(device),
            attention_mask=self.attention_mask.to(device),
            weights=None if self.weights is None else self.weights.to(device),
        )


@dataclass(frozen=True)
class _Row:
    input_ids: NDArray[np.int64]
    answers: Spans
    task: int | None


class BatchSource:
    """Makes the batches of one process.

    Attributes:
        vocab_size: Entries of the tokenizer; the model must have at least as many.
    """

    def __init__(self, recipe: Recipe, rank: int = 0, world_size: int = 1) -> None:
        """Opens the data and tries every task at every length of every stage, so that what cannot work fails here.

        Args:
            recipe: The run's.
            rank: This process among those that train together.
            world_size: How many there are.

        Raises:
            ValueError: data that the recipe's stages cannot be made of, or a batch that processes cannot share.
            OSError: missing or unreadable files.
        """
        if not 0 <= rank < world_size:
            raise ValueError(f"rank is {rank} and world_size {world_size}, but rank must be 0 to world_size - 1")
        check_shares(recipe.train.batch_size, recipe.train.micro_batch_size, world_size)
        self._recipe, self._rank, self._world_size = recipe, rank, world_size
        tokenizer = load_tokenizer(recipe.data.tokenizer)
        self.vocab_size: int = len(tokenizer)
        self._padding = next(
            token for token in (tokenizer.pad_token_id, tokenizer.eos_token_id, 0) if token is not None
        )
        encoder = TextEncoder(tokenizer, recipe.data.tokenizer)
        splits = ("train",) if recipe.train.validate_every_steps is None else ("train", "test")
        self._streams = {
            (split, number, length): stream
            for split in splits
            for (number, length), stream in _open_streams(recipe, encoder, split).items()
        }
        words = sorted(set(range(self.vocab_size)) - set(tokenizer.added_tokens_decoder))
        self._recall = {
            number: draw_recall_vocabulary(Random(f"recall vocabulary {recipe.seed}"), words, stage.recall)
            for number, stage in enumerate(recipe.curriculum)
            if stage.recall is not None
        }
        self._primer_tokens: tuple[int, ...] = ()
        if recipe.data.primer_length_tokens is not None:
            self._primer_tokens = draw_vocabulary(
                Random(f"primer vocabulary {recipe.seed}"),
                words,
                recipe.data.primer_vocab_size,
                always=sorted(self._content_tokens()),
            )

    def micro_batches(self, progress: Progress) -> list[Batch]:
        """What this process reads in the step after `progress`, a batch for each forward pass."""
        recipe, stage = self._recipe, self._recipe.curriculum[progress.stage]
        first = progress.step * recipe.train.batch_size
        length = None
        if not _is_primer(stage, progress.stage_step):
            lengths = _lengths(stage, recipe.data)
            length = lengths[int(Random(f"length {recipe.seed} {progress.step}").random() * len(lengths))]
        stride = recipe.train.micro_batch_size
        starts = range(first + self._rank * stride, first + recipe.train.batch_size, self._world_size * stride)
        return [self._batch("train", progress.stage, length, range(start, start + stride)) for start in starts]

    def validation(self, progress: Progress, samples: int) -> list[Batch]:
        """This process's share of the samples that the stage of `progress` is validated on, the same every time.

        All lengths of the stage have equally many, give or take one; the longest come first. Every process gets equally
        many batches, as all must go through a sharded model together: some may get one that asks nothing.

        Raises:
            ValueError: the recipe has no validation.
        """
        if self._recipe.train.validate_every_steps is None:
            raise ValueError("train.validate_every_steps is missing, so there is nothing to validate on")
        stage = self._recipe.curriculum[progress.stage]
        lengths: Sequence[int | None] = (None,) if stage.primer_every == 1 else _lengths(stage, self._recipe.data)[::-1]
        batches, stride = [], self._recipe.train.micro_batch_size * len(lengths)
        for place, length in enumerate(lengths):
            for start in range(place, samples, stride):
                indices = range(start, min(start + stride, samples), len(lengths))
                batches.append(self._batch("test", progress.stage, length, indices))
        batches += [_asking_nothing(batches[0])] * (-len(batches) % self._world_size)
        return batches[self._rank :: self._world_size]

    def recall_vocabulary(self, stage: int) -> RecallVocabulary:
        """What tokens stand for in a stage of recall, by its number."""
        return self._recall[stage]

    def _content_tokens(self) -> set[int]:
        """Of all tasks of all stages."""
        firsts = {number: stream for (split, number, _), stream in self._streams.items() if split == "train"}
        told = (stream.content_tokens(_CONTENT_STORIES) for stream in firsts.values())
        return set().union(*told, *(vocabulary.content for vocabulary in self._recall.values()))

    def _batch(self, split: str, number: int, length: int | None, indices: range) -> Batch:
        """Rows of a stage, of `length` tokens; of primer where it is None."""
        recipe = self._recipe
        if length is None:
            rows = [self._primer_row(split, index) for index in indices]
            # Random tokens can be copied, but not foretold: only answers are learned.
            loss, what = LossRecipe(), f"primer of {recipe.data.primer_length_tokens} tokens"
        elif number in self._recall:
            rows = [self._recall_row(split, number, length, index) for index in indices]
            loss, what = LossRecipe(), f"recall of {length} tokens"
        else:
            stream = self._streams[split, number, length]
            rows = [_task_row(stream, index) for index in indices]
            loss, what = recipe.train.loss, f"{length} tokens" if length else "facts only"
        seed = (
            f"{split} rows {indices[0]} to {indices[-1]} in steps of {indices.step}, stage "
            f"{recipe.curriculum[number].name!r}, {what}, seed {recipe.seed}"
        )
        kind: Kind = "primer" if length is None else "recall" if number in self._recall else "task"
        return _collate(rows, kind, loss, self._padding, indices[0], seed)

    def _primer_row(self, split: str, index: int) -> _Row:
        length = self._recipe.data.primer_length_tokens
        assert length is not None, "checked with the recipe"
        rng = Random(f"primer {split} {self._recipe.seed} {index}")
        input_ids, copied = copying_row(rng, length, self._primer_tokens)
        return _Row(input_ids, tuple((place, place + 1) for place in copied), None)

    def _recall_row(self, split: str, number: int, length: int, index: int) -> _Row:
        task = self._recipe.curriculum[number].recall
        assert task is not None, "the caller has looked"
        rng = Random(f"recall {split} {self._recipe.seed} {index}")
        row = recall_row(rng, length, task, self._recall[number])
        return _Row(row.input_ids, tuple((place, place + 1) for place in row.answers.tolist()), None)


def _is_primer(stage: StageRecipe, stage_step: int) -> bool:
    return stage.primer_every is not None and (stage_step + 1) % stage.primer_every == 0


def _lengths(stage: StageRecipe, data: DataRecipe) -> tuple[int, ...]:
    """The lengths that a batch of the stage may have, in tokens, each as likely as the others, the shortest first."""
    if stage.lengths_tokens is not None:
        return tuple(sorted(set(stage.lengths_tokens)))
    assert stage.segments is not None, "checked with the recipe"
    assert data.segment_length_tokens is not None, "checked with the recipe"
    lengths = segment_lengths(stage.segments.max, data.segment_length_tokens, data.margin_tokens)
    tokens = tuple(length.max_tokens for length in lengths)
    return tokens[-1:] if stage.segments.draw == "max" else tokens


def _open_streams(recipe: Recipe, encoder: TextEncoder, split: str) -> dict[tuple[int, int], BabilongStream]:
    """The streams of a split, by stage and length; they share facts and background."""
    data = recipe.data
    background = None
    if data.background is not None and any(stage.tasks for stage in recipe.curriculum):
        background = TokenizedBackground(open_background(data.background, split), encoder)
    facts = open_facts(data.facts, split, recipe.seed)
    streams = {}
    for number, recipe_stage in enumerate(recipe.curriculum):
        if recipe_stage.tasks is None:
            continue
        for length in _lengths(recipe_stage, data):
            stage = Stage(
                recipe_stage.tasks,
                (Length(length, length),),
                recipe_stage.questions,
                recipe_stage.max_questions,
                tokens_per_row=data.tokens_per_row,
                allow_repeats=data.allow_repeats,
                # Validated on whole sentences and the stories' own questions, as evaluation has them.
                further_questions=recipe_stage.further_questions if split == "train" else 0,
                shortened=recipe_stage.shortened if split == "train" else 0.0,
            )
            try:
                stream = BabilongStream(stage, facts, background, encoder, recipe.seed, split)
            except ValueError as error:
                raise ValueError(f"curriculum.{number} ({recipe_stage.name!r}), split {split}: {error}") from error
            streams[number, length] = stream
    return streams


def _task_row(stream: BabilongStream, index: int) -> _Row:
    sample = stream[index]
    return _Row(sample.input_ids, tuple((asked.answer_begin, asked.end) for asked in sample.questions), sample.task)


def _collate(rows: Sequence[_Row], kind: Kind, loss: LossRecipe, padding: int, first_index: int, seed: str) -> Batch:
    shape = len(rows), max(len(row.input_ids) for row in rows)
    input_ids = np.full(shape, padding, dtype=np.int64)
    attention_mask = np.zeros(shape, dtype=np.int64)
    is_answer = np.zeros(shape, dtype=bool)
    for number, row in enumerate(rows):
        input_ids[number, : len(row.input_ids)] = row.input_ids
        attention_mask[number, : len(row.input_ids)] = 1
        for begin, end in row.answers:
            is_answer[number, begin:end] = True
    is_learned = is_answer if loss.on == "answers" else attention_mask == 1
    weights = None
    if loss.answer_weight is not None:
        weights = torch.from_numpy(np.where(is_answer, loss.answer_weight, 1.0).astype(np.float32))
    tasks = tuple(row.task for row in rows if row.task is not None)
    return Batch(
        torch.from_numpy(input_ids),
        torch.from_numpy(np.where(is_learned, input_ids, IGNORED_LABEL)),
        torch.from_numpy(attention_mask),
        weights,
        first_index,
        kind,
        tasks,
        tuple(row.answers for row in rows),
        seed,
    )


def _asking_nothing(batch: Batch) -> Batch:
    return replace(
        batch,
        labels=torch.full_like(batch.labels, IGNORED_LABEL),
        answers=((),) * len(batch.answers),
        seed=f"nothing asked: {batch.seed}",
    )
