"""`lm2 reproduce`: trains rivals on one stream, evaluates them, and reports which is better."""

import importlib.util
import json
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lm2.cli.reproduce_entries import Entry

if TYPE_CHECKING:
    from lm2.cli.jobs import Job
    from lm2.train.config import Recipe

# Of each scale the models and their recipes; the first one leads.
SCALES = {
    "laptop": {
        "lm2": "tiny",
        "llama": "tiny-llama",
        "rmt": "tiny-rmt",
        "armt": "tiny-armt",
        "lm2-attend": "tiny-attend",
        "lm2-paper": "tiny-paper",
    },
    "ten": {"lm2": "ten", "llama": "ten-llama", "rmt": "ten-rmt", "armt": "ten-armt"},
    "gpu": {"lm2": "gpu", "llama": "gpu-llama"},
    "base": {"lm2": "base", "llama": "base-llama", "rmt": "base-rmt", "armt": "base-armt"},
    "paper": {"lm2": "paper", "llama": "paper-llama"},
}
# Compared where --models is not given, as far as the scale has them.
_USUAL = ("lm2", "llama", "rmt", "armt")
_EVERYTHING = "all"
_RECIPES = Path(__file__).parents[3] / "recipes"
_KIND, _VERSION = "lm2-reproduce", 2


def reproduce(
    scale: Annotated[
        str | None, typer.Option("--scale", help="laptop, ten, gpu, base or paper (default: laptop).")
    ] = None,
    models: Annotated[
        str | None,
        typer.Option(
            "--models",
            help="Such as lm2,llama; all: everything, with --rag (default: lm2,llama,rmt,armt, if the scale has them).",
        ),
    ] = None,
    rag: Annotated[
        bool, typer.Option("--rag", help="Evaluate models without a memory on what retrieval finds, too.")
    ] = False,
    own_stages: Annotated[
        bool, typer.Option("--own-stages", help="Every model ends stages when it is ready itself, not with the leader.")
    ] = False,
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
    """Train LM2 and its rivals, all of one size, on the same samples, evaluate all far beyond them, and report.

    Started again with the same options, it goes on where it was. The leader (first recipe) decides at which steps the
    stages end; the others change stages at the same steps, so that all read the same tokens. With --own-stages each
    changes them when it has learned them itself: in as many steps, or as many tokens, whichever the recipes count.
    """
    from lm2.cli.jobs import available_cores, hold_folder, run_jobs
    from lm2.cli.reproduce_checks import check_job
    from lm2.cli.reproduce_cost import cost_job
    from lm2.cli.reproduce_report import print_summary, write_report

    for option, given in (("--scale", scale), ("--models", models)):
        if given is not None and recipes:
            raise ValueError(f"give {option} or --recipe, not both")
    folder = out or Path("runs") / f"reproduce-{'custom' if recipes else scale or 'laptop'}"
    changes = [*(overrides or ()), *_source_overrides(facts, background)]
    paths = recipes or recipes_of_scale(scale or "laptop", models)
    retrieves = rag or models == _EVERYTHING
    by_seed = _read_all(paths, retrieves, changes, list(dict.fromkeys(seeds or [])))
    if importlib.util.find_spec("matplotlib") is None:
        raise ValueError("the report's pictures need matplotlib: pip install 'lm2[viz]'")
    if retrieves and importlib.util.find_spec("bm25s") is None:
        raise ValueError("retrieval needs bm25s: pip install 'lm2[rag]'")
    rivals = [entry.recipe for entry in next(iter(by_seed.values())) if not entry.retrieves]
    check_job(rivals)
    if own_stages and not any(stage.until and stage.until.accuracy is not None for stage in rivals[0].curriculum):
        raise ValueError("--own-stages has no effect where no stage ends by accuracy; leave it out")
    _open_folder(folder, by_seed, own_stages)
    print(f"lm2 reproduce: in {folder}; the same command goes on with it after an interruption", file=sys.stderr)
    jobs = [job for entries in by_seed.values() for job in _jobs(folder, entries, own_stages)]
    settings = [entry.recipe.train for entries in by_seed.values() for entry in entries]
    is_on_gpu = any(setting.device == "cuda" for setting in settings)
    most_processes = max(setting.processes for setting in settings)
    slots = 1 if is_on_gpu else max(1, available_cores() // most_processes)
    with hold_folder(folder) as lock:
        run_jobs(jobs, slots, lock)
        # By itself, so that models compete with nothing but one another.
        run_jobs([cost_job(folder, by_seed)], slots, lock)
        command = command_line(scale, models, rag, own_stages, recipes, by_seed, facts, background, overrides)
        report = write_report(folder, by_seed, command, own_stages)
    print_summary(report, folder)


def command_line(
    scale: str | None,
    models: str | None,
    rag: bool,
    own_stages: bool,
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
        ("--models", [models] if models else []),
        ("--recipe", recipes or []),
        ("--seed", seeds),
        ("--facts", [facts] if facts else []),
        ("--background", [background] if background else []),
        ("--set", overrides or []),
    ]
    words = [word for name, values in options for value in values for word in (name, str(value))]
    flags = [flag for flag, given in (("--rag", rag), ("--own-stages", own_stages)) if given]
    return shlex.join(["./run", "reproduce", *words, *flags])


def recipes_of_scale(scale: str, models: str | None) -> list[Path]:
    """The recipes of a scale's models that are named, the leader first.

    Raises:
        ValueError: no such scale or model, or no recipes here.
    """
    if scale not in SCALES:
        raise ValueError(f"--scale is {scale!r}, but must be {', '.join(SCALES)}")
    names = _chosen(models, scale)
    paths = [_RECIPES / f"{recipe}.yaml" for name, recipe in SCALES[scale].items() if name in names]
    if not all(path.is_file() for path in paths):
        raise ValueError(
            f"the recipes of --scale {scale} are in the project's recipes/ folder, not here: give --recipe"
        )
    return paths


def _chosen(models: str | None, scale: str) -> list[str]:
    there = list(SCALES[scale])
    if models is None:
        return [name for name in _USUAL if name in there]
    if models == _EVERYTHING:
        return there
    names = [name.strip() for name in models.split(",")]
    for name in names:
        if name not in there:
            raise ValueError(f"--models has {name!r}, but --scale {scale} has {', '.join(there)}, or {_EVERYTHING}")
    return names


def _source_overrides(facts: str | None, background: str | None) -> list[str]:
    for name, source in (("--facts", facts), ("--background", background)):
        if source is not None and not Path(source).is_dir():
            raise ValueError(f"{name} is {source!r}, but must be a folder")
    given = (("data.facts", facts), ("data.background", background))
    return [f"{key}={json.dumps(source)}" for key, source in given if source is not None]


def _read_all(paths: list[Path], rag: bool, changes: list[str], seeds: list[int]) -> dict[int, list[Entry]]:
    """What is compared, for each seed; without seeds, for the leader's own."""
    from lm2.train.config import load_recipe

    if seeds and any(change.partition("=")[0].strip() == "seed" for change in changes):
        raise ValueError("give --seed or --set seed, not both")
    by_seed = {}
    for seed in seeds or [load_recipe(paths[0], changes).seed]:
        trained = [Entry(load_recipe(path, [*changes, f"seed={seed}"])) for path in paths]
        readers = [entry for entry in trained if entry.recipe.model.architecture == "llama"]
        if rag and not readers:
            raise ValueError("--rag has no effect without a model that has no memory; name a llama, too")
        # What is retrieved is short at any length, so all that the leader is asked can be asked.
        asked = trained[0].recipe.evaluation
        retrieving = [Entry(replace(entry.recipe, evaluation=asked), retrieves=True) for entry in readers if rag]
        by_seed[seed] = [*trained, *retrieving]
    return by_seed


def _open_folder(folder: Path, by_seed: dict[int, list[Entry]], own_stages: bool) -> None:
    """Makes the job's folder, or checks that it is this job's."""
    from lm2.data.files import write_whole
    from lm2.train.config import dump_recipe

    wanted = {entry.run_name: dump_recipe(entry.recipe) for entries in by_seed.values() for entry in entries}
    path = folder / "job.json"
    if path.is_file():
        found = json.loads(path.read_text("utf-8"))
        if found.get("kind") != _KIND or found.get("version") != _VERSION:
            raise ValueError(f"{path} is no job of this lm2; give another --out")
        different = _differences(found["recipes"], wanted)
        if found["own_stages"] != own_stages:
            different.append(f"--own-stages: {found['own_stages']} != {own_stages}")
        if different:
            raise ValueError(f"{folder} holds another job (there != given): {'; '.join(different)}. Give another --out")
        return
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} exists already and holds no job; give another --out")
    folder.mkdir(parents=True, exist_ok=True)
    with write_whole(path) as file:
        json.dump({"kind": _KIND, "version": _VERSION, "own_stages": own_stages, "recipes": wanted}, file, indent=2)
        file.write("\n")


def _differences(found: dict[str, str], wanted: dict[str, str]) -> list[str]:
    from lm2.train.checking import build, parse_yaml
    from lm2.train.config import Recipe, differing_keys

    if found.keys() != wanted.keys():
        return [f"runs: {', '.join(found)} != {', '.join(wanted)}"]
    pairs = ((build(Recipe, parse_yaml(text)) for text in (found[name], wanted[name])) for name in wanted)
    return list(dict.fromkeys(line for pair in pairs for line in differing_keys(*pair)))


def _jobs(folder: Path, entries: list[Entry], own_stages: bool) -> "list[Job]":
    """Training and evaluation with one seed. Followers start when the leader is in its last stage."""
    trained = [
        _training(folder, entry if own_stages else entries[0], entry) for entry in entries if not entry.retrieves
    ]
    return [*trained, *(_evaluation(folder, entry) for entry in entries)]


def _training(folder: Path, leader: Entry, entry: Entry) -> "Job":
    """Of an entry, with stages that end where the leader's do; it may lead itself."""
    from lm2.cli.jobs import Job
    from lm2.cli.provenance import record_path
    from lm2.cli.run_logs import last_step_and_tokens, stage_steps

    run, rival = folder / entry.run_name, entry.recipe
    num_ends = len(leader.recipe.curriculum) - 1

    def command() -> list[str]:
        from lm2.data.files import write_whole
        from lm2.train.config import dump_recipe

        resolved = rival if entry is leader else follow(rival, stage_steps(folder / leader.run_name))
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
        is_done=lambda: record_path(entry.model(folder)).exists(),
        is_ready=lambda: entry is leader or len(stage_steps(folder / leader.run_name)) == num_ends,
        progress=lambda: min(1.0, rival.schedule.done(*last_step_and_tokens(run)) / rival.schedule.total),
    )


def follow(rival: "Recipe", steps: list[int]) -> "Recipe":
    """The recipe with stages that end after the leader's steps."""
    from lm2.train.sections import StageEnd

    ends = [StageEnd(steps=count) for count in steps]
    stages = [replace(stage, until=end) for stage, end in zip(rival.curriculum, [*ends, None], strict=True)]
    return replace(rival, curriculum=tuple(stages))


def _evaluation(folder: Path, entry: Entry) -> "Job":
    from lm2.cli.jobs import Job
    from lm2.cli.provenance import record_path
    from lm2.cli.run_logs import count_predictions
    from lm2.data.lengths import context_tokens

    out, asked, data = entry.results(folder), entry.recipe.evaluation, entry.recipe.data
    lengths = [length for length in asked.lengths if context_tokens(length)]

    def command() -> list[str]:
        options = {
            "--tasks": ",".join(map(str, asked.tasks)),
            "--lengths": ",".join(asked.lengths),
            "--samples": ",".join(str(asked.num_samples(length)) for length in asked.lengths),
            "--batch-size": asked.batch_size,
            "--facts": data.facts,
            "--name": entry.run_name,
            "--out": out,
        }
        if lengths and data.background is not None:
            options["--background"] = data.background
        if entry.retrieves:
            options["--rag"] = "bm25"
        words = [str(word) for option in options.items() for word in option]
        flags = ["--allow-repeats"] if asked.allow_repeats else []
        flags += ["--resume"] if (out / "run.json").exists() else []
        return [sys.executable, "-m", "lm2.cli.main", "eval", "babilong", str(entry.model(folder)), *words, *flags]

    total = len(asked.tasks) * sum(map(asked.num_samples, asked.lengths))
    return Job(
        f"evaluate {entry.run_name}",
        command,
        folder / "logs" / f"eval-{entry.run_name}.log",
        is_done=lambda: (out / "scores.json").exists(),
        is_ready=lambda: record_path(entry.model(folder)).exists(),
        progress=lambda: count_predictions(out / "predictions") / total,
    )
