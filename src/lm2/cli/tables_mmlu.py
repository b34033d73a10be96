"""`lm2 tables mmlu`: MMLU by groups of subjects, beside the paper's Table 2."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lm2.cli.options import JsonFile

if TYPE_CHECKING:
    from lm2.eval.mmlu import GroupScore


def mmlu(
    results: Annotated[list[Path], typer.Argument(help="Files that `lm2 eval harness --tasks mmlu --out` wrote.")],
    paper: Annotated[bool, typer.Option("--paper", help="Show the paper's Table 2 beside.")] = False,
    json_path: JsonFile = None,
) -> None:
    """Print MMLU by category and by level (Markdown): accuracy in %, standard error, and whether it beats chance."""
    from lm2.data.files import write_whole
    from lm2.eval.mmlu import CHANCE, group_scores, subject_scores

    if json_path is not None and json_path.resolve() in {path.resolve() for path in results}:
        raise ValueError(f"--json is {json_path}, which is one of the results; name another file")
    models: dict[str, list[GroupScore]] = {}
    for path in results:
        document = _read(path)
        if document["model"] in models:
            raise ValueError(f"{path} has another model named {document['model']!r}; rename the folder of one of them")
        try:
            models[document["model"]] = group_scores(subject_scores(document))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
    _check_same_questions(models)
    if json_path is not None:
        groups = {model: [asdict(score) for score in scores] for model, scores in models.items()}
        with write_whole(json_path) as file:
            file.write(
                json.dumps({"kind": "lm2-mmlu", "version": 1, "chance": CHANCE, "models": groups}, indent=1) + "\n"
            )
    print(_table(models, paper))


def _read(path: Path) -> dict[str, Any]:
    from lm2.cli.eval_harness import KIND, VERSION

    try:
        document = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}") from error
    if not isinstance(document, dict) or (document.get("kind"), document.get("version")) != (KIND, VERSION):
        raise ValueError(f"{path} is no file of this lm2's eval harness; give what its --out wrote")
    return document


def _check_same_questions(models: "dict[str, list[GroupScore]]") -> None:
    (first, expected), *others = models.items()
    for name, scores in others:
        if [(score.group, score.n) for score in scores] != [(score.group, score.n) for score in expected]:
            raise ValueError(f"{first} and {name} were not asked the same questions; run both with the same options")


def _table(models: "dict[str, list[GroupScore]]", paper: bool) -> str:
    from lm2.eval.mmlu import CHANCE, PAPER_PERCENT, PAPER_ROWS
    from lm2.eval.report import Table, Text, to_markdown

    published = PAPER_PERCENT if paper else {}
    rows = []
    scores_of_first = next(iter(models.values()))
    for place, row in enumerate(scores_of_first):
        ours = [_with_error(scores[place]) for scores in models.values()]
        theirs = [
            f"{dict(zip(PAPER_ROWS, numbers, strict=True))[row.group]:.1f}" if row.group in PAPER_ROWS else "-"
            for numbers in published.values()
        ]
        subjects = str(row.num_subjects) if not row.num_missing else f"{row.num_subjects} ({row.num_missing} missing)"
        rows.append([row.group, subjects, f"{row.n:,}", *ours, *theirs])
    chance = f"{100 * CHANCE:.1f}"
    rows.append(["Chance", "", "", *([chance] * len(models)), *([chance] * len(published))])
    return to_markdown(
        [
            Table(["group", "subjects", "questions", *models, *published], rows),
            Text(
                "Accuracy in %, with its standard error; * not above chance, which lies in the 95% interval or over it."
            ),
        ]
    ).rstrip("\n")


def _with_error(score: "GroupScore") -> str:
    return f"{100 * score.accuracy:.1f}{'*' if score.is_at_chance else ''} ± {100 * score.standard_error:.1f}"
