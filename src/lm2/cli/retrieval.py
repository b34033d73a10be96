"""Questions whose context is what retrieval (lm2.baselines.rag) has found, for `lm2 eval babilong --rag`."""

import importlib.util
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from lm2.baselines.rag import RAG, USUAL_TOP_K, BM25Retriever, DenseRetriever, piece_spans, sentence_spans
from lm2.eval.questions import AskedQuestion, Questions, prompt_tokens

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from lm2.data.encoding import TextEncoder
    from lm2.eval.prompts import PromptParts


def open_rag(
    retriever: str | None, top_k: int | None, passages: str | None, order: str | None, encoder: "TextEncoder"
) -> tuple[RAG, str] | None:
    """Retrieval as the verb's options name it, and its name in results; None without `retriever`.

    Raises:
        ValueError: an option without effect, or one that names nothing.
        OSError: a retriever cannot be read.
    """
    if retriever is None:
        for name, value in (("top-k", top_k), ("passages", passages), ("order", order)):
            if value is not None:
                raise ValueError(f"--rag-{name} has no effect without --rag; give --rag bm25, or leave it out")
        return None
    if retriever == "bm25" and importlib.util.find_spec("bm25s") is None:
        raise ValueError("--rag bm25 needs bm25s: pip install 'lm2[rag]'")
    if order not in (None, "document", "similarity"):
        raise ValueError(f"--rag-order is {order!r}, but must be document or similarity")
    unit = passages or "sentence"
    if unit != "sentence" and not (unit.isdecimal() and int(unit) > 0):
        raise ValueError(f"--rag-passages is {unit!r}, but must be sentence or a number of tokens")
    scorer = BM25Retriever() if retriever == "bm25" else DenseRetriever(Path(retriever))
    cut = sentence_spans if unit == "sentence" else partial(piece_spans, num_tokens=int(unit), encoder=encoder)
    rag = RAG(scorer, cut, top_k, "similarity" if order == "similarity" else "document")
    of_what = "sentences" if unit == "sentence" else f"pieces of {unit} tokens"
    count = f"up to {USUAL_TOP_K}" if top_k is None else top_k
    return rag, f"{scorer.name}, {count} {of_what}, {rag.order} order"


@dataclass(frozen=True)
class RetrievedQuestions:
    """The questions of a source, each asked of the passages that retrieval finds in its context."""

    source: Questions
    rag: RAG
    parts: "PromptParts | None"
    tokenizer: Any

    @property
    def names(self) -> dict[str, Any]:
        """See `Questions`."""
        return self.source.names

    def check(self, task: int, length: str, num_samples: int | None) -> int:
        """See `Questions`."""
        return self.source.check(task, length, num_samples)

    def ask(self, task: int, length: str, first: int, last: int) -> Iterator[AskedQuestion]:
        """See `Questions`."""
        for question in self.source.ask(task, length, first, last):
            yield replace(question, tokens=partial(self._read, question, task))

    def measure(self, task: int, length: str, num_samples: int) -> dict[str, Any]:
        """What retrieval finds of a cell's supporting facts: their share, and the share of questions with all of them.

        Raises:
            ValueError: a context has too few passages.
        """
        recalls = []
        for number, question in enumerate(self.source.ask(task, length, 0, num_samples)):
            try:
                retrieved = self.rag.retrieve(question.context(), question.question)
            except ValueError as error:
                raise ValueError(f"question {number + 1} of qa{task} at {length}: {error} (--rag-top-k)") from error
            if question.facts is not None and question.support:
                recalls.append(retrieved.recall(question.facts, question.support))
        return {"task": f"qa{task}", "length": length, "n": num_samples, **_summary(recalls)}

    def _read(self, question: AskedQuestion, task: int) -> "Iterator[NDArray[np.int32]]":
        retrieved = self.rag.retrieve(question.context(), question.question)
        yield prompt_tokens(retrieved.text, question.question, task, self.parts, self.tokenizer)


def _summary(recalls: Sequence[float]) -> dict[str, float | None]:
    if not recalls:
        return {"support_recall": None, "all_support": None}
    return {"support_recall": fmean(recalls), "all_support": fmean(recall == 1 for recall in recalls)}
