"""The small trained LM2s in the package: they are what their papers say, and they answer."""

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from lm2.cli.load_model import load_model
from lm2.cli.main import app
from lm2.cli.options import BUILTIN_FOLDERS, BUILTIN_MODEL
from lm2.data.tokenizer import load_tokenizer
from lm2.eval.scores_json import read_scores
from lm2.train.config import load_recipe

RECIPES = Path(__file__).parents[2] / "recipes"
BUILTIN_FOLDER = BUILTIN_FOLDERS[BUILTIN_MODEL]
FOLDERS = pytest.mark.parametrize("folder", BUILTIN_FOLDERS.values(), ids=lambda folder: folder.name)
STORY = " John moved to the garden. Mary went to the office. John went to the kitchen. Question: Where is John? Answer:"


@FOLDERS
def test_they_come_with_their_recipe_log_and_record(folder: Path) -> None:
    record = json.loads((folder / "training.json").read_text("utf-8"))
    recipe = load_recipe(folder / "recipe.yaml")
    assert recipe.seed == record["seed"]
    assert recipe.schedule.done(record["steps"], record["tokens"]) >= recipe.schedule.total
    assert "+changes" not in record["commit"]
    last = json.loads((folder / "log.jsonl").read_text("utf-8").splitlines()[-1])
    assert (last["event"], last["step"]) == ("end", record["steps"])
    size = sum(path.stat().st_size for path in folder.iterdir())
    assert size < 20 * 2**20


@FOLDERS
def test_they_are_made_by_the_recipes_here(folder: Path) -> None:
    """But for the floor in evaluation, which was lower when that of qa1 was trained."""
    kept = load_recipe(folder / "recipe.yaml", ["model.config.memory_write_floor=0.1"])
    assert kept == load_recipe(RECIPES / f"{kept.name}.yaml", [f"seed={kept.seed}"])


@FOLDERS
def test_they_are_what_their_recipe_makes(folder: Path) -> None:
    """Every field of the recipe's configuration is the model's; the floor in evaluation is today's recipes'."""
    config = json.loads((folder / "config.json").read_text("utf-8"))
    wanted = load_recipe(folder / "recipe.yaml").model.config
    assert {key: config[key] for key in wanted} == wanted
    assert config["memory_write_floor"] == 0.1


@FOLDERS
def test_their_tokenizer_is_the_builtin_one(folder: Path) -> None:
    loaded = load_model(folder, "cpu", "auto", None)
    assert loaded.name == folder.name
    assert loaded.tokenizer.get_vocab() == load_tokenizer("builtin").get_vocab()


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (STORY, "kitchen"),
        (" The garden is north of the office. Question: What is north of the office? Answer:", "garden"),
        (" Mary moved to the garden. Mary went to the office. Question: Is Mary in the garden? Answer:", "no"),
        (" Mary took the apple there. Mary moved to the garden. Question: Where is the apple? Answer:", "garden"),
    ],
)
def test_the_one_of_ten_tasks_answers_several_kinds(text: str, answer: str) -> None:
    result = CliRunner().invoke(app, ["generate", "builtin-ten", text, "--max-new-tokens", "2"])
    assert result.exit_code == 0, (result.output, result.exception)
    assert result.stdout.strip() == f"{answer}."


def test_generate_answers_with_it_where_no_model_is_named() -> None:
    outputs = []
    for arguments in ([STORY], ["builtin", STORY], [str(BUILTIN_FOLDER), STORY]):
        result = CliRunner().invoke(app, ["generate", *arguments, "--max-new-tokens", "2"])
        assert result.exit_code == 0, (result.output, result.exception)
        outputs.append(result.stdout.strip())
    assert outputs == ["kitchen."] * 3


def test_a_single_word_is_a_model_that_is_not_there() -> None:
    result = CliRunner().invoke(app, ["generate", "nowhere"])
    assert result.exit_code == 2
    assert "give either a PROMPT or --prompt-file" in result.output


@pytest.mark.parametrize(("models", "name", "tasks"), [([], "lm2-qa1", "1"), (["builtin-ten"], "lm2-ten", "1,6")])
def test_they_answer_far_beyond_their_training(tmp_path: Path, models: list[str], name: str, tasks: str) -> None:
    """They were trained on up to 512 tokens. A constant answer would be right in a quarter, or half (task 6)."""
    out = tmp_path / "out"
    words = [*models, "--tasks", tasks, "--lengths", "0k,4k", "--samples", "30", "--seed", "77", "--batch-size", "10"]
    with torch.random.fork_rng():
        result = CliRunner().invoke(app, ["eval", "babilong", "--out", str(out), *words])
    assert result.exit_code == 0, (result.output, result.exception)
    for cell in read_scores(out / "scores.json").cells:
        assert cell.model == name
        assert cell.metrics["exact"].accuracy >= 0.8
