"""Background sentences for contexts: every source tokenised once, stretches drawn as BABILong's sampler draws them.

Kuratov et al. 2024, babilong_utils.py (SentenceSampler): a random source, a random start character in it, the sentence
cut by the start dropped, a stretch of at most 10 characters for each token wanted; sentences in natural order, those
under 10 tokens left out; the next random source when a stretch is used up; the last sentence cut to the token.

Ours differs in three points. Sources are split into sentences once, not once per stretch. Nothing is left over for the
next sample: each is a pure function of its random numbers, so samples can be made again, resumed and shared out. And no
sentence of a source comes twice in a sample as long as the background has others: a stretch that begins at used
sentences begins behind them instead (round to the source's first sentence after its last), and ends before the next.
"""

from bisect import insort
from collections import OrderedDict
from dataclasses import dataclass
from random import Random

import numpy as np
from numpy.typing import NDArray

from lm2.data.encoding import TextEncoder
from lm2.data.text import Background, Source

MIN_SENTENCE_TOKENS = 10
STRETCH_CHARS_PER_TOKEN = 10
CACHE_BYTES = 2**28


@dataclass(frozen=True)
class TokenizedSource:
    """The usable sentences of one source, each led by a space, in a row.

    Attributes:
        token_ids: Their tokens.
        token_starts: Where each begins in `token_ids`; one entry more, for the end.
        text: Their text.
        text_starts: Where each begins in `text`; one entry more, for the end.
        begins: The character of the source where each begins, short sentences counted.
        ends: The character behind each.
        num_chars: Characters of the source.
    """

    token_ids: NDArray[np.int32]
    token_starts: NDArray[np.int64]
    text: str
    text_starts: NDArray[np.int64]
    begins: NDArray[np.int64]
    ends: NDArray[np.int64]
    num_chars: int

    @property
    def num_sentences(self) -> int:
        return len(self.begins)

    @property
    def num_bytes(self) -> int:
        arrays = (self.token_ids, self.token_starts, self.text_starts, self.begins, self.ends)
        return self.text.__sizeof__() + sum(array.nbytes for array in arrays)


@dataclass(frozen=True, slots=True)
class Stretch:
    """Sentences `begin` to `end` - 1 of a source; of their tokens the first `num_tokens`, which end in the last one."""

    source: int
    begin: int
    end: int
    num_tokens: int


@dataclass(frozen=True, slots=True)
class Noise:
    """The background of one sample, in order.

    Attributes:
        stretches: What it is made of.
        repeats: Whether a sentence of a source is in it twice.
    """

    stretches: tuple[Stretch, ...]
    repeats: bool

    @property
    def num_sentences(self) -> int:
        return sum(stretch.end - stretch.begin for stretch in self.stretches)


NO_NOISE = Noise((), repeats=False)


def tokenize_source(source: Source, encoder: TextEncoder) -> TokenizedSource:
    """Tokenises a source's sentences and keeps those of at least MIN_SENTENCE_TOKENS tokens."""
    texts = [f" {sentence}" for sentence in source.sentences()]
    kept_ids, kept_texts, begins = [], [], []
    place = 0
    for text, ids in zip(texts, encoder.encode_many(texts), strict=True):
        if len(ids) >= MIN_SENTENCE_TOKENS:
            kept_ids.append(ids)
            kept_texts.append(text)
            begins.append(place)
        place += len(text)
    text_lengths = np.array([len(text) for text in kept_texts], dtype=np.int64)
    begin_array = np.array(begins, dtype=np.int64)
    return TokenizedSource(
        token_ids=np.concatenate(kept_ids) if kept_ids else np.empty(0, dtype=np.int32),
        token_starts=_starts(np.array([len(ids) for ids in kept_ids], dtype=np.int64)),
        text="".join(kept_texts),
        text_starts=_starts(text_lengths),
        begins=begin_array,
        ends=begin_array + text_lengths,
        num_chars=place,
    )


def _starts(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(lengths)])


class TokenizedBackground:
    """Tokenised sources, the ones used last kept in memory; draws noise from them and gives its text and tokens.

    Attributes:
        name: The background's name in reports.
        encoder: What its tokens were made with.
    """

    def __init__(self, background: Background, encoder: TextEncoder, cache_bytes: int = CACHE_BYTES) -> None:
        """Tokenises nothing yet.

        Args:
            background: Where sentences come from.
            encoder: The tokenizer that tokens are counted by.
            cache_bytes: Sources are kept up to this much memory, the ones used last, and at least one.
        """
        self.name = background.name
        self.encoder = encoder
        self._sources = background.sources
        self._cache_bytes = cache_bytes
        self._cache: OrderedDict[int, TokenizedSource] = OrderedDict()
        self._cached_bytes = 0
        self._num_tokens: dict[int, int] = {}

    def source(self, number: int) -> TokenizedSource:
        """A source, tokenised anew if it is not in memory."""
        if number in self._cache:
            self._cache.move_to_end(number)
            return self._cache[number]
        source = tokenize_source(self._sources[number], self.encoder)
        self._num_tokens[number] = len(source.token_ids)
        self._cache[number] = source
        self._cached_bytes += source.num_bytes
        while self._cached_bytes > self._cache_bytes and len(self._cache) > 1:
            _, dropped = self._cache.popitem(last=False)
            self._cached_bytes -= dropped.num_bytes
        return source

    def check_fills(self, num_tokens: int, allow_repeats: bool) -> None:
        """Refuses a number of tokens that cannot be had; tokenises no more sources than it takes to know.

        Raises:
            ValueError: no usable sentence; or fewer tokens than wanted, where repeats are not allowed.
        """
        available = 0
        for number in range(len(self._sources)):
            if number not in self._num_tokens:
                self.source(number)
            available += self._num_tokens[number]
            if available >= num_tokens or (allow_repeats and available):
                return
        raise self._too_small(num_tokens, available)

    def _too_small(self, num_tokens: int, available: int) -> ValueError:
        if available == 0:
            return ValueError(
                f"background {self.name} has no sentence of at least {MIN_SENTENCE_TOKENS} tokens; give English prose"
            )
        return ValueError(
            f"background {self.name} has {available:,} tokens in sentences of at least {MIN_SENTENCE_TOKENS}, but "
            f"{num_tokens:,} are wanted of it without repeating a sentence; give more text, or allow repeats"
        )

    def draw(self, rng: Random, num_tokens: int, sample_tokens: int, allow_repeats: bool = False) -> Noise:
        """Draws exactly `num_tokens` tokens of background; only `rng.random()` is called, which Python keeps stable.

        Args:
            rng: Random numbers.
            num_tokens: How many tokens.
            sample_tokens: Tokens of the whole sample, which limit the characters of a stretch.
            allow_repeats: Begin again with all sentences once every one of them is used.

        Raises:
            ValueError: the background has not enough.
        """
        stretches: list[Stretch] = []
        used: dict[int, list[tuple[int, int]]] = {}
        used_up: set[int] = set()
        repeats, missing = False, num_tokens
        while missing:
            if len(used_up) == len(self._sources):
                if not (allow_repeats and stretches):
                    raise self._too_small(num_tokens, num_tokens - missing)
                repeats = True
                used, used_up = {}, set()
            number = int(rng.random() * len(self._sources))
            if number in used_up:
                continue
            source, runs = self.source(number), used.setdefault(number, [])
            if source.num_sentences == 0:
                used_up.add(number)
                continue
            start = int(rng.random() * source.num_chars)
            stretch = _stretch(number, source, runs, start, start + sample_tokens * STRETCH_CHARS_PER_TOKEN, missing)
            stretches.append(stretch)
            missing -= stretch.num_tokens
            _mark(runs, stretch.begin, stretch.end)
            if runs == [(0, source.num_sentences)]:
                used_up.add(number)
        return Noise(tuple(stretches), repeats)

    def cut(self, stretch: Stretch, first: int, last: int) -> Stretch:
        """The part of a stretch from its sentence `first` to before its sentence `last`, counted from 0."""
        starts = self.source(stretch.source).token_starts
        begin, end = stretch.begin + first, stretch.begin + last
        before = int(starts[begin] - starts[stretch.begin])
        num_tokens = min(int(starts[end] - starts[stretch.begin]), stretch.num_tokens) - before
        return Stretch(stretch.source, begin, end, num_tokens)

    def token_ids(self, stretch: Stretch) -> NDArray[np.int32]:
        """The tokens of a stretch; a view that is not to be written to."""
        source = self.source(stretch.source)
        begin = int(source.token_starts[stretch.begin])
        return source.token_ids[begin : begin + stretch.num_tokens]

    def sentence_lengths(self, stretch: Stretch) -> NDArray[np.int64]:
        """Tokens of each sentence of a stretch, the last one as it is cut."""
        starts = self.source(stretch.source).token_starts[stretch.begin : stretch.end + 1]
        return np.diff(np.minimum(starts - starts[0], stretch.num_tokens))

    def text(self, stretch: Stretch) -> str:
        """The text of a stretch: what its tokens decode to, but only a cut last sentence is decoded.

        A tokenizer that loses a leading space or letter case when it decodes does so in that sentence only, and the
        space is put back.
        """
        source = self.source(stretch.source)
        begin, last = int(source.token_starts[stretch.begin]), int(source.token_starts[stretch.end - 1])
        end = begin + stretch.num_tokens
        if end == int(source.token_starts[stretch.end]):
            return source.text[int(source.text_starts[stretch.begin]) : int(source.text_starts[stretch.end])]
        whole = source.text[int(source.text_starts[stretch.begin]) : int(source.text_starts[stretch.end - 1])]
        return f"{whole} {self.encoder.decode(source.token_ids[last:end]).removeprefix(' ')}"


def _stretch(
    number: int, source: TokenizedSource, runs: list[tuple[int, int]], start: int, reach: int, missing: int
) -> Stretch:
    """The stretch between two characters, at least one sentence long, of unused sentences, cut to what is missing."""
    begin = int(np.searchsorted(source.begins, start, side="right"))
    begin, limit = _free_run(runs, begin, source.num_sentences)
    if begin == source.num_sentences:
        begin, limit = _free_run(runs, 0, source.num_sentences)
        reach -= start
    inside = int(np.searchsorted(source.ends, reach, side="right"))
    end = min(limit, max(begin + 1, inside))
    first_token = int(source.token_starts[begin])
    num_tokens = int(source.token_starts[end]) - first_token
    if num_tokens > missing:
        end = int(np.searchsorted(source.token_starts, first_token + missing, side="left"))
        num_tokens = missing
    return Stretch(number, begin, end, num_tokens)


def _free_run(runs: list[tuple[int, int]], begin: int, count: int) -> tuple[int, int]:
    """The first unused sentence from `begin` on and the end of the run it is in; `count` twice if there is none."""
    for first, last in runs:
        if first > begin:
            return begin, first
        begin = max(begin, last)
    return begin, count


def _mark(runs: list[tuple[int, int]], begin: int, end: int) -> None:
    """Adds a run of used sentences to the sorted runs, neighbours joined."""
    for run in [run for run in runs if run[0] == end or run[1] == begin]:
        runs.remove(run)
        begin, end = min(begin, run[0]), max(end, run[1])
    insort(runs, (begin, end))
