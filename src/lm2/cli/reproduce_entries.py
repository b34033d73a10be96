"""What `lm2 reproduce` compares: models of recipes, and such models on what retrieval finds for them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from lm2.data.lengths import context_tokens

if TYPE_CHECKING:
    from lm2.train.config import Recipe


@dataclass(frozen=True)
class Entry:
    """One of those compared, with one seed.

    Attributes:
        recipe: Of its model.
        retrieves: It reads what retrieval finds (lm2.baselines.rag) instead of the whole context. Such an entry is not
            trained: its model is another entry's.
    """

    recipe: "Recipe"
    retrieves: bool = False

    @property
    def name(self) -> str:
        """What tables call it."""
        return f"{self.recipe.name}-rag" if self.retrieves else self.recipe.name

    @property
    def run_name(self) -> str:
        """What results call it, and its folder: name and seed."""
        return f"{self.name}-seed{self.recipe.seed}"

    def trained(self) -> "Entry":
        """The entry whose model this one uses."""
        return Entry(self.recipe)

    def model(self, folder: Path) -> Path:
        """Its model's folder in a job's."""
        return folder / self.trained().run_name / "model"

    def results(self, folder: Path) -> Path:
        """The folder of its evaluation in a job's."""
        return folder / self.run_name / "eval"


BySeed = Mapping[int, Sequence[Entry]]


def tokens_read(results: Path) -> dict[str, int]:
    """Tokens that an entry has read of a sample, by length in order: the mean over samples and tasks, rounded."""
    counts: dict[str, list[int]] = {}
    for path in sorted((results / "predictions").glob("*.jsonl")):
        for line in path.read_text("utf-8").splitlines():
            row = json.loads(line)
            counts.setdefault(row["length"], []).append(row["prompt_tokens"])
    return {length: round(fmean(counts[length])) for length in sorted(counts, key=context_tokens)}
