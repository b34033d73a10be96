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


def reproduce(
    scale: Annotated[str | None, typer.Option("--scale", help="laptop, gpu or paper (default: laptop).")] = None,
    recipes: Annotated[
        list[Path] | None, typer.Option("--recipe", help="Recipes instead of a scale's; the first one leads.")
    ] = None,
    seeds: Annotated[
        list[int] | None, typer.Option("--seed", help="A repetition for each; default: the recipe's.")
    ] = None,
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
    from lm2.cli.jobs import available_cores, hold_folder, run_jobs
    from lm2.cli.reproduce_checks import check_job
    from lm2.cli.reproduce_report import print_summary, write_report

    if scale is not None and recipes:
        raise ValueError("give --scale or --recipe, not both")
    folder = out or Path("runs") / f"reproduce-{'custom' if recipes else scale or 'laptop'}"
    changes = [*(overrides or ()), *_source_overrides(facts, background)]
    paths = recipes or _of_scale(scale or "laptop")
    by_seed = _read_all(paths, changes, list(dict.fromkeys(seeds or [])))
    if importlib.util.find_spec("matplotlib") is None:
        raise ValueError("the report's pictures need matplotlib: pip install 'lm2[viz]'")
    check_job(next(iter(by_seed.values())))
    _open_folder(folder, by_seed)
    print(f"lm2 reproduce: in {folder}; the same command goes on with it after an interruption", file=sys.stderr)
    jobs = [job for seed, rivals in by_seed.items() for job in _jobs(folder, rivals, seed)]
    is_on_gpu = any(rival.train.device == "cuda" for rivals in by_seed.values() for rival in rivals)
    most_processes = max(rival.train.processes for rivals in by_seed.values() for rival in rivals)
    slots = 1 if is_on_gpu else max(1, available_cores() // most_processes)
    with hold_folder(folder) as lock:
        run_jobs(jobs, slots, lock)
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


def _read_all(paths: list[Path], changes: list[str], seeds: list[int]) -> "dict[int, list[Recipe]]":
    """The recipes for each seed; without seeds, for the leader's own."""
    from lm2.train.config import load_recipe

    if seeds and any(change.partition("=")[0].strip() == "seed" for change in changes):
        raise ValueError("give --seed or --set seed, not both")
    seeds = seeds or [load_recipe(paths[0], changes).seed]
    return {seed: [load_recipe(path, [*changes, f"seed={seed}"]) for path in paths] for seed in seeds}


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
        if different := _differences(found["recipes"], wanted):
            raise ValueError(f"{folder} holds another job (there != given): {'; '.join(different)}. Give another --out")
        return
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} exists already and holds no job; give another --out")
    folder.mkdir(parents=True, exist_ok=True)
    with write_whole(path) as file:
        json.dump({"kind": _KIND, "version": _VERSION, "recipes": wanted}, file, indent=2)
        file.write("\n")


def _differences(found: dict[str, str], wanted: dict[str, str]) -> list[str]:
    from lm2.train.checking import build, parse_yaml
    from lm2.train.config import Recipe, differing_keys

    if found.keys() != wanted.keys():
        return [f"runs: {', '.join(found)} != {', '.join(wanted)}"]
    pairs = ((build(Recipe, parse_yaml(text)) for text in (found[name], wanted[name])) for name in wanted)
    return list(dict.fromkeys(line for pair in pairs for line in differing_keys(*pair)))


def _jobs(folder: Path, rivals: "list[Recipe]", seed: int) -> "list[Job]":
    """Training and evaluation of all rivals with one seed. Followers start when the leader is in its last stage."""
    leader = rivals[0]
    trained = [_training(folder, leader, rival) for rival in rivals]
    return [*trained, *(_evaluation(folder, rival) for rival in rivals)]


def _training(folder: Path, leader: "Recipe", rival: "Recipe") -> "Job":
    from lm2.cli.jobs import Job
    from lm2.cli.provenance import record_path
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
        is_done=lambda: record_path(run / "model").exists(),
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
    from lm2.cli.provenance import record_path
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
        is_ready=lambda: record_path(run / "model").exists(),
        progress=lambda: count_predictions(out / "predictions") / total,
    )
