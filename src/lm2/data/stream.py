"""Training streams: endless BABILong samples with labels, from any mixture of tasks and lengths.

`stream[i]` is a pure function of (seed, split, stage, i), so a stream is resumed by its next index and shared out among
processes by taking every W-th index. Contexts follow the rule of lm2.data.babilong; questions and answers are in the
form of lm2.data.plain. Evaluation reads one question at the end. For dense supervision a stage can ask all questions of
a story inside the context instead, each at a random place after the facts told before it and before the next fact, and
further ones besides (lm2.data.further).
"""

from bisect import bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import accumulate
from random import Random
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lm2.data.babi.story import Question, Statement, Story
from lm2.data.babilong import MAX_ATTEMPTS, draw_slots, find_slots
from lm2.data.encoding import TextEncoder
from lm2.data.facts import Facts, check_split
from lm2.data.further import draw_further, question_pool
from lm2.data.noise import Noise, TokenizedBackground
from lm2.data.plain import answer_text, question_text
from lm2.data.shortening import filler_tokens, keep_tokens
from lm2.data.stage import Stage

IGNORED_LABEL = -100

# Facts and questions come from a small world.
_KEPT_ITEMS = 2**16


@dataclass(frozen=True)
class AskedQuestion:
    """Where a question is in a sample: it begins at token `begin`, its answer is tokens `answer_begin` to `end` - 1.

    The answer's last tokens are its end (lm2.data.plain.ANSWER_END).
    """

    begin: int
    answer_begin: int
    end: int
    question: str
    target: str


@dataclass(frozen=True, eq=False)
class TrainingSample:
    """One sample of a stream.

    Attributes:
        index: Its number in the stream.
        task: 1 to 20.
        input_ids: int64, all tokens.
        labels: int64, `input_ids` at the answers and their ends, -100 elsewhere (not shifted, as transformers wants).
        questions: What is asked, in order.
        repeats: Whether a background sentence is in it twice.
    """

    index: int
    task: int
    input_ids: NDArray[np.int64]
    labels: NDArray[np.int64]
    questions: tuple[AskedQuestion, ...]
    repeats: bool


@dataclass(frozen=True)
class _Item:
    """What goes between background sentences: a fact; or a question and its answer, the answer's tokens last."""

    text: str
    ids: NDArray[np.int32]
    is_filler: NDArray[np.bool_]
    answer: str | None = None
    num_answer_tokens: int = 0


_Items = tuple[_Item, ...]


class BabilongStream:
    """An endless stream of training samples; also a sequence: `stream[i]`.

    Iterating gives the samples of this process, `rank`, `rank + world_size` and so on, from `state_dict()` on.
    """

    def __init__(
        self,
        stage: Stage,
        facts: Facts,
        background: TokenizedBackground | None,
        encoder: TextEncoder,
        seed: int,
        split: str = "train",
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        """Tries every task at every length once, so that what cannot work fails here.

        Args:
            stage: What samples are like.
            facts: Where stories come from.
            background: Where noise comes from; None where all lengths are facts only. Shared, not copied.
            encoder: The tokenizer; the background's, if there is one.
            seed: Of all random choices.
            split: "train", or "test" for samples to validate on: other random numbers.
            rank: This process among those that share the stream.
            world_size: How many there are.

        Raises:
            ValueError: an argument out of range, or a stage that facts or background cannot serve.
        """
        check_split(split)
        if not 0 <= rank < world_size:
            raise ValueError(f"rank is {rank} and world_size {world_size}, but rank must be 0 to world_size - 1")
        assert background is None or background.encoder is encoder, "one tokenizer counts everything"
        self.stage = stage
        self._facts, self._background, self._encoder = facts, background, encoder
        self._seed, self._split, self._rank, self._world_size = seed, split, rank, world_size
        self._round = 0
        self._tasks = tuple(stage.tasks)
        self._task_bounds = tuple(accumulate(stage.tasks.values()))
        self._length_bounds = tuple(accumulate(length.weight for length in stage.lengths))
        self._kept: dict[tuple[str, str | None], _Item] = {}
        self._check()

    def _check(self) -> None:
        longest = max(length.max_tokens for length in self.stage.lengths)
        if longest and self._background is None:
            raise ValueError(f"lengths go up to {longest} tokens, but there is no background; give one, or 0 tokens")
        if longest and self._background is not None:
            self._background.check_fills(longest, self.stage.allow_repeats)
        for task in self._tasks:
            for num_tokens in sorted({length.min_tokens for length in self.stage.lengths}):
                self._make(Random(f"trial {self._seed} {task}"), 0, task, num_tokens)

    def with_stage(self, stage: Stage) -> "BabilongStream":
        """The stream of another stage at the same place; facts and tokenised background are shared."""
        stream = BabilongStream(
            stage,
            self._facts,
            self._background,
            self._encoder,
            self._seed,
            self._split,
            self._rank,
            self._world_size,
        )
        stream._round = self._round
        return stream

    def content_tokens(self, num_stories: int) -> set[int]:
        """What is no filler in the first stories of each task: tokens of facts, questions and answers."""
        tokens: set[int] = set()
        for task in self._tasks:
            for index in range(num_stories):
                for line in self._facts.story(task, index, 0).lines:
                    answer = line.answer if isinstance(line, Question) else None
                    item = self._item(line.text, answer)
                    sentence = item.ids[: len(item.ids) - item.num_answer_tokens]
                    tokens.update(sentence[~item.is_filler[: len(sentence)]].tolist())
                    if answer is not None:
                        tokens.update(self._encoder.encode(f" {answer}").tolist())
        return tokens

    def __iter__(self) -> Iterator[TrainingSample]:
        return self

    def __next__(self) -> TrainingSample:
        sample = self[self._round * self._world_size + self._rank]
        self._round += 1
        return sample

    def state_dict(self) -> dict[str, int]:
        """The next index of rank 0. Ranks that took equally many samples have equal states."""
        return {"next_index": self._round * self._world_size}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on where a state was taken, under any number of processes that divides its index.

        Raises:
            ValueError: not a state of a stream, or the processes cannot share what is left evenly.
        """
        index = state.get("next_index")
        if set(state) != {"next_index"} or not isinstance(index, int) or index < 0:
            raise ValueError(f"state is {dict(state)!r}, but must be {{'next_index': N}} with N of at least 0")
        if index % self._world_size:
            raise ValueError(
                f"next_index is {index}, but must be a multiple of world_size, which is {self._world_size}, for no "
                "sample to be left out or taken twice"
            )
        self._round = index // self._world_size

    def __getitem__(self, index: int) -> TrainingSample:
        """Sample number `index`, the same every time.

        Raises:
            ValueError: a negative index.
        """
        if index < 0:
            raise ValueError(f"index is {index}, but must be at least 0: a stream has no end to count from")
        rng = Random(f"stream {self._split} {self._seed} {index}")
        task = self._tasks[_draw_weighted(rng, self._task_bounds)]
        length = self.stage.lengths[_draw_weighted(rng, self._length_bounds)]
        num_tokens = length.min_tokens + int(rng.random() * (length.max_tokens - length.min_tokens + 1))
        return self._make(rng, index, task, num_tokens)

    def _make(self, rng: Random, index: int, task: int, num_tokens: int) -> TrainingSample:
        items = self._draw_items(rng, index, task, num_tokens)
        if not num_tokens:
            shortened = self._shorten(rng, items)
            return _assemble(index, task, shortened, [0] * len(items), *_NO_TOKENS, repeats=False)
        assert self._background is not None, "checked when the stream was made"
        noise_tokens = num_tokens - sum(len(item.ids) for item in items)
        for _ in range(MAX_ATTEMPTS):
            noise = self._background.draw(rng, noise_tokens, num_tokens, self.stage.allow_repeats)
            slots = self._draw_slots(rng, items, noise, num_tokens)
            if slots is not None:
                noise_ids, starts = _noise_tokens(self._background, noise)
                return _assemble(index, task, self._shorten(rng, items), slots, noise_ids, starts, noise.repeats)
        raise ValueError(
            f"position is {self.stage.position}, but no place between two sentences lies there in a sample of task "
            f"{task} of {num_tokens} tokens; make the range wider or the length longer"
        )

    def _draw_items(self, rng: Random, index: int, task: int, num_tokens: int) -> _Items:
        """Facts and questions of a story that fit, up to the last question."""
        for attempt in range(MAX_ATTEMPTS):
            story = self._facts.story(task, index, attempt)
            items = self._cut(rng, story, num_tokens)
            if items:
                return items
        raise ValueError(
            f"length is {num_tokens} tokens, but no question of task {task} fits it with {self.stage.tokens_per_row} "
            "tokens per row; choose a longer one"
        )

    def _cut(self, rng: Random, story: Story, num_tokens: int) -> _Items:
        """The story with the questions that are to be asked, without what follows the last one that fits."""
        asked = [place for place, line in enumerate(story.lines) if isinstance(line, Question)]
        if self.stage.questions == "end":
            choices = [self._select(story, {place}) for place in asked]
            fitting = [items for items in choices if self._fits(items, num_tokens)]
            return fitting[int(rng.random() * len(fitting))] if fitting else ()
        limit = self.stage.max_questions
        if limit is not None and limit < len(asked):
            by_chance = sorted(asked, key=lambda _: rng.random())
            asked = sorted(by_chance[:limit])
        while asked:
            items = self._select(story, set(asked))
            if self._fits(items, num_tokens):
                return self._ask_further(rng, story.task, items, num_tokens) if self.stage.further_questions else items
            asked.pop()
        return ()

    def _ask_further(self, rng: Random, task: int, items: _Items, num_tokens: int) -> _Items:
        """With as many further questions as fit, each behind the fact that it is asked after."""
        facts = [item.text for item in items if item.answer is None]
        pool = question_pool(self._facts, task)
        drawn = draw_further(rng, pool, task, facts, self.stage.further_questions)
        rng.shuffle(drawn)
        left = num_tokens - sum(len(item.ids) for item in items)
        behind: dict[int, list[_Item]] = {}
        for told, text, answer in drawn:
            item = self._item(text, answer)
            if not num_tokens or len(item.ids) <= left:
                left -= len(item.ids)
                behind.setdefault(told, []).append(item)
        told = 0
        whole: list[_Item] = []
        for item in items:
            whole.append(item)
            if item.answer is None:
                told += 1
                whole += behind.get(told, ())
        return tuple(whole)

    def _select(self, story: Story, asked: set[int]) -> _Items:
        """The facts of a story up to the last of the lines in `asked`, and those questions."""
        return tuple(
            self._item(line.text) if isinstance(line, Statement) else self._item(line.text, line.answer)
            for place, line in enumerate(story.lines[: max(asked) + 1])
            if isinstance(line, Statement) or place in asked
        )

    def _item(self, text: str, answer: str | None = None) -> _Item:
        item = self._kept.get((text, answer))
        if item is None:
            if len(self._kept) == _KEPT_ITEMS:
                self._kept.clear()
            item = self._kept[text, answer] = self._encode_item(text, answer)
        return item

    def _encode_item(self, text: str, answer: str | None) -> _Item:
        whole = f" {text}" if answer is None else question_text(text)
        ids, offsets = self._encoder.encode_with_offsets(whole)
        is_filler = filler_tokens(whole, offsets)
        if answer is None:
            return _Item(text, ids, is_filler)
        answer_ids = self._encoder.encode(answer_text(answer))
        never = np.zeros(len(answer_ids), dtype=bool)
        return _Item(text, np.append(ids, answer_ids), np.append(is_filler, never), answer, len(answer_ids))

    def _shorten(self, rng: Random, items: _Items) -> _Items:
        if not self.stage.shortened or rng.random() >= self.stage.shortened:
            return items
        share = rng.random()
        kept = [keep_tokens(rng, item.is_filler, share) for item in items]
        return tuple(
            replace(item, ids=item.ids[keep], is_filler=item.is_filler[keep])
            for item, keep in zip(items, kept, strict=True)
        )

    def _fits(self, items: _Items, num_tokens: int) -> bool:
        if not num_tokens:
            return True
        facts = [item for item in items if item.answer is None]
        start, end = (int(num_tokens * fraction) for fraction in self.stage.position or (0, 1))
        return (
            len(facts) + 1 <= num_tokens // self.stage.tokens_per_row
            and sum(len(item.ids) for item in facts) < end - start
            and sum(len(item.ids) for item in items) <= num_tokens
        )

    def _draw_slots(self, rng: Random, items: _Items, noise: Noise, sample_tokens: int) -> list[int] | None:
        """Background sentences before each item: facts by the rule, questions somewhere between their neighbours.

        None where no slot is in the stage's position, which other background may have.
        """
        assert self._background is not None, "only a sample with background has slots to draw"
        facts = [item for item in items if item.answer is None]
        fact_tokens = sum(len(item.ids) for item in facts)
        slot_range = find_slots(self._background, noise, self.stage.position, sample_tokens, fact_tokens)
        if slot_range is None:
            return None
        end = noise.num_sentences
        fact_slots = iter(draw_slots(rng, len(facts), slot_range))
        slots = [next(fact_slots) if item.answer is None else -1 for item in items]
        if self.stage.questions == "end":
            return [end if slot < 0 else slot for slot in slots]
        place = 0
        while place < len(items):
            behind = place
            while behind < len(items) and slots[behind] < 0:
                behind += 1
            if behind > place:
                between = (slots[place - 1] if place else 0, slots[behind] if behind < len(items) else end)
                slots[place:behind] = draw_slots(rng, behind - place, between)
            place = behind + 1
        return slots


_NO_TOKENS = (np.empty(0, dtype=np.int32), np.zeros(1, dtype=np.int64))


def _noise_tokens(background: TokenizedBackground, noise: Noise) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """All tokens of the noise, and where its sentences begin, with one entry more for the end."""
    if not noise.stretches:
        return _NO_TOKENS
    ids = [background.token_ids(stretch) for stretch in noise.stretches]
    lengths = [background.sentence_lengths(stretch) for stretch in noise.stretches]
    return np.concatenate(ids), np.cumsum(np.concatenate([_NO_TOKENS[1], *lengths]))


def _assemble(
    index: int,
    task: int,
    items: _Items,
    slots: list[int],
    noise_ids: NDArray[np.int32],
    starts: NDArray[np.int64],
    repeats: bool,
) -> TrainingSample:
    """Puts each item before the background sentence that its slot numbers."""
    input_ids = np.empty(len(noise_ids) + sum(len(item.ids) for item in items), dtype=np.int64)
    labels = np.full(len(input_ids), IGNORED_LABEL, dtype=np.int64)
    questions = []
    place = done = 0
    for item, upto in zip(items, starts[slots].tolist(), strict=True):
        input_ids[place : place + upto - done] = noise_ids[done:upto]
        begin, done = place + upto - done, upto
        place = begin + len(item.ids)
        input_ids[begin:place] = item.ids
        if item.answer is not None:
            answer_begin = place - item.num_answer_tokens
            labels[answer_begin:place] = input_ids[answer_begin:place]
            questions.append(AskedQuestion(begin, answer_begin, place, item.text, item.answer))
    input_ids[place:] = noise_ids[done:]
    return TrainingSample(index, task, input_ids, labels, tuple(questions), repeats)


def _draw_weighted(rng: Random, bounds: tuple[float, ...]) -> int:
    """A place in `bounds`, which are running sums of weights."""
    return min(bisect_right(bounds, rng.random() * bounds[-1]), len(bounds) - 1)
