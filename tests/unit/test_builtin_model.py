"""The small trained LM2 in the package: it is what its papers say, and it answers."""

import json
from pathlib import Path

import torch
from typer.testing import CliRunner

from lm2.cli.load_model import load_model
from lm2.cli.main import app
from lm2.cli.options import BUILTIN_FOLDER
from lm2.data.tokenizer import load_tokenizer
from lm2.eval.scores_json import read_scores
from lm2.train.config import load_recipe

RECIPE = Path(__file__).parents[2] / "recipes" / "tiny.yaml"
STORY = " John moved to the garden. Mary went to the office. John went to the kitchen. Question: Where is John? Answer:"


def test_it_comes_with_its_recipe_log_and_record() -> None:
    record = json.loads((BUILTIN_FOLDER / "training.json").read_text("utf-8"))
    recipe = load_recipe(BUILTIN_FOLDER / "recipe.yaml")
    assert recipe.seed == record["seed"]
    assert record["steps"] == recipe.schedule.total_steps
    assert "+changes" not in record["commit"]
    last = json.loads((BUILTIN_FOLDER / "log.jsonl").read_text("utf-8").splitlines()[-1])
    assert (last["event"], last["step"]) == ("end", record["steps"])
    size = sum(path.stat().st_size for path in BUILTIN_FOLDER.iterdir())
    assert size < 20 * 2**20


def test_it_is_made_by_the_recipe_here() -> None:
    kept = load_recipe(BUILTIN_FOLDER / "recipe.yaml")
    assert kept == load_recipe(RECIPE, [f"seed={kept.seed}"])


def test_its_tokenizer_is_the_builtin_one() -> None:
    loaded = load_model(BUILTIN_FOLDER, "cpu", "auto", None)
    assert loaded.name == "lm2-qa1"
    assert loaded.tokenizer.get_vocab() == load_tokenizer("builtin").get_vocab()


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


def test_it_answers_far_beyond_its_training(tmp_path: Path) -> None:
    """It was trained on texts of up to 512 tokens. A constant answer would be right in about a quarter."""
    out = tmp_path / "out"
    words = ["--tasks", "1", "--lengths", "0k,4k", "--samples", "30", "--seed", "77", "--batch-size", "10"]
    with torch.random.fork_rng():
        result = CliRunner().invoke(app, ["eval", "babilong", "--out", str(out), *words])
    assert result.exit_code == 0, (result.output, result.exception)
    for cell in read_scores(out / "scores.json").cells:
        assert cell.model == "lm2-qa1"
        assert cell.metrics["exact"].accuracy >= 0.8
