"""Background text: the long, unrelated prose in which BABILong hides a task's facts.

Three kinds, one interface: the built-in text that needs no data, a folder of books, and PG19. A background is a
sequence of sources (topics, books), opened without reading them, and a source gives its sentences in natural order.
"""

import hashlib
import lzma
import os
import sys
import zlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO, cast

from lm2.data.builtin_text import topic_sentences
from lm2.data.files import open_text
from lm2.data.sentences import book_sentences

SPLITS = ("train", "test")

# The original (deepmind/pg19) is a loading script, which `datasets` no longer runs; this is the same data as files.
_PG19_DATASET = "emozilla/pg19"
_BOOK_ENDINGS = (".txt", ".txt.gz", ".txt.xz", ".txt.bz2")


class Source(ABC):
    """One text that is never cut between splits: a book, or a topic of the built-in text."""

    name: str

    @abstractmethod
    def text(self) -> str:
        """The text as it is stored.

        Raises:
            OSError: it cannot be read.
            ValueError: it is not UTF-8, or its archive is damaged.
        """

    def sentences(self) -> list[str]:
        """The cleaned sentences in natural order, each on one line; empty for a text without prose.

        Read and cleaned anew at each call: who comes back to a source keeps what it needs.

        Raises:
            OSError: the text cannot be read.
            ValueError: it is not UTF-8, or its archive is damaged.
        """
        return book_sentences(self.text())


@dataclass(frozen=True)
class Topic(Source):
    """A topic of the built-in text, as sentences that no other topic has."""

    name: str
    clean_sentences: tuple[str, ...]

    def text(self) -> str:
        return "\n".join(self.clean_sentences)

    def sentences(self) -> list[str]:
        return list(self.clean_sentences)


@dataclass(frozen=True)
class Book(Source):
    """A text file, plain or packed."""

    name: str
    path: Path

    def text(self) -> str:
        try:
            with open_text(self.path) as file:
                content = cast(TextIO, file).buffer.read()
        except (EOFError, lzma.LZMAError, zlib.error) as error:
            raise ValueError(f"{self.path} is a damaged archive: {error}") from error
        try:
            return content.decode("utf-8").removeprefix("\ufeff")
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{self.path} is not UTF-8: byte {error.start} is 0x{content[error.start]:02x}; "
                "convert the file, for example with iconv"
            ) from error


@dataclass(frozen=True)
class DatasetRow(Source):
    """A row of a dataset in PG19's layout (`text`, `short_book_title`, `url`)."""

    name: str
    dataset: Any
    index: int

    def text(self) -> str:
        return self.dataset[self.index]["text"]


class _DatasetRows(Sequence[Source]):
    """The rows of a dataset as sources, made when they are asked for."""

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset
        # Titles repeat ("Poems"); the address at Project Gutenberg does not.
        self._names = dataset["url" if "url" in dataset.column_names else "short_book_title"]

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        number = range(len(self))[index]
        return DatasetRow(self._names[number], self._dataset, number)


@dataclass(frozen=True)
class Background:
    """Sources of one split.

    Attributes:
        spec: What it was opened with: "builtin", "pg19", or a folder.
        split: "train" or "test".
        name: What to say in outputs, such as "builtin text of Python 3.11"; holds no path but the folder's own name.
        sources: In a fixed order; nothing is read until a source is asked for its sentences.
    """

    spec: str
    split: str
    name: str
    sources: Sequence[Source]


def open_background(spec: str, split: str) -> Background:
    """Opens a background without reading its texts.

    Args:
        spec: "builtin" (Python's own `pydoc_data.topics`), "pg19" (through the `datasets` library), or a folder of
            .txt books (UTF-8; .txt.gz, .txt.xz, .txt.bz2 too), with subfolders train/ and test/ or without.
        split: "train" or "test". A folder without subfolders serves whichever is asked for; see `check_disjoint`.

    Raises:
        ValueError: split or spec is unknown, the folder holds no books, or `datasets` is missing.
        OSError: the folder or a book cannot be read, or PG19 cannot be had.
    """
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}, but must be 'train' or 'test'")
    if spec == "builtin":
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        sources = tuple(Topic(name, sentences) for name, sentences in topic_sentences(split).items())
        return Background(spec, split, f"builtin text of Python {version}", sources)
    if spec == "pg19":
        return open_pg19(split)
    return _open_folder(spec, split)


def open_pg19(split: str, dataset: str = _PG19_DATASET) -> Background:
    """Opens PG19 (Rae et al. 2020), or any dataset in its layout, through the `datasets` library.

    Args:
        split: "train" or "test".
        dataset: A name on the hub, or a local dataset folder.

    Raises:
        ValueError: the `datasets` library is missing, or the dataset lacks the columns.
        OSError: the dataset cannot be had; without a network it must be in the cache already.
    """
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise ValueError(
            "background is 'pg19', which needs the datasets library: pip install 'lm2[data]' "
            "(and the network, to download 2.3 GB once); or give a folder of books, or 'builtin'"
        ) from error
    try:
        rows = load_dataset(dataset, split=split)
    except (OSError, ValueError) as error:
        raise OSError(
            f"{dataset} ({split}) cannot be loaded: {error}. Its first use needs the network and 12 GB of disk; "
            "else give a folder of books, or 'builtin'"
        ) from error
    if "text" not in rows.column_names or not {"url", "short_book_title"} & set(rows.column_names):
        raise ValueError(f"{dataset} has the columns {rows.column_names}, but needs text and short_book_title or url")
    return Background("pg19", split, f"pg19 {split}", _DatasetRows(rows))


def _open_folder(spec: str, split: str) -> Background:
    folder = Path(spec)
    if not folder.is_dir():
        raise ValueError(f"background is {spec!r}, but must be 'builtin', 'pg19' or a folder of .txt books")
    name = folder.resolve().name
    if (folder / "train").is_dir() and (folder / "test").is_dir():
        folder, name = folder / split, f"{name}/{split}"

    books: dict[str, Book] = {}
    for path in sorted(folder.iterdir()):
        ending = "".join(path.suffixes[-2:]) if path.suffix != ".txt" else ".txt"
        if ending not in _BOOK_ENDINGS or path.name.startswith("."):
            continue
        book = Book(path.name.removesuffix(ending), path)
        if book.name in books:
            raise ValueError(f"{books[book.name].path} and {path} are one book by name: remove one of them")
        if not os.access(path, os.R_OK) or not path.is_file():
            raise PermissionError(f"{path} cannot be read")
        books[book.name] = book
    if not books:
        raise ValueError(f"background folder {folder} holds no books ({', '.join(_BOOK_ENDINGS)})")
    return Background(spec, split, name, tuple(books.values()))


def check_readable(background: Background) -> None:
    """Reads every source once, so that a bad one is known before any work.

    Raises:
        OSError: a source cannot be read.
        ValueError: a source is not UTF-8 or damaged, or no source has a sentence.
    """
    usable = False
    for source in background.sources:
        if usable:
            source.text()
        else:
            usable = bool(source.sentences())
    if not usable:
        raise ValueError(f"background {background.spec!r} ({background.split}) has no sentence of prose")


def check_disjoint(train: Background, test: Background) -> None:
    """Makes sure that no text is in both: no two books, rows or topics of one name, no two sources of one content.

    Reads every source, unless a name gives it away.

    Raises:
        ValueError: a source is shared; both are named.
        OSError: a source cannot be read.
    """
    # A book may be called `import.txt` as a topic is.
    train_names = {(type(source), source.name) for source in train.sources}
    for source in test.sources:
        if (type(source), source.name) in train_names:
            raise ValueError(_shared(train, source.name, test, source.name))
    train_digests = {_digest(source): source.name for source in train.sources}
    for source in test.sources:
        if name := train_digests.get(_digest(source)):
            raise ValueError(_shared(train, name, test, source.name))


def _digest(source: Source) -> bytes:
    return hashlib.sha256(source.text().encode()).digest()


def _shared(train: Background, train_name: str, test: Background, test_name: str) -> str:
    return (
        f"training background {train.spec!r} and test background {test.spec!r} share a source: {train_name!r} is "
        f"{test_name!r}; a model must not be tested in text that it was trained on"
    )
