"""
Does a model know who is where, or which places were told? Questions of yes and no (qa6), by why they are answered so.

    python benchmarks/yes_and_no.py                            # the LM2 of ten tasks that ships
    python benchmarks/yes_and_no.py runs/a/model runs/b/model

Facts only, no background. Printed for each model, in percent with their number: questions whose answer is yes; no, but
the person has been there; no, but somebody else has; and no, as nobody has. Who looks for the place in what was told is
wrong on the second and third kind; who looks for person and place together, on the second.
"""

import argparse
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import torch

from lm2.cli.load_model import load_model
from lm2.cli.options import model_folder
from lm2.data.babi.story import Question, Statement
from lm2.data.facts import open_facts
from lm2.data.stream import answer_text, question_text

TASK = 6
KINDS = ("yes", "was there", "another was", "nobody was")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", type=Path, default=[Path("builtin-ten")], help="folders (builtin-ten)")
    parser.add_argument("--stories", type=int, default=120, help="of five questions each (%(default)s)")
    parser.add_argument("--most-facts", type=int, help="told before a question that counts (all)")
    parser.add_argument("--seed", type=int, default=0, help="of the stories (%(default)s)")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    print("".join(f"{kind:>18}" for kind in KINDS) + "  model")
    for folder in options.models:
        right = measure(folder, options.stories, options.seed, options.most_facts)
        print("".join(f"{_share(right[kind]):>18}" for kind in KINDS) + f"  {folder}")
    return 0


def measure(folder: Path, num_stories: int, seed: int, most_facts: int | None) -> dict[str, list[bool]]:
    """Of every question of a kind, whether the model holds its answer for likelier than the other."""
    loaded = load_model(model_folder(folder), "cpu", "auto", None)

    def encode(text: str) -> list[int]:
        return loaded.tokenizer(text, add_special_tokens=False)["input_ids"]

    first = {answer: encode(answer_text(answer))[0] for answer in ("yes", "no")}
    right = defaultdict(list)
    for num_facts, text, answer, kind in _questions(num_stories, seed):
        if most_facts is not None and num_facts > most_facts:
            continue
        with torch.inference_mode():
            logits_V = loaded.model(torch.tensor([encode(text)])).logits[0, -1]
        guess = "yes" if logits_V[first["yes"]] > logits_V[first["no"]] else "no"
        right[kind].append(guess == answer)
    return right


def _questions(num_stories: int, seed: int) -> Iterator[tuple[int, str, str, str]]:
    """Of each question: how many facts were told before it, the text up to where its answer begins, answer, kind."""
    facts = open_facts("simulator", "test", seed)
    for index in range(num_stories):
        num_facts, told, visitors = 0, "", defaultdict(set)
        for line in facts.story(TASK, index, 0).lines:
            words = line.text.strip(" .?").split()
            if isinstance(line, Statement):
                num_facts += 1
                told += f" {line.text}"
                visitors[words[-1]].add(words[0])
            elif isinstance(line, Question):
                person, there = words[1], visitors[words[-1]]
                no = "was there" if person in there else "another was" if there else "nobody was"
                kind = "yes" if line.answer == "yes" else no
                yield num_facts, told + question_text(line.text), line.answer, kind


def _share(right: list[bool]) -> str:
    return f"{100 * sum(right) / len(right):.0f} of {len(right)}" if right else "-"


if __name__ == "__main__":
    sys.exit(main())
