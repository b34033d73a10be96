"""A miniature of the main job: every part of it, through the command line, in seconds."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file
from train.toy_run import log_of, toy_recipe

from lm2.cli.jobs import hold_folder
from lm2.cli.load_model import load_model
from lm2.cli.reproduce import follow, recipes_of_scale
from lm2.cli.reproduce_checks import check_job
from lm2.cli.reproduce_entries import tokens_read
from lm2.eval.cost import measure_costs
from lm2.train.config import Recipe, dump_recipe, load_recipe

# Two tasks, an aim that the first stage may reach or not, and lengths within and beyond those of training.
CURRICULUM = [
    {
        "name": "one segment",
        "tasks": {1: 1.0, 4: 1.0},
        "segments": {"max": 1},
        "until": {"accuracy": 0.0, "min_steps": 2, "max_steps": 4},
    },
    {"name": "up to two", "tasks": {1: 1.0, 4: 1.0}, "segments": {"max": 2}},
]
EVALUATION = {"tasks": [1, 4], "lengths": ["0k", "1k"], "samples": 6, "batch_size": 3}


def rivals(**train: Any) -> list[Recipe]:
    own = toy_recipe(
        curriculum=CURRICULUM, evaluation=EVALUATION, train={"validate_every_steps": 1, "log_every_steps": 1, **train}
    )
    llama = {"hidden_size": 32, "intermediate_size": 102, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = {**llama, "num_key_value_heads": 2}
    return [own, replace(own, name="rival", model=replace(own.model, architecture="llama", config=config))]


def command(folder: Path, recipes: list[Recipe], *options: str) -> list[str]:
    paths = []
    for recipe in recipes:
        path = folder / f"{recipe.name}.yaml"
        path.write_text(dump_recipe(recipe), encoding="utf-8")
        paths += ["--recipe", str(path)]
    out = ["--out", str(folder / "job")] if "--out" not in options else []
    return [sys.executable, "-m", "lm2.cli.main", "reproduce", *paths, *out, *options]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}


def run(folder: Path, recipes: list[Recipe], *options: str) -> subprocess.CompletedProcess[str]:
    words = command(folder, recipes, *options)
    return subprocess.run(words, env=environment(), capture_output=True, text=True, timeout=300, check=False)


def results_of_seed_3(folder: Path) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    """What a report says of the first seed, without times."""
    report = json.loads((folder / "report.json").read_text("utf-8"))
    runs = {name: facts for name, facts in report["runs"].items() if name.endswith("seed3")}
    for facts in runs.values():
        del facts["seconds"], facts["peak_memory_bytes"]
    accuracy = {model: [cell["seeds"][0] for cell in report["accuracy"][model]] for model in ("toy", "rival")}
    return runs, accuracy


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    folder = tmp_path_factory.mktemp("whole")
    done = run(folder, rivals(), "--seed", "3", "--seed", "5", "--rag")
    assert done.returncode == 0, done.stderr
    return folder / "job", done


def test_all_of_it_is_there(job: tuple[Path, Any]) -> None:
    folder, done = job
    report = json.loads((folder / "report.json").read_text("utf-8"))
    assert set(report["runs"]) == {"toy-seed3", "toy-seed5", "rival-seed3", "rival-seed5"}
    pictures = ("training.png", "heat.png", "accuracy-qa1.png", "accuracy-qa4.png", "cost.png")
    for name in ("report.md", "report.html", *pictures):
        assert (folder / name).stat().st_size > 1000
    assert set(report["accuracy"]) == {"toy", "rival", "rival-rag"}
    assert "report.html" in done.stdout
    assert "qa4" in done.stdout


def test_accuracies_are_those_of_the_answers(job: tuple[Path, Any]) -> None:
    folder, _ = job
    report = json.loads((folder / "report.json").read_text("utf-8"))
    assert report["longest_in_training_tokens"] == 128
    for model in ("toy", "rival", "rival-rag"):
        for cell in report["accuracy"][model]:
            for seed, share in zip((3, 5), cell["seeds"], strict=True):
                path = (
                    folder / f"{model}-seed{seed}" / "eval" / "predictions" / f"{cell['task']}_{cell['length']}.jsonl"
                )
                rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
                assert len(rows) == 6
                right = sum(row["output"].strip().rstrip(".").strip() == row["target"] for row in rows)
                assert share == pytest.approx(right / 6)


def test_the_leader_is_compared_over_seeds_and_for_each(job: tuple[Path, Any]) -> None:
    folder, _ = job
    report = json.loads((folder / "report.json").read_text("utf-8"))
    sides = [(row["model"], row["baseline"], row["lengths"], row["num_runs"]) for row in report["comparisons"]]
    spans = ["within training lengths", "beyond", "all"]
    pairs = [("toy", rival, 2) for rival in ("rival", "rival-rag")]
    pairs += [(f"toy-seed{seed}", f"{rival}-seed{seed}", 1) for seed in (3, 5) for rival in ("rival", "rival-rag")]
    assert sides == [(own, other, span, runs) for own, other, runs in pairs for span in spans]
    for span in spans:
        means = {row["model"]: row["mean"] for row in report["comparisons"] if row["lengths"] == span}
        assert means["toy"] == pytest.approx((means["toy-seed3"] + means["toy-seed5"]) / 2)
    assert "toy, 2 seeds" in (folder / "report.md").read_text("utf-8")


def test_rivals_read_the_same(job: tuple[Path, Any]) -> None:
    """The same tokens in the same steps, and stages that end where the leader's did."""
    folder, _ = job
    for seed in (3, 5):
        own, other = (folder / f"{name}-seed{seed}" for name in ("toy", "rival"))
        tokens = [[(row["step"], row["tokens"], row["stage"]) for row in log_of(run, "train")] for run in (own, other)]
        assert tokens[0] == tokens[1]
        ends = [row["step"] for row in log_of(own, "event") if row["event"] == "stage"]
        followed = load_recipe(folder / "recipes" / f"rival-seed{seed}.yaml").curriculum[0].until
        assert followed is not None
        assert ([followed.steps], followed.accuracy) == (ends, None)
    assert log_of(folder / "toy-seed3", "train")[0]["loss"] != log_of(folder / "toy-seed5", "train")[0]["loss"]


@pytest.fixture(scope="module")
def own_stages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A job of as many tokens for each, in stages of their own; the rival is asked less than the leader."""
    folder = tmp_path_factory.mktemp("own")
    own, other = rivals()
    fewer = replace(other.evaluation, lengths=("0k",), samples=4)
    options = ("--own-stages", "--set", "schedule={name: wsd, total_tokens: 3000, decay_tokens: 1000}")
    recipes = [own, replace(other, evaluation=fewer)]
    # Accuracies differ, so one model may leave the first stage while the other stays.
    done = run(folder, recipes, *options, "--set", "curriculum.0.until.accuracy=0.2")
    assert done.returncode == 0, done.stderr
    again = run(folder, recipes, *options[1:], "--set", "curriculum.0.until.accuracy=0.2")
    assert again.returncode == 2
    assert "--own-stages: True != False" in again.stderr
    return folder / "job"


def test_with_stages_of_its_own_a_rival_does_not_wait_for_the_leader(own_stages: Path) -> None:
    """Each ends its first stage at its own accuracy, and the folder is not for the other kind of job."""
    for name in ("toy-seed3", "rival-seed3"):
        kept = load_recipe(own_stages / "recipes" / f"{name}.yaml").curriculum[0].until
        assert kept is not None
        assert kept.accuracy == 0.2
        seen = {row["step"]: row["accuracy"] for row in log_of(own_stages / name, "validation")}
        [end] = [row["step"] for row in log_of(own_stages / name, "event") if row["event"] == "stage"]
        assert end == next((step for step in (2, 3) if seen[step] >= 0.2), 4)
    report = json.loads((own_stages / "report.json").read_text("utf-8"))
    assert "--own-stages" in report["command"]
    assert "when it was ready itself" in (own_stages / "report.md").read_text("utf-8")


def test_a_schedule_of_tokens_makes_all_read_as_much(own_stages: Path) -> None:
    """To within the last step, before which no model has read enough; the rate follows what was read."""
    report = json.loads((own_stages / "report.json").read_text("utf-8"))
    assert "as many tokens" in (own_stages / "report.md").read_text("utf-8")
    for name in ("toy-seed3", "rival-seed3"):
        *before, last = log_of(own_stages / name, "train")
        assert before[-1]["tokens"] < 3000 <= last["tokens"] == report["runs"][name]["tokens"]
        rates = [row["learning_rate"] / 3e-3 for row in (*before, last)]
        read = [0, *(row["tokens"] for row in before)]
        assert rates == pytest.approx([min(1.0, (3000 - count) / 1000) for count in read])


def test_a_rival_may_be_asked_less(own_stages: Path) -> None:
    """It is compared on what both were asked, and its table says where it was not asked."""
    report = json.loads((own_stages / "report.json").read_text("utf-8"))
    asked = {
        model: {(cell["task"], cell["length"]): cell["n"] for cell in report["accuracy"][model]}
        for model in report["accuracy"]
    }
    assert asked["rival"] == {("qa1", "0k"): 4, ("qa4", "0k"): 4}
    assert asked["toy"] == {(task, length): 6 for task in ("qa1", "qa4") for length in ("0k", "1k")}
    assert {(row["lengths"], row["n"]) for row in report["comparisons"]} == {("within training lengths", 8)}
    assert [row["length"] for row in report["costs"]["rival"]["reading"]] == ["0k"]
    means = {(row["model"], row["length"]): row["mean"]["value"] for row in report["means"]}
    shares = [cell["seeds"][0] for cell in report["accuracy"]["toy"]]
    assert means["toy", "all"] == pytest.approx(sum(shares) / 4)
    assert ("rival", "1k") not in means
    lines = (own_stages / "report.md").read_text("utf-8").splitlines()
    assert any(re.fullmatch(r"\| rival \| qa1 \| [\d.]+ \| - \|", line) for line in lines)


def test_costs_are_those_of_what_was_read(job: tuple[Path, Any]) -> None:
    folder, _ = job
    report = json.loads((folder / "report.json").read_text("utf-8"))
    for name, model in (("toy", "toy"), ("rival", "rival"), ("rival-rag", "rival")):
        found = report["costs"][name]
        assert [row["length"] for row in found["reading"]] == ["0k", "1k"]
        loaded = load_model(folder / f"{model}-seed3" / "model", "cpu", "auto", None).model
        tokens = tokens_read(folder / f"{name}-seed3" / "eval")
        [cost] = measure_costs([loaded], list(tokens.values()), training_tokens=128, rounds=1)
        assert [row["tokens"] for row in found["reading"]] == list(tokens.values())
        assert [row["flops"] for row in found["reading"]] == [row.flops for row in cost.reading]
        read = [report["runs"][f"{model}-seed{seed}"]["tokens"] for seed in (3, 5)]
        assert found["training_flops"] == pytest.approx(cost.training_flops / 128 * sum(read) / 2)
    for without, retrieves in zip(*(report["costs"][name]["reading"] for name in ("rival", "rival-rag")), strict=True):
        assert retrieves["tokens"] < (200 if without["length"] == "1k" else 10**9)


def test_retrieval_is_told_beside_its_accuracy(job: tuple[Path, Any]) -> None:
    folder, _ = job
    report = json.loads((folder / "report.json").read_text("utf-8"))
    assert set(report["retrieval"]) == {"rival-rag-seed3", "rival-rag-seed5"}
    own = json.loads((folder / "rival-rag-seed3" / "eval" / "retrieval.json").read_text("utf-8"))
    assert report["retrieval"]["rival-rag-seed3"] == own["cells"]
    assert "Percent of the supporting facts" in (folder / "report.md").read_text("utf-8")


@pytest.mark.parametrize(
    ("scale", "models", "names"),
    [
        ("laptop", None, ["tiny", "tiny-llama", "tiny-rmt", "tiny-armt"]),
        ("laptop", "armt,lm2", ["tiny", "tiny-armt"]),
        ("laptop", "all", ["tiny", "tiny-llama", "tiny-rmt", "tiny-armt", "tiny-attend", "tiny-paper"]),
        ("gpu", None, ["gpu", "gpu-llama"]),
    ],
)
def test_models_of_a_scale(scale: str, models: str | None, names: list[str]) -> None:
    assert [path.stem for path in recipes_of_scale(scale, models)] == names


def test_models_that_a_scale_lacks() -> None:
    with pytest.raises(ValueError, match="--models has 'rmt', but --scale gpu has lm2, llama, or all"):
        recipes_of_scale("gpu", "lm2,rmt")


def test_the_recipes_of_a_scale_can_be_compared() -> None:
    check_job([load_recipe(path) for path in recipes_of_scale("laptop", "all")])


def test_the_page_needs_nothing_else(job: tuple[Path, Any]) -> None:
    folder, _ = job
    page = (folder / "report.html").read_text("utf-8")
    sources = re.findall(r'(?:src|href)="([^"]{0,30})', page)
    assert len(sources) == 5
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert "<script" not in page
    assert "http" not in re.sub(r'base64,[^"]*', "", page)


def test_the_same_command_does_nothing_twice(job: tuple[Path, Any]) -> None:
    folder, _ = job
    weights = folder / "toy-seed3" / "model" / "model.safetensors"
    before = weights.stat().st_mtime_ns
    again = run(folder.parent, rivals(), "--seed", "3", "--seed", "5", "--rag")
    assert again.returncode == 0, again.stderr
    assert weights.stat().st_mtime_ns == before


def test_another_job_in_the_folder_is_refused(job: tuple[Path, Any]) -> None:
    folder, _ = job
    refused = run(folder.parent, rivals(), "--seed", "4")
    assert refused.returncode == 2
    assert "holds another job" in refused.stderr


def test_interrupted_twice_it_ends_as_it_would_have(job: tuple[Path, Any], tmp_path: Path) -> None:
    """A closed terminal while the first model is trained, and SIGTERM when an evaluation has begun."""
    words = command(tmp_path, rivals(), "--seed", "3")
    for number, has_come in (
        (signal.SIGHUP, lambda: (tmp_path / "job" / "toy-seed3" / "checkpoints" / "step_00000002").exists()),
        (signal.SIGTERM, lambda: any(tmp_path.glob("job/*/eval/predictions/*.jsonl"))),
    ):
        # Under nohup the tests themselves ignore what is to be heard here.
        process = subprocess.Popen(
            words,
            env=environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),
        )
        until = time.monotonic() + 200
        while not has_come() and time.monotonic() < until:
            assert process.poll() is None, "it is interrupted before its end"
            time.sleep(0.02)
        process.send_signal(number)
        assert process.wait(timeout=120) == 128 + number
    done = run(tmp_path, rivals(), "--seed", "3")
    assert done.returncode == 0, done.stderr
    assert results_of_seed_3(tmp_path / "job") == results_of_seed_3(job[0])


def test_a_folder_in_use_is_refused(job: tuple[Path, Any]) -> None:
    folder, _ = job
    with hold_folder(folder):
        refused = run(folder.parent, rivals(), "--seed", "3", "--seed", "5", "--rag")
    assert refused.returncode == 2
    assert "is in use" in refused.stderr


def is_free(folder: Path) -> bool:
    try:
        with hold_folder(folder):
            return True
    except ValueError:
        return False


def test_what_a_killed_command_leaves_running_holds_the_folder(tmp_path: Path) -> None:
    """SIGKILL cannot be passed on, so the trainer goes on; another must not train the same run."""
    words = command(tmp_path, rivals(), "--seed", "3")
    process = psutil.Popen(words, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 200
    while not (trainers := process.children()) and time.monotonic() < until:
        time.sleep(0.02)
    # Suspended, so that it cannot end before the second command has looked.
    for trainer in trainers:
        trainer.suspend()
    process.kill()
    process.wait()
    refused = run(tmp_path, rivals(), "--seed", "3")
    for trainer in trainers:
        trainer.resume()
    assert refused.returncode == 2
    assert "is in use" in refused.stderr
    # What is left ends by itself, and then the folder is free.
    while not is_free(tmp_path / "job") and time.monotonic() < until:
        time.sleep(0.1)
    assert (tmp_path / "job" / "toy-seed3" / "model" / "training.json").exists()


def test_tables_know_how_models_were_trained(job: tuple[Path, Any]) -> None:
    folder, _ = job
    files = [str(folder / f"{name}-seed3" / "eval" / "scores.json") for name in ("toy", "rival")]
    words = [sys.executable, "-m", "lm2.cli.main", "tables", "babilong", *files]
    done = subprocess.run(words, env=environment(), capture_output=True, text=True, timeout=300, check=True)
    parameters = json.loads((folder / "report.json").read_text("utf-8"))["runs"]["toy-seed3"]["parameters"]
    assert f"{parameters:,}" in done.stdout
    assert "from scratch on qa1, qa4" in " ".join(done.stdout.split())


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_processes_equal_one(job: tuple[Path, Any], tmp_path: Path, parallel: str) -> None:
    options = ("--set", f"train.parallel={parallel}", "--set", "train.processes=2", "--seed", "3")
    done = run(tmp_path, rivals()[:1], *options)
    assert done.returncode == 0, done.stderr
    ours, one = (folder / "toy-seed3" for folder in (tmp_path / "job", job[0]))
    for row, expected in zip(log_of(ours, "train"), log_of(one, "train"), strict=True):
        assert row["loss"] == pytest.approx(expected["loss"], rel=5e-6)
    weights, expected_weights = (load_file(run / "model" / "model.safetensors") for run in (ours, one))
    assert weights.keys() == expected_weights.keys()
    for key, value in weights.items():
        torch.testing.assert_close(value, expected_weights[key], rtol=0, atol=5e-6)


def test_follow_ends_stages_by_the_leaders_steps() -> None:
    own, other = rivals()
    followed = follow(other, [3])
    assert followed.curriculum[0].until is not None
    assert followed.curriculum[0].until.steps == 3
    assert followed.curriculum[1] == other.curriculum[1]
    assert replace(followed, curriculum=own.curriculum, name=own.name, model=own.model) == own


def test_what_is_refused_before_work(tmp_path: Path) -> None:
    own, other = rivals()
    larger = replace(other, model=replace(other.model, config={**other.model.config, "intermediate_size": 400}))
    longer = replace(other, schedule=replace(other.schedule, total_steps=9))
    far = replace(own.evaluation, lengths=("0k", "1M"))
    more = replace(other.evaluation, samples_at={"1k": 7})
    short = replace(other, model=replace(other.model, config={**other.model.config, "max_position_embeddings": 600}))
    for recipes, options, message in (
        ([own, larger], (), "differ by more than 3% in parameters"),
        ([own, longer], (), "differ in schedule"),
        ([own, short], (), "has 1k, but its model has 600 positions"),
        ([own, other], ("--seed", "1", "--set", "seed=2"), "not both"),
        ([own, own], (), "each needs a name of its own"),
        ([replace(own, evaluation=far), replace(other, evaluation=far)], (), "are wanted of it"),
        ([own, replace(other, evaluation=more)], (), "evaluation of rival has 7 samples at 1k, but that of toy, which"),
        ([own, other], ("--scale", "laptop"), "--scale or --recipe, not both"),
        ([own, other], ("--models", "all"), "--models or --recipe, not both"),
        ([own], ("--rag",), "--rag has no effect without a model that has no memory"),
        ([own, other], ("--facts", "nowhere"), "--facts is 'nowhere'"),
        ([own, other], ("--own-stages", "--set", "curriculum.0.until={steps: 2}"), "--own-stages has no effect"),
    ):
        refused = run(tmp_path, recipes, *options)
        assert refused.returncode == 2, refused.stderr
        assert message in refused.stderr
        assert not (tmp_path / "job").exists()
