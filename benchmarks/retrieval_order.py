"""
What does it cost to hand retrieved sentences over in the order of similarity instead of that of the document?

    python benchmarks/retrieval_order.py                        # tasks 1 to 3, 500 questions at each length
    python benchmarks/retrieval_order.py --tasks 2 --samples 50

The reader is the independent solver of bAbI (lm2.data.babi.solver): it makes no mistake of its own, so what it gets
wrong is what retrieval lost. Of the sentences that BM25 finds it reads the facts, in either order. A question counts as
answered where these facts determine the right answer; facts that contradict one another, as someone dropping what
another has, determine none. Prints a row for each task, length and number of sentences, and writes
retrieval_order.json.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from measure import run_facts

from lm2.baselines.rag import RAG, BM25Retriever, Retrieved, sentence_spans
from lm2.cli.ranges import parse_tasks
from lm2.data.babi.solver import answer_from
from lm2.data.babilong import Sample, open_maker
from lm2.data.encoding import TextEncoder
from lm2.data.files import write_whole
from lm2.data.tokenizer import load_tokenizer

OUT = Path(__file__).parent / "results" / "retrieval_order.json"
FORMAT_VERSION = 1
TASKS, LENGTHS, TOP_KS = (1, 2, 3), ("0k", "4k"), (5, 10, 20)
ORDERS = ("document", "similarity")


def main(arguments: list[str] | None = None) -> int:
    options = _parse(arguments)
    encoder = TextEncoder(load_tokenizer("builtin"), "builtin")
    maker = open_maker("simulator", "builtin", encoder, options.seed)
    print(f"{'task':<6}{'length':<8}{'sentences':>9}{'all facts %':>13}{'document %':>12}{'similarity %':>14}")
    rows = []
    for task in options.tasks:
        for length in LENGTHS:
            samples = [maker.sample(task, length, index) for index in range(options.samples)]
            ranked = [rank(sample) for sample in samples]
            for top_k in TOP_KS:
                row = measure(samples, ranked, top_k)
                shares = [100 * row[name] / row["n"] for name in ("with_all_support", *ORDERS)]
                print(f"{row['task']:<6}{length:<8}{top_k:>9}{shares[0]:>13.1f}{shares[1]:>12.1f}{shares[2]:>14.1f}")
                rows.append(row)
    results = {"format_version": FORMAT_VERSION, **run_facts("cpu", threads=1, seed=options.seed), "rows": rows}
    with write_whole(options.out) as file:
        json.dump(results, file, indent=1)
    print(f"wrote {options.out}")
    return 0


def rank(sample: Sample) -> Retrieved:
    """The best sentences of a sample, as many as are ever wanted, in the order of similarity."""
    context = " ".join(sample.input.split())
    num_sentences = min(max(TOP_KS), len(sentence_spans(context)))
    return RAG(BM25Retriever(), sentence_spans, num_sentences, "similarity").retrieve(context, sample.question)


def measure(samples: Sequence[Sample], ranked: Sequence[Retrieved], top_k: int) -> dict:
    """Counts, over one cell's samples, what up to `top_k` sentences hold, and what they answer in either order."""
    row = {"task": f"qa{samples[0].task}", "length": samples[0].length, "top_k": top_k, "n": len(samples)}
    row |= dict.fromkeys(("with_all_support", *ORDERS), 0)
    for sample, found in zip(samples, ranked, strict=True):
        best = found.spans[:top_k]
        row["with_all_support"] += Retrieved(found.context, best).recall(sample.facts, sample.support) == 1
        for order, spans in zip(ORDERS, (sorted(best), best), strict=True):
            sentences = [found.context[begin:end] for begin, end in spans]
            facts = [sentence for sentence in sentences if sentence in sample.facts]
            row[order] += _answer(sample.task, facts, sample.question) == sample.target
    return row


def _answer(task: int, facts: Sequence[str], question: str) -> str | None:
    try:
        answer = answer_from(task, facts, question)
    except ValueError:
        # Facts that cannot all be true in this order.
        return None
    return None if answer is None else answer.text


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=500, help="per task and length (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the samples (%(default)s)")
    parser.add_argument("--tasks", default=",".join(map(str, TASKS)), help="such as 1,3 (all: 1-3)")
    parser.add_argument("--out", type=Path, default=OUT, help="JSON file (%(default)s)")
    options = parser.parse_args(arguments)
    try:
        options.tasks = parse_tasks(options.tasks)
    except ValueError as error:
        parser.error(str(error))
    if unknown := set(options.tasks) - set(TASKS):
        parser.error(f"--tasks: {min(unknown)} is not among {', '.join(map(str, TASKS))}")
    if options.samples < 1:
        parser.error("--samples: at least 1")
    return options


if __name__ == "__main__":
    sys.exit(main())
