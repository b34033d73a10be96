"""Scores with known numbers, for tables and figures."""

from collections.abc import Mapping

from lm2.eval.babilong import Cell, MetricScore, Scores, wilson_interval
from lm2.eval.metrics import METRICS


def make_score(right: int, n: int, majority: float = 0.2, random: float = 0.1) -> MetricScore:
    low, high = wilson_interval(right, n)
    return MetricScore(right, right / n, low, high, "garden", majority, random)


def make_cell(task: str, length: str, right: int, n: int = 100, model: str = "ours", prompt: str = "plain") -> Cell:
    """So many right by exact match, one less by the official rule, one more by the substring rule."""
    rights = dict(zip(METRICS, (right, right - 1, right + 1), strict=True))
    return Cell(model, task, length, prompt, n, {name: make_score(count, n) for name, count in rights.items()})


def make_scores(rights: Mapping[tuple[str, str], int], **more) -> Scores:
    return Scores(tuple(make_cell(task, length, right, **more) for (task, length), right in rights.items()))
