"""Runs commands that depend on each other, several at a time, and stops them together."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import typer

_POLL_SECONDS = 0.2
_LINE_SECONDS = 60.0


@dataclass(frozen=True)
class Job:
    """One command of a larger piece of work.

    Attributes:
        name: In messages.
        command: Asked for when the job starts, so that it can go on with what is there.
        log: File for its output.
        is_done: Whether its result is there already.
        is_ready: Whether what it needs is there.
        progress: The part that is done, 0 to 1.
    """

    name: str
    command: Callable[[], Sequence[str]]
    log: Path
    is_done: Callable[[], bool]
    is_ready: Callable[[], bool]
    progress: Callable[[], float]


@contextmanager
def hold_folder(folder: Path) -> Iterator[int]:
    """Keeps others from working in a folder; gives the lock, which jobs get too.

    So it is also held by jobs that go on because this process was killed, and could not stop them.

    Raises:
        ValueError: somebody else holds it.
    """
    import fcntl

    path = folder / ".lock"
    with path.open("a", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(
                f"{folder} is in use, by another command or by what a killed one has left running; wait for it, or "
                f"end it (fuser {path} names it), then give the same command again"
            ) from error
        yield file.fileno()


def run_jobs(jobs: Sequence[Job], slots: int, lock: int) -> None:
    """Runs jobs in their order, as soon as they are ready and a slot is free; those that are done are left out.

    A job that fails, and SIGINT, SIGTERM or SIGHUP to this process, stop all others with SIGTERM, which lets them save.

    Args:
        jobs: A job comes after those that it needs.
        slots: Jobs at a time.
        lock: From `hold_folder`.

    Raises:
        typer.Exit: a job failed (its exit code), or a signal came (128 and its number).
    """
    waiting = [job for job in jobs if not job.is_done()]
    running: dict[Job, subprocess.Popen[bytes]] = {}
    began: dict[Job, tuple[float, float]] = {}
    received: list[int] = []
    # Who ignores a signal, such as nohup, means it.
    heard = [number for number in _SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, lambda n, _: received.append(n)) for number in heard}
    # Jobs that do not say how many threads they want share the cores.
    environment = {"OMP_NUM_THREADS": str(max(1, available_cores() // slots)), **os.environ}
    told = 0.0
    try:
        with _Bars(jobs) as show:
            while waiting or running:
                for job in list(waiting):
                    if len(running) < slots and job.is_ready():
                        waiting.remove(job)
                        began[job] = (time.monotonic(), job.progress())
                        running[job] = _start(job, lock, environment)
                assert running, "some job can always go on"
                time.sleep(_POLL_SECONDS)
                if received:
                    name = signal.Signals(received[0]).name
                    # A terminal that was closed takes no message.
                    with suppress(OSError):
                        print(f"lm2 reproduce: {name}: stopping; the same command goes on", file=sys.stderr)
                    raise typer.Exit(128 + received[0])
                is_told = time.monotonic() - told > _LINE_SECONDS
                told = time.monotonic() if is_told else told
                for job, process in list(running.items()):
                    show(job, _minutes_left(*began[job], job.progress()), is_told)
                    if (code := process.poll()) is not None:
                        del running[job]
                        if code or not job.is_done():
                            _explain(job, code)
                            raise typer.Exit(code or 1)
    finally:
        for process in running.values():
            process.terminate()
        for process in running.values():
            process.wait()
        for number, handler in before.items():
            signal.signal(number, handler)


# The last one comes when a terminal is closed or a connection is lost.
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def available_cores() -> int:
    """Processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _start(job: Job, lock: int, environment: dict[str, str]) -> "subprocess.Popen[bytes]":
    job.log.parent.mkdir(parents=True, exist_ok=True)
    with job.log.open("ab") as log:
        # In a session of its own: Ctrl-C reaches it through this process only, once.
        return subprocess.Popen(
            list(job.command()),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            pass_fds=(lock,),
            env=environment,
        )


def _explain(job: Job, code: int) -> None:
    lines = job.log.read_text("utf-8", errors="replace").splitlines()[-15:]
    print(f"lm2 reproduce: {job.name} ended with code {code}; the end of {job.log}:", *lines, sep="\n", file=sys.stderr)


def _minutes_left(began: float, at_first: float, now: float) -> float | None:
    done = now - at_first
    return (time.monotonic() - began) / done * (1 - now) / 60 if done > 0.01 else None


class _Bars:
    """Shows a bar for each job on a terminal; elsewhere a line a minute for each that runs."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

        console = Console(stderr=True)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[left]}"),
        )
        self._progress = Progress(*columns, console=console, disable=not console.is_terminal)
        self._bars = {job: self._progress.add_task(job.name, total=100, left="") for job in jobs}

    def __enter__(self) -> Callable[[Job, float | None, bool], None]:
        self._progress.start()
        return self._show

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def _show(self, job: Job, minutes: float | None, is_told: bool) -> None:
        left = "" if minutes is None else f"{minutes:.1f} min left"
        self._progress.update(self._bars[job], completed=100 * job.progress(), left=left)
        if is_told and self._progress.disable:
            print(f"lm2 reproduce: {job.name}: {job.progress():.0%} {left}", file=sys.stderr, flush=True)
