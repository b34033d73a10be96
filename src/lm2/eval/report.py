"""Reports: one list of blocks, written as Markdown and as one HTML page that needs nothing else.

The page holds its pictures, follows the reader's light or dark setting, and loads nothing from elsewhere.
"""

import base64
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

# What Markdown would take for markup in a name.
_MARKUP = re.compile(r"([\\`*_\[\]<>|#&~])")

_STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 0 auto; padding: 1rem; }
h1, h2 { line-height: 1.2; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .6rem; border-bottom: 1px solid #8886; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
img { max-width: 100%; height: auto; background: white; }
pre { overflow-x: auto; padding: .6rem; border: 1px solid #8886; }
"""


@dataclass(frozen=True)
class Heading:
    """A heading; level 1 is the title."""

    text: str
    level: int = 2


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str


@dataclass(frozen=True)
class Command:
    """A line for a shell."""

    text: str


@dataclass(frozen=True)
class Table:
    """A table; cells are plain text, the first column names its row."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]

    def __post_init__(self) -> None:
        assert all(len(row) == len(self.columns) for row in self.rows), "a table is rectangular"


@dataclass(frozen=True)
class Picture:
    """A PNG file beside the report, and what it shows in words."""

    name: str
    alt: str


Block = Heading | Text | Command | Table | Picture


def to_markdown(blocks: Iterable[Block]) -> str:
    """The report as Markdown; pictures are linked by their names."""
    return "\n\n".join(map(_markdown, blocks)) + "\n"


def to_html(blocks: Sequence[Block], pictures: Path) -> str:
    """The report as one page.

    Args:
        blocks: The report; its first block is the title.
        pictures: Folder of the PNG files.

    Raises:
        OSError: a picture cannot be read.
    """
    title = blocks[0]
    assert isinstance(title, Heading), "a report begins with its title"
    body = "\n".join(_html(block, pictures) for block in blocks)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title.text)}</title>\n<style>{_STYLE}</style>\n</head>\n"
        f"<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def _markdown(block: Block) -> str:
    match block:
        case Heading(text, level):
            return f"{'#' * level} {_plain(text)}"
        case Text(text):
            return _plain(text)
        case Command(text):
            return f"```\n{text}\n```"
        case Table(columns, rows):
            lines = [columns, ["---", *("---:" for _ in columns[1:])], *rows]
            cells = [line if number == 1 else [_plain(cell) for cell in line] for number, line in enumerate(lines)]
            return "\n".join(f"| {' | '.join(line)} |" for line in cells)
        case Picture(name, alt):
            return f"![{_plain(alt)}]({name})"


def _plain(text: str) -> str:
    return _MARKUP.sub(r"\\\1", " ".join(text.split()))


def _html(block: Block, pictures: Path) -> str:
    match block:
        case Heading(text, level):
            return f"<h{level}>{escape(text)}</h{level}>"
        case Text(text):
            return f"<p>{escape(text)}</p>"
        case Command(text):
            return f"<pre><code>{escape(text)}</code></pre>"
        case Table(columns, rows):
            head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in columns)
            lines = "\n".join(_html_row(row) for row in rows)
            return (
                f'<div class="wide" tabindex="0"><table>\n<thead><tr>{head}</tr></thead>\n'
                f"<tbody>\n{lines}\n</tbody>\n</table></div>"
            )
        case Picture(name, alt):
            data = base64.b64encode((pictures / name).read_bytes()).decode("ascii")
            return f'<p><img alt="{escape(alt)}" src="data:image/png;base64,{data}"></p>'


def _html_row(row: Sequence[str]) -> str:
    first, *rest = row
    cells = "".join(f"<td>{escape(cell)}</td>" for cell in rest)
    return f'<tr><th scope="row">{escape(first)}</th>{cells}</tr>'
