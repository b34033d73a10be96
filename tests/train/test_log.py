"""What a run tells, and what a log is after an interruption."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from train.conftest import Reference
from train.toy_run import toy_recipe

from lm2.train.distributed import Processes
from lm2.train.gates import record_gates
from lm2.train.log import RunLog, check_loggers, read_log

ALONE = Processes(0, 1, torch.device("cpu"))


def test_lines_are_complete(reference: Reference) -> None:
    rows = read_log(reference.folder / "log.jsonl")
    train = [row for row in rows if row["kind"] == "train"]
    assert set(train[0]) == {
        "kind",
        "step",
        "stage",
        "loss",
        "gradient_norm",
        "learning_rate",
        "tokens",
        "seconds",
        "tokens_per_second",
        "memory_bytes",
    }
    # Warm-up of two steps to the peak of 3e-3; eight rows of 64 tokens in the first stage.
    assert [row["learning_rate"] for row in train[:3]] == [0.0015, 0.003, 0.003]
    assert [row["tokens"] for row in train[:3]] == [512, 1024, 1536]
    assert train[0]["memory_bytes"] > 10**7
    assert [row["seconds"] for row in train] == sorted(row["seconds"] for row in train)
    (first, second) = [row for row in rows if row["kind"] == "validation"]
    assert 0 <= first["accuracy"] <= 1
    assert first["questions"] > 0
    # In one segment nothing is written, so there is no input gate to see.
    assert sum("input_gate" in name for name in first["gates"]) == 0
    assert sum("input_gate" in name for name in second["gates"]) == 2
    assert all(0 < gate < 1 for gate in second["gates"].values())
    assert rows[0]["event"] == "start"
    assert rows[-1]["event"] == "end"


def test_lines_of_lost_steps_are_dropped(tmp_path: Path) -> None:
    recipe = toy_recipe()
    with RunLog(tmp_path, recipe, 0, 0, is_first=True) as log:
        for step in range(1, 6):
            log.write("train", step, loss=1.0 / step)
    with (tmp_path / "log.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"kind": "train", "step": 6, "lo')
    with RunLog(tmp_path, recipe, 3, 300, is_first=True) as log:
        log.write("train", 4, loss=0.1)
    assert [(row["step"], row["loss"]) for row in read_log(tmp_path / "log.jsonl")] == [
        (1, 1.0),
        (2, 0.5),
        (3, 1.0 / 3),
        (4, 0.1),
    ]


def test_only_the_first_process_writes(tmp_path: Path) -> None:
    with RunLog(tmp_path, toy_recipe(), 0, 0, is_first=False) as log:
        log.write("train", 1, loss=1.0)
    assert not list(tmp_path.iterdir())


def test_quiet_where_nobody_looks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with RunLog(tmp_path, toy_recipe(), 0, 0, is_first=True) as log:
        log.write("train", 1, loss=1.0, tokens_per_second=10.0)
        log.show(1, 100, "one segment")
    assert capsys.readouterr() == ("", "")


def test_the_bar_shows_what_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "200")
    with RunLog(tmp_path, toy_recipe(), 0, 0, is_first=True) as log:
        log.write("train", 1, loss=1.25, tokens_per_second=12345.0, memory_bytes=2_500_000_000)
        log.write("validation", 1, accuracy=0.625, loss=2.0, gates={"a": 0.25, "b": 0.5})
        log.show(1, 100, "one segment")
    shown = capsys.readouterr().err
    for text in ("one segment", "loss 1.250", "accuracy 62.5%", "12,345 tokens/s", "2.5 GB", "gates 0.25 to 0.50"):
        assert text in shown


def test_gates_are_means_of_sigmoids() -> None:
    model = torch.nn.ModuleDict({"some_gate": torch.nn.Linear(1, 1), "gate_proj": torch.nn.Linear(1, 1)})
    with torch.no_grad():
        model["some_gate"].weight.fill_(1.0)
        model["some_gate"].bias.zero_()
    with record_gates(model) as gates:
        model["some_gate"](torch.tensor([[0.0], [100.0]]))
        model["some_gate"](torch.tensor([[-100.0]]))
        model["gate_proj"](torch.tensor([[0.0]]))
    model["some_gate"](torch.tensor([[100.0]]))
    assert gates.means(ALONE) == {"some_gate": pytest.approx(0.375)}


@pytest.mark.parametrize("package", ["tensorboard", "wandb"])
def test_a_logger_that_is_not_installed_is_refused(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=rf"train\.{package} is true, but {package} is not installed: pip install"):
        check_loggers(toy_recipe(train={package: True}))


def test_tensorboard_has_the_numbers(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with RunLog(tmp_path, toy_recipe(train={"tensorboard": True}), 0, 0, is_first=True) as log:
        log.write("train", 1, stage="a", loss=1.5)
        log.write("validation", 1, accuracy=0.25, gates={"a": 0.5})
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert {tag: [event.value for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]} == {
        "train/loss": [1.5],
        "validation/accuracy": [0.25],
        "validation/gates/a": [0.5],
    }
    assert [json.loads(line)["step"] for line in (tmp_path / "log.jsonl").read_text().splitlines()] == [1, 1]
