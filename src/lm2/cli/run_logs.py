"""What the files of a run tell while it goes on."""

from itertools import pairwise
from pathlib import Path
from typing import Any


def read_run_log(run: Path) -> list[dict[str, Any]]:
    """The lines of a run's log; none where the run has not begun."""
    from lm2.train.log import read_log

    path = run / "log.jsonl"
    return read_log(path) if path.exists() else []


def last_step_and_tokens(run: Path) -> tuple[int, int]:
    """The last step that the log tells of and the tokens read by then; 0 and 0 if there is none."""
    return max(((row["step"], row["tokens"]) for row in read_run_log(run) if row["kind"] == "train"), default=(0, 0))


def stage_steps(run: Path) -> list[int]:
    """How many steps each stage took that has ended and has a successor."""
    ends = [0, *(row["step"] for row in read_run_log(run) if row.get("event") == "stage")]
    return [end - begin for begin, end in pairwise(ends)]


def count_predictions(folder: Path) -> int:
    """Answers in the files of predictions."""
    return sum(path.read_bytes().count(b"\n") for path in folder.glob("*.jsonl"))
