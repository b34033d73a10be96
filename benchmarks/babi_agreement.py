"""
Does the bAbI simulator agree with the independent solver, which reads a story's text alone?

    python benchmarks/babi_agreement.py                            # 100,000 questions of each task
    python benchmarks/babi_agreement.py --questions 1000 --tasks 3,18

Prints a row per task and writes babi_agreement.json. Fails on any disagreement but one: which pair of facts supports an
answer in task 18, where several pairs may.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from measure import run_facts

from lm2.cli.ranges import parse_tasks
from lm2.data.babi.simulator import make_stories
from lm2.data.babi.solver import Answer, solve
from lm2.data.babi.story import TASK_NAMES, Question
from lm2.data.files import write_whole

OUT = Path(__file__).parent / "results" / "babi_agreement.json"
FORMAT_VERSION = 1
MAX_EXAMPLES = 3
# Tasks whose text leaves the support open; every other disagreement is a fault of the simulator or the solver.
OPEN_SUPPORTS = {18}


def main(arguments: list[str] | None = None) -> int:
    options = _parse(arguments)
    print(f"{'task':<5}{'questions':>10}{'answers agree %':>17}{'supports agree %':>18}{'undetermined %':>16}")
    rows = []
    for task in options.tasks:
        row = compare(task, options.seed, options.questions)
        shares = [100 * row[name] / row["questions"] for name in ("answers_agree", "supports_agree", "undetermined")]
        print(f"qa{task:<3}{row['questions']:>10}{shares[0]:>17.3f}{shares[1]:>18.3f}{shares[2]:>16.3f}", flush=True)
        rows.append(row)
    results = {
        "format_version": FORMAT_VERSION,
        **run_facts("cpu", threads=1, seed=options.seed),
        "tasks": rows,
    }
    with write_whole(options.out) as file:
        json.dump(results, file, indent=1)
    failed = [f"qa{row['task']}" for row in rows if _is_fault(row)]
    print(f"wrote {options.out}; " + (f"disagreements in {', '.join(failed)}" if failed else "all agree"))
    return int(bool(failed))


def compare(task: int, seed: int, num_questions: int) -> dict:
    """Counts on how many questions the simulator and the solver agree, and keeps the first on which they do not."""
    row = {"task": task, "questions": 0, "answers_agree": 0, "supports_agree": 0, "undetermined": 0, "examples": []}
    begin = time.perf_counter()
    for index, question, answer in _questions(task, seed):
        row["questions"] += 1
        if answer is None:
            row["undetermined"] += 1
        else:
            row["answers_agree"] += answer.text == question.answer
            row["supports_agree"] += answer.support == question.support
        if answer != Answer(question.answer, question.support) and len(row["examples"]) < MAX_EXAMPLES:
            solved = answer and [answer.text, answer.support]
            simulated = [question.answer, question.support]
            row["examples"].append(
                {"story": index, "question": question.text, "simulator": simulated, "solver": solved}
            )
        if row["questions"] == num_questions:
            break
    return row | {"seconds": round(time.perf_counter() - begin, 1)}


def _questions(task: int, seed: int) -> Iterator[tuple[int, Question, Answer | None]]:
    for index, story in enumerate(make_stories(task, seed)):
        questions = [line for line in story.lines if isinstance(line, Question)]
        for question, answer in zip(questions, solve(story), strict=True):
            yield index, question, answer


def _is_fault(row: dict) -> bool:
    answers_fail = row["answers_agree"] < row["questions"]
    supports_fail = row["supports_agree"] < row["questions"] and row["task"] not in OPEN_SUPPORTS
    return answers_fail or supports_fail


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=100_000, help="per task (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the simulator (%(default)s)")
    parser.add_argument("--tasks", default=",".join(map(str, TASK_NAMES)), help="such as 1-5,7 (all)")
    parser.add_argument("--out", type=Path, default=OUT, help="JSON file (%(default)s)")
    options = parser.parse_args(arguments)
    try:
        options.tasks = parse_tasks(options.tasks)
    except ValueError as error:
        parser.error(str(error))
    if options.questions < 1:
        parser.error("--questions: at least 1")
    return options


if __name__ == "__main__":
    sys.exit(main())
