"""Retrieval instead of memory (RAG): of a long context, a model reads the few passages that match the question best.

The baseline of BABILong (Kuratov et al. 2024, section 3.2) retrieves sentences or fixed pieces and hands them over in
the order of similarity. In bAbI the order of facts is what most questions are about, so the order of the document is
ours by default, and that of similarity an option. Of passages that match equally well the later ones are taken, as they
are more likely to hold in the end.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from lm2.data.bounds import at_least
from lm2.data.encoding import TextEncoder
from lm2.data.sentences import split_sentences

# Passages that a model reads where nobody says how many.
USUAL_TOP_K = 5

# Where a passage begins and ends in its context, in characters.
Span = tuple[int, int]


class Retriever(Protocol):
    """Scores passages. `name` says in results which it was."""

    @property
    def name(self) -> str: ...

    def score(self, passages: Sequence[str], question: str) -> NDArray[np.float32]:
        """How well each passage matches the question, more is better."""


class BM25Retriever:
    """BM25 (Robertson and Zaragoza 2009; bm25s, method "lucene"): words in common, rare ones count more.

    English stop words are left out, words are not stemmed.
    """

    name = "bm25"

    def score(self, passages: Sequence[str], question: str) -> NDArray[np.float32]:
        import bm25s

        words = bm25s.tokenize([*passages, question], stopwords="english", return_ids=False, show_progress=False)
        of_question = [word for word in dict.fromkeys(words[-1]) if any(word in of for of in words[:-1])]
        if not of_question:
            return np.zeros(len(passages), dtype=np.float32)
        index = bm25s.BM25(method="lucene")
        index.index(words[:-1], show_progress=False)
        return index.get_scores(of_question)


class DenseRetriever:
    """Cosine similarity of the embeddings of a sentence-transformers model."""

    def __init__(self, folder: Path) -> None:
        """Loads the model.

        Raises:
            ValueError: sentence-transformers is not installed.
            OSError: no model can be read there.
        """
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError as error:
            raise ValueError("a dense retriever needs sentence-transformers: pip install 'lm2[dense]'") from error
        if not (folder / "config.json").is_file():
            raise OSError(f"{folder} is no sentence-transformers folder: it has no config.json")
        self._model: Any = SentenceTransformer(str(folder), local_files_only=True)
        self.name = f"dense {folder.name}"

    def score(self, passages: Sequence[str], question: str) -> NDArray[np.float32]:
        embedded = self._model.encode([*passages, question], normalize_embeddings=True, show_progress_bar=False)
        return np.asarray(embedded[:-1] @ embedded[-1], dtype=np.float32)


def sentence_spans(context: str) -> list[Span]:
    """The sentences of a context whose white space is single spaces."""
    spans, place = [], 0
    for sentence in split_sentences(context):
        begin = context.index(sentence, place)
        place = begin + len(sentence)
        spans.append((begin, place))
    return spans


def piece_spans(context: str, num_tokens: int, encoder: TextEncoder) -> list[Span]:
    """Pieces of so many tokens, the last one shorter; they need not begin where a sentence does."""
    _, offsets = encoder.encode_with_offsets(context)
    pieces = [offsets[first : first + num_tokens] for first in range(0, len(offsets), num_tokens)]
    return [(piece[0][0], piece[-1][1]) for piece in pieces]


@dataclass(frozen=True)
class RAG:
    """How passages are found and handed over.

    Attributes:
        retriever: Scores them.
        cut: Cuts a context into passages, such as `sentence_spans`.
        top_k: So many of them are handed over; None: five, or all where there are fewer.
        order: "document", as they stand in the context; or "similarity", the best one first.
    """

    retriever: Retriever
    cut: Callable[[str], list[Span]]
    top_k: int | None = None
    order: Literal["document", "similarity"] = "document"

    def __post_init__(self) -> None:
        at_least("top_k", self.top_k, 1)
        if self.order not in ("document", "similarity"):
            raise ValueError(f"order is {self.order!r}, but must be document or similarity")

    def retrieve(self, context: str, question: str) -> "Retrieved":
        """Finds the passages that a model is to read.

        Raises:
            ValueError: the context has fewer passages than `top_k`, or none.
        """
        context = _collapse(context)
        spans = self.cut(context)
        if not spans:
            raise ValueError("the context is empty, so that nothing can be retrieved")
        if self.top_k is not None and len(spans) < self.top_k:
            raise ValueError(
                f"top_k is {self.top_k}, but the context has {len(spans)} passages; retrieve at most so many"
            )
        scores = self.retriever.score([context[begin:end] for begin, end in spans], question)
        later_first = sorted(range(len(spans)), key=lambda place: (-scores[place], -place))
        best = later_first[: USUAL_TOP_K if self.top_k is None else self.top_k]
        in_order = sorted(best) if self.order == "document" else best
        return Retrieved(context, tuple(spans[place] for place in in_order))


@dataclass(frozen=True)
class Retrieved:
    """Passages of a context.

    Attributes:
        context: The whole one; all its white space is single spaces.
        spans: Where the passages lie in it, in the order in which a model reads them.
    """

    context: str
    spans: tuple[Span, ...]

    @property
    def text(self) -> str:
        """The passages, one space between them."""
        return " ".join(self.context[begin:end].strip() for begin, end in self.spans)

    def recall(self, facts: Sequence[str], support: Sequence[int]) -> float:
        """The share of the supporting facts that lie whole in a passage.

        Args:
            facts: All facts of the sample, in the order in which they stand in the context.
            support: Places in `facts`, at least one.
        """
        assert support, "a question has supporting facts"
        places: list[Span] = []
        for fact in map(_collapse, facts):
            begin = self.context.index(fact, places[-1][1] if places else 0)
            places.append((begin, begin + len(fact)))
        found = [any(begin <= places[n][0] and places[n][1] <= end for begin, end in self.spans) for n in support]
        return sum(found) / len(found)


def _collapse(text: str) -> str:
    return " ".join(text.split())
