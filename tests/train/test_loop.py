"""What the loop computes, on a model of two blocks and real data."""

from pathlib import Path
from typing import Any

import pytest
import torch
from train.conftest import Reference
from train.toy_run import copy_run, log_of, run_toy, toy_model, toy_recipe

from lm2.train.batches import BatchSource
from lm2.train.checkpoint import TrainState, first_state, list_checkpoints
from lm2.train.config import Recipe, load_recipe
from lm2.train.curriculum import Progress
from lm2.train.distributed import Processes, join_processes, parallelize
from lm2.train.guard import NotFiniteError
from lm2.train.log import read_log
from lm2.train.loop import StepReport, check_folder, take_step, train
from lm2.train.loss import supervised_weight
from lm2.train.optim import build_optimizer

ALONE = Processes(0, 1, torch.device("cpu"))
# In the stage of up to three segments, where rows have more or fewer questions.
SECOND_STAGE = TrainState(Progress(1, 0, 3))
# One step: sums in another order.
TOLERANCE = {"rtol": 1e-5, "atol": 1e-6}


def one_step(recipe: Recipe) -> tuple[StepReport, torch.nn.Module]:
    source = BatchSource(recipe)
    model = toy_model(recipe, source.vocab_size)
    module = parallelize(model, recipe.train, ALONE)
    optimizer = build_optimizer(model, recipe.optimizer)
    batches = source.micro_batches(SECOND_STAGE.progress)
    return take_step(module, optimizer, recipe, batches, SECOND_STAGE, ALONE), model


def gradients_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def test_a_run_reduces_the_loss_and_leaves_its_folder(reference: Reference) -> None:
    rows = log_of(reference.folder, "train")
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert rows[-1]["loss"] < rows[0]["loss"] - 0.5
    assert reference.result.signal is None
    assert reference.result.state.progress.step == 6
    assert load_recipe(reference.folder / "recipe.yaml") == toy_recipe()
    names = [path.name for path in list_checkpoints(reference.folder / "checkpoints")]
    assert names == ["step_00000002", "step_00000004", "step_00000006"]


def test_stages_follow_one_another_and_are_validated_where_they_end(reference: Reference) -> None:
    rows = read_log(reference.folder / "log.jsonl")
    assert [row["stage"] for row in rows if row["kind"] == "train"] == ["one segment"] * 3 + ["up to three"] * 3
    assert [row["step"] for row in rows if row["kind"] == "validation"] == [3, 6]
    assert [row["step"] for row in rows if row.get("event") == "stage"] == [3]


def test_runs_are_repeated_bit_for_bit(reference: Reference, tmp_path: Path) -> None:
    _, model = run_toy(toy_recipe(), tmp_path / "run")
    assert all(torch.equal(weight, reference.weights[name]) for name, weight in model.state_dict().items())
    assert log_of(tmp_path / "run") == log_of(reference.folder)


@pytest.mark.parametrize("loss", [{"on": "answers"}, {"on": "weighted", "answer_weight": 5.0}])
def test_accumulation_equals_one_large_batch(loss: dict[str, Any]) -> None:
    small = toy_recipe(train={"micro_batch_size": 1, "loss": loss})
    weights = {supervised_weight(batch) for batch in BatchSource(small).micro_batches(SECOND_STAGE.progress)}
    assert len(weights) > 1, "unequal micro-batches, or there is nothing to see"
    report, model = one_step(small)
    whole_report, whole = one_step(toy_recipe(train={"micro_batch_size": 8, "loss": loss}))
    assert report.loss == pytest.approx(whole_report.loss, rel=1e-6)
    assert report.gradient_norm == pytest.approx(whole_report.gradient_norm, rel=1e-5)
    expected = gradients_of(whole)
    for name, gradient in gradients_of(model).items():
        torch.testing.assert_close(gradient, expected[name], **TOLERANCE)


def test_activation_checkpointing_changes_nothing() -> None:
    expected = gradients_of(one_step(toy_recipe())[1])
    for name, gradient in gradients_of(one_step(toy_recipe(train={"activation_checkpointing": True}))[1]).items():
        torch.testing.assert_close(gradient, expected[name], **TOLERANCE)


def test_activation_checkpointing_computes_blocks_again() -> None:
    calls = {True: 0, False: 0}
    for again in calls:
        recipe = toy_recipe(train={"activation_checkpointing": again, "batch_size": 2})
        source = BatchSource(recipe)
        model = toy_model(recipe, source.vocab_size)
        original = model.model.layers[0].mlp.forward

        def count(*args: Any, original: Any = original, again: bool = again) -> Any:
            calls[again] += 1
            return original(*args)

        model.model.layers[0].mlp.forward = count
        module = parallelize(model, recipe.train, ALONE)
        optimizer = build_optimizer(model, recipe.optimizer)
        take_step(module, optimizer, recipe, source.micro_batches(first_state().progress), first_state(), ALONE)
    assert calls == {True: 2, False: 1}


def test_bfloat16_keeps_weights_and_optimizer_in_float32() -> None:
    report, model = one_step(toy_recipe(train={"precision": "bfloat16"}))
    exact, _ = one_step(toy_recipe())
    assert report.loss == pytest.approx(exact.loss, rel=1e-2)
    assert report.loss != exact.loss
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert {gradient.dtype for gradient in gradients_of(model).values()} == {torch.float32}


def test_clipping_bounds_the_gradient_and_reports_it_as_it_was() -> None:
    report, model = one_step(toy_recipe(train={"clip_norm": 0.5}))
    norm = torch.cat([gradient.flatten() for gradient in gradients_of(model).values()]).norm()
    assert report.gradient_norm > 1
    assert float(norm) == pytest.approx(0.5, rel=1e-4)


def break_gradient(model: torch.nn.Module, forward: int, name: str) -> None:
    """From a forward pass on, a parameter's gradient is infinite while the loss is fine."""
    count = 0

    def hook(gradient: torch.Tensor) -> torch.Tensor:
        nonlocal count
        count += 1
        return gradient * float("inf") if count >= forward else gradient

    model.get_parameter(name).register_hook(hook)


def test_a_gradient_that_is_not_finite_stops_the_run_before_it_does_harm(reference: Reference, tmp_path: Path) -> None:
    recipe, folder, name = toy_recipe(), tmp_path / "run", "model.layers.1.mlp.up_proj.weight"
    with join_processes(recipe.train) as processes:
        batches = BatchSource(recipe)
        model = toy_model(recipe, batches.vocab_size)
        # Four forward passes a step, so in step 4.
        break_gradient(model, 14, name)
        with pytest.raises(NotFiniteError, match=rf"step 4: a gradient is not finite.*gradient of {name}.*train rows"):
            train(model, recipe, batches, folder, processes)
    # Steps 1 to 3 were taken, step 4 was not: the run goes on as if nothing had been.
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())
    assert [path.name for path in list_checkpoints(folder / "checkpoints")] == ["step_00000002"]
    assert [row["step"] for row in log_of(folder, "train")] == [1, 2, 3]
    _, resumed = run_toy(recipe, folder, resume=True)
    assert all(torch.equal(weight, reference.weights[name]) for name, weight in resumed.state_dict().items())


def test_a_loss_that_is_not_finite_names_its_batch_and_weight(tmp_path: Path) -> None:
    recipe = toy_recipe()
    source = BatchSource(recipe)
    model = toy_model(recipe, source.vocab_size)
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[0, 0] = float("nan")
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = build_optimizer(model, recipe.optimizer)
    batches = source.micro_batches(first_state().progress)
    with pytest.raises(NotFiniteError) as caught:
        take_step(model, optimizer, recipe, batches, first_state(), ALONE)
    assert "step 1: the loss is not finite" in str(caught.value)
    assert "first concerned: weight model.layers.1.mlp.down_proj.weight" in str(caught.value)
    assert batches[0].seed in str(caught.value)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter.nan_to_num(), before[name].nan_to_num())
    assert not optimizer.state


def test_a_run_is_not_overwritten(reference: Reference, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="exists already; give --resume to go on with it"):
        run_toy(toy_recipe(), reference.folder)
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(ValueError, match="exists already; give --out for another"):
        check_folder(tmp_path, toy_recipe(), resume=False)
    with pytest.raises(ValueError, match="has no run to go on with"):
        check_folder(tmp_path, toy_recipe(), resume=True)


def test_a_finished_run_goes_on_to_nothing(reference: Reference, tmp_path: Path) -> None:
    folder = copy_run(reference.folder, tmp_path / "run", step=6)
    result, model = run_toy(toy_recipe(), folder, resume=True)
    assert result.state.progress == reference.result.state.progress
    assert all(torch.equal(weight, reference.weights[name]) for name, weight in model.state_dict().items())
