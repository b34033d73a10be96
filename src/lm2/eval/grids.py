"""Grids of accuracies, task x length, one per model: ours and published ones in one form, for tables and figures."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from lm2.data.lengths import context_tokens
from lm2.eval.babilong import TASK_GROUPS, Average, Cell, Scores, macro_average, task_order, wilson_interval
from lm2.eval.metrics import check_metric
from lm2.eval.reference import Reference, ReferenceModel, chance_by_task

Key = tuple[str, str]

_UNKNOWN = "not recorded"


@dataclass(frozen=True)
class GridCell:
    """One task at one length. All numbers but `n` are shares between 0 and 1.

    Attributes:
        accuracy: Share of right answers.
        low: Lower end of the Wilson 95% interval, or None where n is not known.
        high: Upper end.
        n: Samples, or None.
        majority: Accuracy of the best constant answer.
        random: Expected accuracy of a uniform guess.
        is_back_computed: Not published, but follows from a published mean.
    """

    accuracy: float
    low: float | None
    high: float | None
    n: int | None
    majority: float
    random: float
    is_back_computed: bool = False

    @property
    def is_at_chance(self) -> bool:
        """Whether the interval reaches down to the best constant answer; without one, whether the value does."""
        return (self.accuracy if self.low is None else self.low) <= self.majority


@dataclass(frozen=True)
class Grid:
    """One model with one prompt, and what a reader must know to compare it.

    Attributes:
        label: Name in tables and figures; that of a published row ends with its source.
        source: "scores" for ours, the name of the reference otherwise.
        cells: By (task, length); those that are missing were not measured or not published.
        published_means: By (group of tasks, length), as printed.
        parameters: Size, where it is known.
        metric: How answers were scored.
        training: What the model was trained on for the task.
        prompt: How it was asked.
        n_basis: Where `n` of the cells comes from.
        citation: Where the numbers come from.
        notes: What else matters.
    """

    label: str
    source: str
    cells: dict[Key, GridCell]
    published_means: dict[Key, float] = field(default_factory=dict)
    parameters: str = _UNKNOWN
    metric: str = ""
    training: str = _UNKNOWN
    prompt: str = ""
    n_basis: str = "counted"
    citation: str = ""
    notes: tuple[str, ...] = ()

    @property
    def is_ours(self) -> bool:
        return self.source == "scores"

    @property
    def tasks(self) -> tuple[str, ...]:
        return tuple(sorted({task for task, _ in self.cells}, key=task_order))

    @property
    def lengths(self) -> tuple[str, ...]:
        found = {length for _, length in (*self.cells, *self.published_means)}
        return tuple(sorted(found, key=context_tokens))


def grids_of_scores(scores: Iterable[Scores], metric: str) -> list[Grid]:
    """One grid per model and prompt, in the order in which they come.

    Raises:
        ValueError: unknown metric, or a cell is in two of the scores.
    """
    check_metric(metric)
    scores = list(scores)
    known = {model: about for each in scores for model, about in each.settings.get("models", {}).items()}
    runs: dict[tuple[str, str], dict[Key, Cell]] = {}
    for cell in (cell for each in scores for cell in each.cells):
        cells = runs.setdefault((cell.model, cell.prompt), {})
        if (cell.task, cell.length) in cells:
            raise ValueError(
                f"{cell.task} at {cell.length} of model {cell.model!r} (prompt {cell.prompt}) is there twice"
            )
        cells[cell.task, cell.length] = cell
    models = [model for model, _ in runs]
    return [
        Grid(
            label=model if models.count(model) == 1 else f"{model}, prompt {prompt}",
            source="scores",
            cells={key: _measured(cell, metric) for key, cell in cells.items()},
            metric=metric,
            prompt=prompt,
            citation="this run",
            parameters=_size(known.get(model, {}).get("parameters")),
            training=known.get(model, {}).get("training") or _UNKNOWN,
        )
        for (model, prompt), cells in runs.items()
    ]


def _size(parameters: int | None) -> str:
    return _UNKNOWN if parameters is None else f"{parameters:,}"


def _measured(cell: Cell, metric: str) -> GridCell:
    score = cell.metrics[metric]
    return GridCell(score.accuracy, score.low, score.high, cell.n, score.majority, score.random)


def grids_of_reference(reference: Reference) -> list[Grid]:
    """One grid per model of a reference. Chance is that of bAbI's test files by exact match, whatever their metric."""
    return [
        Grid(
            label=f"{model.name} ({reference.cited_as})",
            source=reference.name,
            cells=_published_cells(model),
            published_means={
                (group, length): value / 100
                for group, values in model.mean_percent.items()
                for length, value in zip(model.lengths, values, strict=True)
                if value is not None
            },
            parameters=model.parameters,
            metric=model.metric,
            training=model.training,
            prompt=model.prompt,
            n_basis=model.n_basis,
            citation=reference.source,
            notes=model.notes,
        )
        for model in reference.models
    ]


def _published_cells(model: ReferenceModel) -> dict[Key, GridCell]:
    cells = {}
    for task, values in model.accuracy_percent.items():
        chance = chance_by_task()[task]
        for length, value in zip(model.lengths, values, strict=True):
            if value is None:
                continue
            low, high = (None, None) if model.n is None else wilson_interval(round(value * model.n / 100), model.n)
            is_back_computed = (task, length) in model.back_computed
            cells[task, length] = GridCell(
                value / 100, low, high, model.n, chance.majority, chance.random, is_back_computed
            )
    return cells


def check_labels(grids: Sequence[Grid]) -> None:
    """Raises ValueError when there is no grid, or two of them have the same label."""
    labels = [grid.label for grid in grids]
    if not labels:
        raise ValueError("there is no model to show: give scores, or a reference, or both")
    if twice := [label for label in labels if labels.count(label) > 1]:
        raise ValueError(f"two models are called {twice[0]!r}: rename one")


def select(grids: Sequence[Grid], tasks: Sequence[str] | None, lengths: Sequence[str] | None) -> list[Grid]:
    """The grids with only these tasks and lengths; those with nothing left are dropped.

    Published means over a group of tasks stay where the whole group does.

    Raises:
        ValueError: a task or length that no grid has.
    """
    for name, wanted, present in (
        ("task", tasks, {task for grid in grids for task in grid.tasks}),
        ("length", lengths, {length for grid in grids for length in grid.lengths}),
    ):
        if absent := [value for value in wanted or () if value not in present]:
            raise ValueError(f"no model has the {name} {absent[0]}")

    def is_kept(key_tasks: Iterable[str], length: str) -> bool:
        return (tasks is None or set(key_tasks) <= set(tasks)) and (lengths is None or length in lengths)

    chosen = (
        replace(
            grid,
            cells={key: cell for key, cell in grid.cells.items() if is_kept([key[0]], key[1])},
            published_means={
                key: mean for key, mean in grid.published_means.items() if is_kept(TASK_GROUPS[key[0]], key[1])
            },
        )
        for grid in grids
    )
    return [grid for grid in chosen if grid.cells or grid.published_means]


def average_grid(grid: Grid, tasks: Sequence[str], lengths: Sequence[str]) -> Average:
    """Averages over all of tasks x lengths, each cell counting the same, and says which cells are missing."""
    return macro_average({key: cell.accuracy for key, cell in grid.cells.items()}, tasks, lengths)


def groups_to_average(grids: Sequence[Grid]) -> dict[str, tuple[str, ...]]:
    """Groups of tasks that some grid has in full at some length, by name; all tasks too, where that is no group."""
    groups = {
        name: tasks
        for name, tasks in TASK_GROUPS.items()
        if any(
            (name, length) in grid.published_means or _has_all(grid, tasks, length) for grid, length in _spans(grids)
        )
    }
    tasks = all_tasks(grids)
    if tasks and tasks not in groups.values():
        groups[f"all {len(tasks)} tasks" if len(tasks) > 1 else tasks[0]] = tasks
    return groups


def common_lengths(grids: Sequence[Grid], tasks: Sequence[str]) -> tuple[tuple[Grid, ...], tuple[str, ...]]:
    """The models that can be compared over `tasks`, and the lengths at which all of them have all of these.

    Lengths are chosen that keep as many of our models as possible, then as many models, then as many lengths. Both are
    empty when no model has all tasks at any length.
    """
    complete = {length: [grid for grid in grids if _has_all(grid, tasks, length)] for _, length in _spans(grids)}
    lengths = sorted((length for length in complete if complete[length]), key=context_tokens)

    def shared(models: list[Grid]) -> list[str]:
        return [length for length in lengths if all(model in complete[length] for model in models)]

    def worth(length: str) -> tuple[int, int, int]:
        models = complete[length]
        return sum(model.is_ours for model in models), len(models), len(shared(models))

    if not lengths:
        return (), ()
    models = complete[max(lengths, key=worth)]
    return tuple(models), tuple(shared(models))


def _has_all(grid: Grid, tasks: Sequence[str], length: str) -> bool:
    return all((task, length) in grid.cells for task in tasks)


def _spans(grids: Sequence[Grid]) -> Iterable[tuple[Grid, str]]:
    return ((grid, length) for grid in grids for length in grid.lengths)


def all_tasks(grids: Iterable[Grid]) -> tuple[str, ...]:
    """Tasks that some grid has, in order."""
    return tuple(sorted({task for grid in grids for task in grid.tasks}, key=task_order))


def all_lengths(grids: Iterable[Grid]) -> tuple[str, ...]:
    """Lengths that some grid has, in order."""
    return tuple(sorted({length for grid in grids for length in grid.lengths}, key=context_tokens))
