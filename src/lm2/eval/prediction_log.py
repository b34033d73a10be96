"""Prediction files of a run while it goes on: rows are appended batch by batch, and a killed run leaves whole rows."""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lm2.eval.predictions import Prediction, read_predictions


def append_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Appends rows as JSON lines; when this returns, they are on the disk.

    Raises:
        OSError: they could not be written. The file may end in part of a row, which `recover_rows` drops.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    with path.open("ab") as file:
        file.write(text.encode())
        file.flush()
        os.fsync(file.fileno())


def recover_rows(path: Path) -> list[Prediction]:
    """The rows that a run has left, 0 to the last; of a last line that was cut off, the file is rid.

    Raises:
        ValueError: "file:line: what is wrong" with a whole line; or rows are missing or out of order.
        OSError: the file cannot be read or repaired.
    """
    if not path.exists():
        return []
    content = path.read_bytes()
    size = content.rfind(b"\n") + 1
    if size < len(content):
        os.truncate(path, size)
    if size == 0:
        return []
    rows = read_predictions([path])
    for index, row in enumerate(rows):
        if row.index != index:
            raise ValueError(f"{path}:{index + 1}: this is row {row.index}, but must be row {index}; give --overwrite")
    return rows
