"""What verbs show: progress where someone watches, and tables that are whole where nobody does."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress


@contextmanager
def show_progress(counts: bool = False) -> "Iterator[Progress]":
    """Bars on stderr with the time left, if that is a terminal.

    Args:
        counts: Show how many are done of how many; else percent.
    """
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    done = MofNCompleteColumn() if counts else TaskProgressColumn()
    columns = (TextColumn("{task.description}"), BarColumn(), done, TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        yield progress


def table_console(plain_width: int) -> "Console":
    """Where tables are printed; `plain_width` columns wide where stdout is no terminal that would say its width.

    Names in tables may hold what rich would take for markup, so there is none.
    """
    from rich.console import Console

    console = Console(markup=False)
    return console if console.is_terminal else Console(markup=False, width=plain_width)
