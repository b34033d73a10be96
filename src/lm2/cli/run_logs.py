"""What the files of a run tell while it goes on."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def read_log(run: Path) -> Iterator[dict[str, Any]]:
    """The lines of a run's log; one that is being written just now is left out."""
    path = run / "log.jsonl"
    if not path.exists():
        return
    for line in path.read_text("utf-8").splitlines(keepends=True):
        if line.endswith("\n"):
            yield json.loads(line)


def last_step(run: Path) -> int:
    """The last step that the log tells of; 0 if there is none."""
    return max((row["step"] for row in read_log(run)), default=0)


def stage_steps(run: Path) -> list[int]:
    """How many steps each stage took that has ended and has a successor."""
    ends = [0, *(row["step"] for row in read_log(run) if row.get("event") == "stage")]
    return [end - begin for begin, end in zip(ends, ends[1:], strict=False)]


def count_predictions(folder: Path) -> int:
    """Answers in the files of predictions."""
    return sum(path.read_bytes().count(b"\n") for path in folder.glob("*.jsonl"))
