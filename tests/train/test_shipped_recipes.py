"""Every recipe in recipes/ trains, through `lm2 train`, two steps in each of its stages.

What a test machine lacks is set smaller: processes, GPUs, widths, rows, the hub's tokenizer and PG19. All else is as it
ships: every stage with its tasks, questions and lengths in segments.
"""

from pathlib import Path

import pytest
import typer
from train.toy_run import log_of
from typer.testing import CliRunner

from lm2.cli.train import train
from lm2.train.config import load_recipe

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))
SMALLER = {
    "train.device": "cpu",
    "train.parallel": "single",
    "train.processes": "1",
    "train.reshard_after_forward": "true",
    "train.compile": "false",
    "train.threads": "1",
    "train.batch_size": "2",
    "train.micro_batch_size": "1",
    "train.validate_every_steps": "2",
    "train.validation_samples": "2",
    "train.log_every_steps": "1",
    "train.tensorboard": "false",
    "schedule.warmup_steps": "1",
    "data.tokenizer": "builtin",
    "data.background": "builtin",
    "model.config.vocab_size": "2048",
    "model.config.hidden_size": "32",
    "model.config.intermediate_size": "32",
    "model.config.num_hidden_layers": "2",
    "model.config.num_attention_heads": "2",
    "model.config.num_key_value_heads": "2",
}


def overrides(path: Path) -> list[str]:
    """Of the recipe at `path`: smaller, and two steps a stage."""
    recipe = load_recipe(path)
    num_stages = len(recipe.curriculum)
    changes = SMALLER | {"schedule.total_steps": str(2 * num_stages)}
    if recipe.schedule.decay is not None:
        changes["schedule.decay_steps"] = "1"
    if recipe.schedule.unit == "tokens":
        changes |= {"schedule.total_tokens": "null", "schedule.decay_tokens": "null"}
    if recipe.train.parallel != "fsdp":
        del changes["train.reshard_after_forward"]
    for token in ("bos_token_id", "eos_token_id", "pad_token_id"):
        if (recipe.model.config.get(token) or 0) > 1:
            changes[f"model.config.{token}"] = "1"
    if recipe.model.config.get("memory_design") == "paper":
        changes |= {"model.config.num_memory_slots": "32", "model.config.segment_length": "32"}
    if recipe.data.background not in ("builtin", None):
        # The built-in test text is shorter than the longest samples.
        changes["data.segment_length_tokens"] = "96"
    for stage in range(num_stages - 1):
        changes[f"curriculum.{stage}.until"] = "{steps: 2}"
    return [f"{key}={value}" for key, value in changes.items()]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_two_steps_of_every_stage(tmp_path: Path, path: Path) -> None:
    app = typer.Typer()
    app.command()(train)
    options = [option for change in overrides(path) for option in ("--set", change)]
    done = CliRunner().invoke(app, [str(path), "--out", str(tmp_path / "run"), *options])
    assert done.exit_code == 0, done.output
    stages = [row["stage"] for row in log_of(tmp_path / "run", "train")]
    assert stages == [stage.name for stage in load_recipe(path).curriculum for _ in range(2)]
    assert (tmp_path / "run" / "model" / "model.safetensors").exists()
