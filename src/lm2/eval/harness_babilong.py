"""BABILong as tasks of lm-evaluation-harness (harness_tasks/): questions made here, right by our exact match.

A task is one of bAbI's, `babilong_qa1` to `babilong_qa20`, and `babilong` is all of them. What is asked is chosen by
the harness's metadata; each length is a metric of its own. The prompt is the plain one, as in `lm2 eval babilong`, so
that a model is asked the same there and here.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lm2.data.babilong import open_maker
from lm2.data.encoding import TextEncoder
from lm2.data.lengths import parse_lengths
from lm2.data.plain import plain_prompt
from lm2.data.tokenizer import load_tokenizer
from lm2.eval.metrics import is_exact

TASKS_FOLDER = Path(__file__).parent / "harness_tasks"
# What metadata may choose, and what is so where it does not.
CHOICES: Mapping[str, Any] = {
    "lengths": "0k,1k",
    "samples": 100,
    "facts": "simulator",
    "background": "builtin",
    "seed": 0,
    # Lengths are counted in its tokens.
    "tokenizer": "builtin",
}
_TASK = "qa"


def check_metadata(metadata: Mapping[str, Any]) -> None:
    """Refuses what our tasks do not know, which the harness would pass over in silence.

    Raises:
        ValueError: another key.
    """
    for key in metadata:
        if key not in CHOICES:
            raise ValueError(f"metadata has {key!r}, but our tasks know {', '.join(CHOICES)}")


def make_rows(**metadata: Any) -> dict[str, Any]:
    """The questions of one task, as the harness calls it; its metadata hold much besides.

    Raises:
        ValueError: a choice that names nothing, or questions that cannot be made.
    """
    import datasets

    asked = {key: metadata.get(key, usual) for key, usual in CHOICES.items()}
    task, samples = int(metadata[_TASK]), int(asked["samples"])
    tokenizer = load_tokenizer(str(asked["tokenizer"]))
    encoder = TextEncoder(tokenizer, str(asked["tokenizer"]))
    maker = open_maker(str(asked["facts"]), str(asked["background"]), encoder, int(asked["seed"]))
    rows = []
    for length in parse_lengths(str(asked["lengths"])):
        maker.check(task, length, samples)
        for index in range(samples):
            sample = maker.sample(task, length, index)
            prompt = plain_prompt(sample.input, sample.question)
            row = {"task": f"qa{task}", "length": length, "index": index}
            rows.append(row | {"question": sample.question, "target": sample.target, "prompt": prompt})
    return {"test": datasets.Dataset.from_list(rows)}


def score_row(row: Mapping[str, Any], outputs: Sequence[str]) -> dict[str, float]:
    """Exact match of one answer, under the name of its length."""
    return {row["length"]: float(is_exact(row["target"], outputs[0], row["question"], row["task"]))}
