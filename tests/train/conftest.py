from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from train.toy_run import run_toy, toy_recipe

from lm2 import LM2ForCausalLM
from lm2.train.loop import TrainingResult


@dataclass(frozen=True)
class Reference:
    """A finished run that others are compared with; not to be changed."""

    folder: Path
    result: TrainingResult
    model: LM2ForCausalLM

    @property
    def weights(self) -> dict[str, Any]:
        return self.model.state_dict()


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    folder = tmp_path_factory.mktemp("reference") / "run"
    return Reference(folder, *run_toy(toy_recipe(), folder))
