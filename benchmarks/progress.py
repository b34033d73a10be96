"""Progress on the terminal, with an estimate of the time left."""

import sys
import time


class Progress:
    """
    Prints what is being measured and how long the part will still take.

    Args:
        name: of the part.
        total: work of the part in any unit; the time left supposes that work takes time in proportion.
    """

    def __init__(self, name: str, total: float):
        self._name, self._total, self._done = name, total, 0.0
        self._start = self._last_shown = time.perf_counter()
        self._label = ""

    def say(self, label: str) -> None:
        """Begins a step."""
        self._label = label
        self._show()

    def add(self, work: float) -> None:
        """Counts work as done; shows it if the last line is a while ago."""
        self._done += work
        if time.perf_counter() - self._last_shown > 20:
            self._show()

    def _show(self) -> None:
        now = time.perf_counter()
        elapsed = now - self._start
        self._last_shown = now
        share = min(self._done / self._total, 1.0)
        left = f"{elapsed * (1 - share) / share / 60:.1f} min left" if share > 0 else "time left unknown"
        text = f"[{self._name}] {self._label}: {share:.0%} after {elapsed / 60:.1f} min, about {left}"
        print(text, file=sys.stderr, flush=True)
