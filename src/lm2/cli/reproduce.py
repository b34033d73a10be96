"""`lm2 reproduce`: trains rivals on one stream, evaluates them, and reports which is better."""

import importlib.util
import json
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from lm2.cli.jobs import Job
    from lm2.train.config import Recipe

SCALES = {
    "laptop": ("tiny", "tiny-llama"),
    "gpu": ("gpu", "gpu-llama"),
    "paper": ("paper", "paper-llama"),
}
_RECIPES = Path(__file__).parents[3] / "recipes"
_KIND, _VERSION = "lm2-reproduce", 1
# What rivals must share for their results to be comparable.
_SHARED = ("data", "curriculum", "schedule", "evaluation")
_MOST_DIFFERENCE = 0.03


def reproduce(
    scale: Annotated[str | None, typer.Option("--scale", help="laptop, gpu or paper (default: laptop).")] = None,
    recipes: Annotated[
        list[Path] | None, typer.Option("--recipe", help="Recipes instead of a scale's; the first one leads.")
    ] = None,
    seeds: Annotated[list[int] | None, typer.Option("--seed", help="A repetition for each; default: 0.")] = None,
    facts: Annotated[str | None, typer.Option("--facts", help="Folder of bAbI files instead of the simulator.")] = None,
    background: Annotated[
        str | None, typer.Option("--background", help="Folder of books instead of built-in text.")
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="Change all recipes: --set train.batch_size=8. Repeatable.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="The job's folder; default: runs/reproduce-SCALE.")] = None,
) -> None:
    """Train LM2 and a Llama of its size on the same samples, evaluate both far beyond them, and write a report.

    Started again with the same options, it goes on where it was. The leader (first recipe) decides at which steps the
    stages end; the others change stages at the same steps, so that all read the same tokens.
    """
    from lm2.cli.jobs import available_cores, run_jobs
    from lm2.cli.reproduce_report import print_summary, write_report

    if scale is not None and recipes:
        raise ValueError("give --scale or --recipe, not both")
    folder = out or Path("runs") / f"reproduce-{'custom' if recipes else scale or 'laptop'}"
    changes = [*(overrides or ()), *_source_overrides(facts, background)]
    by_seed = {
        seed: [_read(path, changes, seed) for path in recipes or _of_scale(scale or "laptop")]
        for seed in dict.fromkeys(seeds or [0])
    }
    if importlib.util.find_spec("matplotlib") is None:
        raise ValueError("the report's pictures need matplotlib: pip install 'lm2[viz]'")
    for rivals in by_seed.values():
        _check_rivals(rivals)
    _check_before_work(next(iter(by_seed.values())))
    _open_folder(folder, by_seed)
    print(f"lm2 reproduce: in {folder}; the same command goes on with it after an interruption", file=sys.stderr)
    jobs = [job for seed, rivals in by_seed.items() for job in _jobs(folder, rivals, seed)]
    is_on_gpu = any(rival.train.device == "cuda" for rivals in by_seed.values() for rival in rivals)
    most_processes = max(rival.train.processes for rivals in by_seed.values() for rival in rivals)
    run_jobs(jobs, slots=1 if is_on_gpu else max(1, available_cores() // most_processes))
    report = write_report(folder, by_seed, command_line(scale, recipes, by_seed, facts, background, overrides))
    print_summary(report, folder)


def command_line(
    scale: str | None,
    recipes: list[Path] | None,
    seeds: Iterable[int],
    facts: str | None,
    background: str | None,
    overrides: list[str] | None,
) -> str:
    """The command that makes the job again."""
    import shlex

    options: list[tuple[str, Iterable[object]]] = [
        ("--scale", [scale] if scale else []),
        ("--recipe", recipes or []),
        ("--seed", seeds),
        ("--facts", [facts] if facts else []),
        ("--background", [background] if background else []),
        ("--set", overrides or []),
    ]
    words = [word for name, values in options for value in values for word in (name, str(value))]
    return shlex.join(["./run", "reproduce", *words])


def run_name(recipe: "Recipe") -> str:
    """What results call a run: recipe and seed. It is the name of its folder, too."""
    return f"{recipe.name}-seed{recipe.seed}"


def _of_scale(scale: str) -> list[Path]:
    if scale not in SCALES:
        raise ValueError(f"--scale is {scale!r}, but must be {', '.join(SCALES)}")
    paths = [_RECIPES / f"{name}.yaml" for name in SCALES[scale]]
    if not all(path.is_file() for path in paths):
        raise ValueError(
            f"the recipes of --scale {scale} are in the project's recipes/ folder, not here: give --recipe"
        )
    return paths


def _source_overrides(facts: str | None, background: str | None) -> list[str]:
    for name, source in (("--facts", facts), ("--background", background)):
        if source is not None and not Path(source).is_dir():
            raise ValueError(f"{name} is {source!r}, but must be a folder")
    given = (("data.facts", facts), ("data.background", background))
    return [f"{key}={json.dumps(source)}" for key, source in given if source is not None]


def _read(path: Path, changes: list[str], seed: int) -> "Recipe":
    from lm2.train.config import load_recipe

    return load_recipe(path, [*changes, f"seed={seed}"])


def _check_rivals(rivals: "list[Recipe]") -> None:
    from lm2.cli.build_model import build_model
    from lm2.data.tokenizer import load_tokenizer

    leader, *others = rivals
    names = [rival.name for rival in rivals]
    if len(set(names)) < len(names):
        raise ValueError(f"recipes are named {', '.join(names)}, but each needs a name of its own")
    for other in others:
        different = [key for key in _SHARED if getattr(other, key) != getattr(leader, key)]
        different += ["train.batch_size"] if other.train.batch_size != leader.train.batch_size else []
        different += ["train.loss"] if other.train.loss != leader.train.loss else []
        if different:
            raise ValueError(
                f"recipes {leader.name} and {other.name} differ in {', '.join(different)}, but rivals must read the "
                "same samples and be asked the same; make them equal"
            )
    import torch

    tokenizer = load_tokenizer(leader.data.tokenizer)
    with torch.device("meta"):
        counts = {rival.name: build_model(rival.model, tokenizer, 0).num_parameters() for rival in rivals}
    most, least = max(counts.values()), min(counts.values())
    if most > (1 + _MOST_DIFFERENCE) * least:
        sizes = ", ".join(f"{name} {count:,}" for name, count in counts.items())
        raise ValueError(f"models differ by more than {_MOST_DIFFERENCE:.0%} in parameters: {sizes}")


def _check_before_work(rivals: "list[Recipe]") -> None:
    """Tries the data at all lengths of training and evaluation, and the devices."""
    import torch

    from lm2.data.encoding import TextEncoder
    from lm2.data.lengths import context_tokens
    from lm2.data.noise import TokenizedBackground
    from lm2.data.text import open_background
    from lm2.data.tokenizer import load_tokenizer
    from lm2.train.batches import BatchSource

    leader = rivals[0]
    for rival in rivals:
        if rival.train.device == "cuda" and not torch.cuda.is_available():
            raise ValueError(
                f"train.device of {rival.name} is 'cuda', but there is no CUDA device; choose another scale"
            )
    BatchSource(
        replace(leader, train=replace(leader.train, processes=1, parallel="single", reshard_after_forward=True))
    )
    longest = max(map(context_tokens, leader.evaluation.lengths))
    if longest:
        encoder = TextEncoder(load_tokenizer(leader.data.tokenizer), leader.data.tokenizer)
        TokenizedBackground(open_background(leader.data.background or "builtin", "test"), encoder).check_fills(
            longest, leader.data.allow_repeats
        )


def _open_folder(folder: Path, by_seed: "dict[int, list[Recipe]]") -> None:
    """Makes the job's folder, or checks that it is this job's."""
    from lm2.data.files import write_whole
    from lm2.train.config import dump_recipe

    wanted = {run_name(rival): dump_recipe(rival) for rivals in by_seed.values() for rival in rivals}
    path = folder / "job.json"
    if path.is_file():
        found = json.loads(path.read_text("utf-8"))
        if found.get("kind") != _KIND or found.get("version") != _VERSION:
            raise ValueError(f"{path} is no job of this lm2; give another --out")
        different = sorted(
            name for name in {*wanted, *found["recipes"]} if wanted.get(name) != found["recipes"].get(name)
        )
        if different:
            raise ValueError(
                f"{folder} holds another job: {', '.join(different)} differ or are missing; give another --out"
            )
        return
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} exists already and holds no job; give another --out")
    folder.mkdir(parents=True, exist_ok=True)
    with write_whole(path) as file:
        json.dump({"kind": _KIND, "version": _VERSION, "recipes": wanted}, file, indent=2)
        file.write("\n")


def _jobs(folder: Path, rivals: "list[Recipe]", seed: int) -> "list[Job]":
    """Training and evaluation of all rivals with one seed. Followers start when the leader is in its last stage."""
    leader = rivals[0]
    trained = [_training(folder, leader, rival) for rival in rivals]
    return [*trained, *(_evaluation(folder, rival) for rival in rivals)]


def _training(folder: Path, leader: "Recipe", rival: "Recipe") -> "Job":
    from lm2.cli.jobs import Job
    from lm2.cli.run_logs import last_step, stage_steps

    run = folder / run_name(rival)
    num_ends = len(leader.curriculum) - 1

    def command() -> list[str]:
        from lm2.data.files import write_whole
        from lm2.train.config import dump_recipe

        resolved = rival if rival is leader else follow(rival, stage_steps(folder / run_name(leader)))
        path = folder / "recipes" / f"{run.name}.yaml"
        path.parent.mkdir(exist_ok=True)
        with write_whole(path) as file:
            file.write(dump_recipe(resolved))
        arguments = ["train", str(path), "--out", str(run), *(["--resume"] if (run / "recipe.yaml").exists() else [])]
        launcher = ["-m", "lm2.cli.main"]
        if rival.train.processes > 1:
            launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={rival.train.processes}"]
            launcher = [*launch, *launcher]
        return [sys.executable, *launcher, *arguments]

    return Job(
        f"train {run.name}",
        command,
        folder / "logs" / f"train-{run.name}.log",
        is_done=lambda: (run / "model" / "config.json").exists(),
        is_ready=lambda: rival is leader or len(stage_steps(folder / run_name(leader))) == num_ends,
        progress=lambda: last_step(run) / rival.schedule.total_steps,
    )


def follow(rival: "Recipe", steps: list[int]) -> "Recipe":
    """The recipe with stages that end after the leader's steps."""
    from lm2.train.sections import StageEnd

    ends = [StageEnd(steps=count) for count in steps]
    stages = [replace(stage, until=end) for stage, end in zip(rival.curriculum, [*ends, None], strict=True)]
    return replace(rival, curriculum=tuple(stages))


def _evaluation(folder: Path, rival: "Recipe") -> "Job":
    from lm2.cli.jobs import Job
    from lm2.cli.run_logs import count_predictions
    from lm2.data.lengths import context_tokens

    run, asked, data = folder / run_name(rival), rival.evaluation, rival.data
    out = run / "eval"
    lengths = [length for length in asked.lengths if context_tokens(length)]

    def command() -> list[str]:
        options = {
            "--tasks": ",".join(map(str, asked.tasks)),
            "--lengths": ",".join(asked.lengths),
            "--samples": asked.samples,
            "--batch-size": asked.batch_size,
            "--facts": data.facts,
            "--name": run.name,
            "--out": out,
        }
        if lengths and data.background is not None:
            options["--background"] = data.background
        words = [str(word) for option in options.items() for word in option]
        flags = ["--allow-repeats"] if data.allow_repeats and lengths else []
        flags += ["--resume"] if (out / "run.json").exists() else []
        return [sys.executable, "-m", "lm2.cli.main", "eval", "babilong", str(run / "model"), *words, *flags]

    total = len(asked.tasks) * len(asked.lengths) * asked.samples
    return Job(
        f"evaluate {run.name}",
        command,
        folder / "logs" / f"eval-{run.name}.log",
        is_done=lambda: (out / "scores.json").exists(),
        is_ready=lambda: (run / "model" / "config.json").exists(),
        progress=lambda: count_predictions(out / "predictions") / total,
    )
