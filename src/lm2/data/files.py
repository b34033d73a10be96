"""Files that are read packed or plain; files and folders that are written whole or not at all."""

import bz2
import gzip
import lzma
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

_OPENERS: dict[str, Any] = {".xz": lzma.open, ".gz": gzip.open, ".bz2": bz2.open}


def open_text(path: Path) -> IO[str]:
    """Opens a UTF-8 text file for reading, unpacked on the way when its name ends in .xz, .gz or .bz2.

    Lines keep the line ends that the file has.

    Raises:
        OSError: the file cannot be opened.
    """
    return _OPENERS.get(path.suffix, open)(path, mode="rt", encoding="utf-8", newline="")


@contextmanager
def write_whole(path: Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Opens a file that appears under its name when the block ends without an error, and not at all otherwise.

    A file of that name stays as it was until then. The folder is made when it is missing.

    Args:
        path: Where the file is to be.
        mode: "w" for UTF-8 text with "\\n" at line ends, "wb" for bytes.
    """
    if mode not in ("w", "wb"):
        raise ValueError(f"mode is {mode!r}, but must be 'w' or 'wb'")
    path.parent.mkdir(parents=True, exist_ok=True)
    # In the same folder, because a file can be renamed within a file system only.
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    is_text = mode == "w"
    try:
        with open(descriptor, mode, encoding="utf-8" if is_text else None, newline="\n" if is_text else None) as file:
            yield file
            file.flush()
            os.fsync(descriptor)
        os.chmod(name, 0o666 & ~_umask())
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


@contextmanager
def write_whole_folder(path: Path) -> Iterator[Path]:
    """Gives a folder to write into, which appears under `path` when the block ends without an error, and not otherwise.

    A folder of that name stays as it was until then, and is replaced. Parents are made when they are missing.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Beside it, because a folder can be renamed within a file system only.
    part = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part"))
    try:
        os.chmod(part, 0o777 & ~_umask())
        yield part
        if path.exists():
            old = part.with_suffix(".old")
            path.rename(old)
            try:
                part.rename(path)
            except BaseException:
                old.rename(path)
                raise
            shutil.rmtree(old, ignore_errors=True)
        else:
            part.rename(path)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
