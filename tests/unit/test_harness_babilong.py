"""BABILong as tasks of lm-evaluation-harness: the questions and the scoring of `lm2 eval babilong`."""

import json

import numpy as np
import pytest
import yaml
from tiny_models import save, tiny_lm2
from typer.testing import CliRunner

from lm2.cli.eval import evaluate
from lm2.cli.eval_babilong import open_questions
from lm2.data.encoding import TextEncoder
from lm2.data.lengths import OFFICIAL_LENGTHS
from lm2.data.tokenizer import load_tokenizer
from lm2.eval.harness_babilong import CHOICES, TASKS_FOLDER, make_rows, score_row

TOKENIZER = load_tokenizer("builtin")


@pytest.mark.parametrize(("task", "length"), [(1, "0k"), (3, "1k"), (8, "2k")])
def test_questions_are_those_of_eval_babilong(task, length):
    rows = make_rows(qa=task, version=1.0, lengths=length, samples=4, seed=5, config_source="somewhere")["test"]
    asked = open_questions(
        dataset=None,
        parts=None,
        tokenizer=TOKENIZER,
        encoder=TextEncoder(TOKENIZER, "builtin"),
        lengths=(length,),
        facts=None,
        background=None,
        seed=5,
        allow_repeats=False,
    ).ask(task, length, 0, 4)
    for row, question in zip(rows, asked, strict=True):
        assert TOKENIZER(row["prompt"])["input_ids"] == np.concatenate(list(question.tokens())).tolist()
        assert (row["question"], row["target"]) == (question.question, question.target)


@pytest.mark.parametrize(
    ("task", "target", "output", "right"),
    [
        ("qa1", "kitchen", " kitchen", 1.0),
        ("qa1", "kitchen", " garden", 0.0),
        ("qa1", "kitchen", " kitchen and garden", 0.0),
        ("qa7", "one", " none", 0.0),
        ("qa8", "milk,football", " football,milk", 1.0),
    ],
)
def test_answers_are_right_by_exact_match(task, target, output, right):
    row = {"task": task, "length": "4k", "question": "Where is Mary? ", "target": target}
    assert score_row(row, [output]) == {"4k": right}


def test_there_is_a_task_for_each_of_babi_s_and_a_metric_for_each_length():
    files = {path.stem: yaml.safe_load(path.read_text("utf-8")) for path in TASKS_FOLDER.glob("*.yaml")}
    assert files.keys() == {f"babilong_qa{number}" for number in range(1, 21)}
    for number in range(1, 21):
        assert files[f"babilong_qa{number}"]["task"] == f"babilong_qa{number}"
        assert files[f"babilong_qa{number}"]["metadata"]["qa"] == number
    common = (TASKS_FOLDER / "_babilong").read_text("utf-8").replace("!function", "")
    assert [metric["metric"] for metric in yaml.safe_load(common)["metric_list"]] == list(OFFICIAL_LENGTHS)


def invoke(*arguments):
    return CliRunner().invoke(evaluate, ["harness", *map(str, arguments)])


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save(tiny_lm2(), tmp_path_factory.mktemp("model") / "lm2")


def test_the_harness_asks_them_of_a_model(model, tmp_path):
    out = tmp_path / "results.json"
    metadata = json.dumps({"lengths": "0k,1k", "samples": 3, "seed": 7})
    done = invoke(model, "--tasks", "babilong_qa1,babilong_qa4", "--metadata", metadata, "--out", out)
    assert done.exit_code == 0, (done.output, done.exception)
    document = json.loads(out.read_text("utf-8"))
    assert document["settings"]["metadata"] == json.loads(metadata)
    for task in ("babilong_qa1", "babilong_qa4"):
        # The harness counts those of one metric, here of each length.
        assert document["n-samples"][task] == {"original": 6, "effective": 3}
        found = {key.split(",")[0] for key in document["results"][task]} & set(OFFICIAL_LENGTHS)
        assert found == {"0k", "1k"}
        assert document["versions"][task] == 1.0


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ('{"length": "4k"}', f"metadata has 'length', but our tasks know {', '.join(CHOICES)}"),
        ("[1]", "must be an object"),
        ("{lengths", "is no JSON"),
        ('{"lengths": "4x"}', "4x"),
    ],
)
def test_bad_choices(model, metadata, message):
    failed = invoke(model, "--tasks", "babilong_qa1", "--metadata", metadata)
    assert message in str(failed.exception)
