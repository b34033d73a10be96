"""Retrieval: what is cut, found, ordered and counted, and `lm2 eval babilong --rag` as users call it."""

import json
from functools import partial
from itertools import pairwise

import pytest
from tiny_models import save, tiny_llama
from typer.testing import CliRunner

from lm2.baselines.rag import RAG, BM25Retriever, piece_spans, sentence_spans
from lm2.cli.eval import evaluate
from lm2.data.encoding import TextEncoder
from lm2.data.tokenizer import load_tokenizer

ENCODER = TextEncoder(load_tokenizer("builtin"), "builtin")
CONTEXT = (
    "Mary went to the kitchen. It rained. John moved to the office. Nobody knew why. Mary journeyed to the garden. "
    "The garden was old. Sandra went back to the hallway."
)
FACTS = (
    "Mary went to the kitchen.",
    "John moved to the office.",
    "Mary journeyed to the garden.",
    "Sandra went back to the hallway.",
)


def texts(retrieved):
    return [retrieved.context[begin:end] for begin, end in retrieved.spans]


def test_sentences_are_all_of_the_context():
    spans = sentence_spans(CONTEXT)
    assert [CONTEXT[begin:end] for begin, end in spans] == [
        "Mary went to the kitchen.",
        "It rained.",
        "John moved to the office.",
        "Nobody knew why.",
        "Mary journeyed to the garden.",
        "The garden was old.",
        "Sandra went back to the hallway.",
    ]


@pytest.mark.parametrize("num_tokens", [1, 7, 1000])
def test_pieces_have_so_many_tokens_and_are_all_of_the_context(num_tokens):
    spans = piece_spans(CONTEXT, num_tokens, ENCODER)
    ids = ENCODER.encode(CONTEXT)
    assert len(spans) == -(-len(ids) // num_tokens)
    assert spans[0][0] == 0
    assert spans[-1][1] == len(CONTEXT)
    assert all(before[1] == after[0] for before, after in pairwise(spans))
    assert all(len(ENCODER.encode(CONTEXT[begin:end])) <= num_tokens for begin, end in spans)


@pytest.mark.parametrize("order", ["document", "similarity"])
def test_words_in_common_are_found(order):
    rag = RAG(BM25Retriever(), sentence_spans, 2, order)
    found = texts(rag.retrieve(CONTEXT, "Where is Mary? "))
    assert set(found) == {"Mary went to the kitchen.", "Mary journeyed to the garden."}
    in_document = ["Mary went to the kitchen.", "Mary journeyed to the garden."]
    assert found == (in_document if order == "document" else in_document[::-1])


def test_of_equal_passages_the_later_ones_are_taken():
    context = " ".join(f"Mary went to the {place}." for place in ("kitchen", "garden", "office", "hallway"))
    rag = RAG(BM25Retriever(), sentence_spans, 2)
    assert texts(rag.retrieve(context, "Where is Mary?")) == ["Mary went to the office.", "Mary went to the hallway."]
    nothing_in_common = rag.retrieve(context, "Where is Sandra?")
    assert texts(nothing_in_common) == ["Mary went to the office.", "Mary went to the hallway."]


def test_a_rare_word_counts_more():
    rag = RAG(BM25Retriever(), sentence_spans, 1)
    context = "Mary got the apple. Mary went to the garden. Mary went to the office. Mary went to the kitchen."
    assert texts(rag.retrieve(context, "Where did Mary leave the apple?")) == ["Mary got the apple."]


def test_text_is_the_passages_with_single_spaces():
    rag = RAG(BM25Retriever(), sentence_spans, 2)
    retrieved = rag.retrieve(CONTEXT.replace(". ", ".\n\n"), "Where is Mary?")
    assert retrieved.text == "Mary went to the kitchen. Mary journeyed to the garden."


@pytest.mark.parametrize(
    ("top_k", "support", "expected"),
    [(2, (2,), 1.0), (2, (0, 2), 1.0), (2, (1, 2), 0.5), (2, (3,), 0.0), (7, (1, 3), 1)],
)
def test_recall_counts_supporting_facts(top_k, support, expected):
    retrieved = RAG(BM25Retriever(), sentence_spans, top_k).retrieve(CONTEXT, "Where is Mary?")
    assert retrieved.recall(FACTS, support) == expected


def test_recall_tells_equal_facts_apart():
    facts = ("Mary went home.", "John slept.", "Mary went home.")
    retrieved = RAG(BM25Retriever(), sentence_spans, 1).retrieve(" ".join(facts), "Where is Mary?")
    assert retrieved.recall(facts, (2,)) == 1
    assert retrieved.recall(facts, (0,)) == 0


def test_a_fact_that_is_cut_is_not_found():
    rag = RAG(BM25Retriever(), partial(piece_spans, num_tokens=3, encoder=ENCODER), 2)
    retrieved = rag.retrieve("Mary went to the kitchen.", "Where is Mary?")
    assert retrieved.recall(("Mary went to the kitchen.",), (0,)) == 0


def test_what_cannot_be_retrieved_is_refused():
    rag = RAG(BM25Retriever(), sentence_spans, 8)
    with pytest.raises(ValueError, match="top_k is 8, but the context has 7 passages"):
        rag.retrieve(CONTEXT, "Where is Mary?")
    with pytest.raises(ValueError, match="the context is empty"):
        rag.retrieve(" ", "Where is Mary?")
    with pytest.raises(ValueError, match="top_k is 0"):
        RAG(BM25Retriever(), sentence_spans, 0)


def test_without_a_number_it_is_five_or_all_there_are():
    rag = RAG(BM25Retriever(), sentence_spans)
    assert len(rag.retrieve(CONTEXT, "Where is Mary?").spans) == 5
    assert len(rag.retrieve("Mary went to the kitchen. John left.", "Where is Mary?").spans) == 2


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save(tiny_llama(), tmp_path_factory.mktemp("models") / "llama")


def invoke(*arguments: object):
    return CliRunner().invoke(evaluate, ["babilong", *map(str, arguments)])


def outputs(folder):
    rows = (folder / "predictions" / "qa1_0k.jsonl").read_text("utf-8").splitlines()
    return [(row["prompt_tokens"], row["output"]) for row in map(json.loads, rows)]


def test_pieces_as_large_as_the_context_give_the_answers_without_retrieval(model, tmp_path):
    cell = ("--tasks", "1", "--lengths", "0k", "--samples", 6, "--max-new-tokens", 4)
    retrieving = ("--rag", "bm25", "--rag-top-k", 1, "--rag-passages", 5000)
    for name, options in (("whole", ()), ("retrieved", retrieving)):
        done = invoke(model, "--out", tmp_path / name, *cell, *options)
        assert done.exit_code == 0, (done.output, done.exception)
    assert outputs(tmp_path / "whole") == outputs(tmp_path / "retrieved")
    found = json.loads((tmp_path / "retrieved" / "retrieval.json").read_text("utf-8"))
    assert found["rag"] == "bm25, 1 pieces of 5000 tokens, document order"
    assert found["cells"] == [{"task": "qa1", "length": "0k", "n": 6, "support_recall": 1.0, "all_support": 1.0}]
    assert not (tmp_path / "whole" / "retrieval.json").exists()


def test_a_long_context_becomes_a_short_prompt(model, tmp_path):
    options = ("--tasks", "1", "--lengths", "4k", "--samples", 3, "--max-new-tokens", 2, "--rag", "bm25")
    done = invoke(model, "--out", tmp_path / "out", *options)
    assert done.exit_code == 0, (done.output, done.exception)
    rows = map(json.loads, (tmp_path / "out" / "predictions" / "qa1_4k.jsonl").read_text("utf-8").splitlines())
    for row in rows:
        assert row["model"] == "llama+rag"
        assert row["prompt_tokens"] < 400
    settings = json.loads((tmp_path / "out" / "run.json").read_text("utf-8"))["settings"]
    assert settings["rag"] == "bm25, up to 5 sentences, document order"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--rag-top-k", 3), "--rag-top-k has no effect without --rag"),
        (("--rag-order", "similarity"), "--rag-order has no effect without --rag"),
        (("--rag", "bm25", "--rag-order", "best"), "--rag-order is 'best'"),
        (("--rag", "bm25", "--rag-passages", "words"), "--rag-passages is 'words'"),
        (("--rag", "bm25", "--rag-top-k", 0), "--rag-top-k is 0"),
        (("--rag", "bm25", "--rag-top-k", 50), "of qa1 at 0k: top_k is 50, but the context has"),
    ],
    ids=str,
)
def test_bad_options_are_refused_and_leave_nothing(model, tmp_path, options, message):
    done = invoke(model, "--out", tmp_path / "out", "--tasks", "1", "--lengths", "0k", "--samples", 2, *options)
    assert isinstance(done.exception, ValueError)
    assert message in str(done.exception)
    assert not (tmp_path / "out").exists()
