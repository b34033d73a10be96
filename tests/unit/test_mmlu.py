"""MMLU's groups against the harness's own list, their errors against drawing questions, and `lm2 tables mmlu`."""

import json
import random
from importlib import resources
from statistics import fmean, stdev

import pytest
import yaml
from tiny_models import save, tiny_lm2
from typer.testing import CliRunner

from lm2.cli.main import app
from lm2.eval.mmlu import (
    ALL,
    CATEGORIES,
    CATEGORY_OF,
    LEVELS,
    PAPER_AVERAGE,
    PAPER_PERCENT,
    PAPER_ROWS,
    SubjectScore,
    group_scores,
    level_of,
    subject_scores,
)

TAGS = {
    "mmlu_stem_tasks": "STEM",
    "mmlu_humanities_tasks": "Humanities",
    "mmlu_social_sciences_tasks": "Social Sciences",
    "mmlu_other_tasks": "Others",
}


def results(model="lm2", subjects=tuple(CATEGORY_OF), right=lambda subject: 30, n=100, prefix="mmlu_"):
    return {
        "kind": "lm2-harness",
        "version": 1,
        "model": model,
        "results": {
            "mmlu": {"acc,none": 0.3},
            **{
                f"{prefix}{name}": {"alias": name, "acc,none": right(name) / n, "acc_stderr,none": 0.1}
                for name in subjects
            },
        },
        "n-samples": {f"{prefix}{name}": {"original": 1000, "effective": n} for name in subjects},
    }


def test_subjects_and_categories_are_the_harness_s():
    folder = resources.files("lm_eval").joinpath("tasks/mmlu/default")
    found = {}
    for path in folder.iterdir():
        if path.name.startswith("mmlu_"):
            task = yaml.safe_load(path.read_text("utf-8"))
            found[task["dataset_name"]] = TAGS[task["tag"]]
    assert found == CATEGORY_OF
    assert len(found) == 57


def test_levels_are_what_names_say():
    counts = {level: sum(level_of(subject) == level for subject in CATEGORY_OF) for level in LEVELS}
    assert counts == {"High School": 14, "College": 6, "Professional": 4, "General Knowledge": 33}


def test_the_paper_s_average_is_the_mean_of_its_eight_groups():
    for numbers in PAPER_PERCENT.values():
        assert numbers[-1] == pytest.approx(fmean(numbers[:-1]), abs=0.051)
        assert len(numbers) == len(PAPER_ROWS)


def scores_of(seed: int) -> list[SubjectScore]:
    draw = random.Random(seed)
    return [
        SubjectScore(subject, right / n, n)
        for subject in CATEGORY_OF
        for n in [draw.randint(20, 300)]
        for right in [draw.randint(0, n)]
    ]


def test_a_group_counts_every_question_once():
    scores = scores_of(0)
    rows = {row.group: row for row in group_scores(scores)}
    assert list(rows) == [*CATEGORIES, *LEVELS, PAPER_AVERAGE, ALL]
    for group in (*CATEGORIES, *LEVELS, ALL):
        members = [one for one in scores if group in (ALL, CATEGORY_OF[one.subject], level_of(one.subject))]
        right, asked = sum(one.accuracy * one.n for one in members), sum(one.n for one in members)
        assert rows[group].accuracy == pytest.approx(right / asked)
        assert (rows[group].n, rows[group].num_subjects, rows[group].num_missing) == (asked, len(members), 0)
    eight = [rows[group].accuracy for group in (*CATEGORIES, *LEVELS)]
    assert rows[PAPER_AVERAGE].accuracy == pytest.approx(fmean(eight))


def test_standard_errors_are_those_of_drawing_the_questions_anew():
    scores = scores_of(1)
    expected = group_scores(scores)
    draw = random.Random(2)
    drawn = []
    for _ in range(400):
        again = [
            SubjectScore(one.subject, sum(draw.random() < one.accuracy for _ in range(one.n)) / one.n, one.n)
            for one in scores
        ]
        drawn.append([row.accuracy for row in group_scores(again)])
    for row, values in zip(expected, zip(*drawn, strict=True), strict=True):
        # The spread of 400 draws is known to 3.5%.
        assert stdev(values) == pytest.approx(row.standard_error, rel=0.15), row.group


def test_chance_is_what_the_interval_reaches():
    def all_questions(right):
        return group_scores(subject_scores(results(right=lambda _: right)))[-1]

    # The standard error of 5,700 questions at 25% is 0.57 points.
    assert all_questions(26).is_at_chance
    assert not all_questions(27).is_at_chance


def invoke(*arguments):
    return CliRunner().invoke(app, ["tables", "mmlu", *map(str, arguments)])


def write(path, document):
    path.write_text(json.dumps(document))
    return path


def cells(output: str, row: str) -> list[str]:
    [line] = [line for line in output.splitlines() if line.startswith(f"| {row} ")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_models_stand_side_by_side_with_the_paper(tmp_path):
    one = write(tmp_path / "one.json", results("lm2", right=lambda name: 50 if "physics" in name else 30))
    two = write(tmp_path / "two.json", results("llama", right=lambda _: 25))
    done = invoke(one, two, "--paper", "--json", tmp_path / "table.json")
    assert done.exit_code == 0, done.output
    # Of STEM's 19 subjects three are physics.
    assert cells(done.stdout, "STEM") == ["STEM", "19", "1,900", "33.2 ± 1.1", "25.0\\* ± 1.0", "27.2", "25.7", "28.1"]
    assert cells(done.stdout, PAPER_AVERAGE)[-1] == "29.4"
    assert cells(done.stdout, "Chance")[3:] == ["25.0"] * 5
    assert cells(done.stdout, ALL)[2] == "5,700"
    written = json.loads((tmp_path / "table.json").read_text())
    assert written["models"]["llama"][-1]["accuracy"] == pytest.approx(0.25)


def test_what_is_missing_is_told(tmp_path):
    some = [name for name in CATEGORY_OF if not name.startswith("college_")]
    done = invoke(write(tmp_path / "some.json", results(subjects=some)))
    assert cells(done.stdout, "STEM")[1] == "14 (5 missing)"
    assert not any(line.startswith("| College") for line in done.stdout.splitlines())


def test_tasks_on_local_files_count_by_their_ending(tmp_path):
    done = invoke(write(tmp_path / "own.json", results(subjects=["virology"], prefix="offline_")))
    assert cells(done.stdout, "Others")[:3] == ["Others", "1 (12 missing)", "100"]


@pytest.mark.parametrize(
    ("documents", "message"),
    [
        ([{"kind": "lm2-scores", "version": 1}], "no file of this lm2's eval harness"),
        ([results(subjects=())], "no task of MMLU is in the results"),
        ([results(), results()], "another model named 'lm2'"),
        ([results(), results("llama", n=50)], "not asked the same questions"),
        ([results() | {"results": {"mmlu_virology": {"exact_match,none": 1}}}], "has no accuracy"),
        (
            [
                {
                    key: {**of_a, **of_b} if isinstance(of_a, dict) else of_a
                    for (key, of_a), of_b in zip(
                        results(prefix="a_").items(), results(prefix="b_").values(), strict=True
                    )
                }
            ],
            "subject 'abstract_algebra' is there twice",
        ),
    ],
)
def test_what_cannot_be_a_table(tmp_path, documents, message):
    failed = invoke(*(write(tmp_path / f"{place}.json", document) for place, document in enumerate(documents)))
    assert failed.exit_code == 2
    assert message in failed.stderr


def test_results_of_the_harness_become_a_table(tmp_path):
    rows = [
        {"question": f"What is {number} and one?", "choices": ["one", "two", "three", "four"], "answer": number % 4}
        for number in range(6)
    ]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    own = tmp_path / "tasks"
    own.mkdir()
    for subject in ("college_physics", "world_religions"):
        (own / f"{subject}.yaml").write_text(
            yaml.safe_dump(
                {
                    "task": f"local_{subject}",
                    "dataset_path": "json",
                    "dataset_kwargs": {"data_files": {"test": str(data)}},
                    "test_split": "test",
                    "output_type": "multiple_choice",
                    "doc_to_text": "{{question}}",
                    "doc_to_choice": "{{choices}}",
                    "doc_to_target": "answer",
                    "metric_list": [{"metric": "acc"}],
                }
            )
        )
    model, out = save(tiny_lm2(), tmp_path / "model"), tmp_path / "results.json"
    names = "local_college_physics,local_world_religions"
    asked = CliRunner().invoke(
        app, ["eval", "harness", str(model), "--tasks", names, "--include-path", str(own), "--out", str(out)]
    )
    assert asked.exit_code == 0, (asked.output, asked.exception)
    done = invoke(out)
    assert cells(done.stdout, "College")[:3] == ["College", "1 (5 missing)", "6"]
    accuracy = json.loads(out.read_text())["results"]["local_college_physics"]["acc,none"]
    assert cells(done.stdout, "College")[3].split()[0].rstrip("\\*") == f"{100 * accuracy:.1f}"
