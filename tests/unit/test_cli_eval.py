"""`lm2 eval babilong` as users call it: rows, scores, going on after a kill, and refusals that leave nothing behind."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tiny_models import POSITIONS, save, tiny_llama, tiny_lm2
from typer.testing import CliRunner

from lm2.cli.eval import evaluate
from lm2.data.babilong import SampleMaker
from lm2.data.encoding import TextEncoder
from lm2.data.facts import SimulatedFacts
from lm2.data.layout import cell_path, write_rows
from lm2.data.noise import TokenizedBackground
from lm2.data.plain import answer_text, plain_prompt
from lm2.data.text import open_background
from lm2.data.tokenizer import load_tokenizer
from lm2.eval.babilong import score_cells
from lm2.eval.predictions import read_predictions
from lm2.eval.prompts import PromptParts, build_prompt
from lm2.eval.runner import Decoding, answer
from lm2.eval.scores_json import read_scores

TOKENIZER = load_tokenizer("builtin")
ENCODER = TextEncoder(TOKENIZER, "builtin")
SMALL = ("--tasks", "1,3", "--lengths", "0k", "--samples", 5, "--batch-size", 2, "--max-new-tokens", 4)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    place = tmp_path_factory.mktemp("models")
    return {"lm2": save(tiny_lm2(), place / "lm2"), "llama": save(tiny_llama(), place / "llama")}


@pytest.fixture(scope="module")
def maker():
    background = TokenizedBackground(open_background("builtin", "test"), ENCODER)
    return SampleMaker(SimulatedFacts(0, "test"), background, ENCODER, 0)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory, maker):
    """Official files of the same samples."""
    folder = tmp_path_factory.mktemp("dataset")
    for task, length in ((1, "0k"), (3, "0k"), (1, "1k")):
        write_rows(cell_path(folder, task, length, "json"), (maker.sample(task, length, index) for index in range(5)))
    return folder


def invoke(*arguments: object):
    return CliRunner().invoke(evaluate, ["babilong", *map(str, arguments)])


def run(model: Path, out: Path, *arguments: object) -> dict[str, list[dict]]:
    """The rows of each file that a run wrote."""
    result = invoke(model, "--out", out, *arguments)
    assert result.exit_code == 0, (result.output, result.exception)
    return rows_of(out)


def rows_of(out: Path) -> dict[str, list[dict]]:
    files = sorted((out / "predictions").iterdir())
    return {path.name: [json.loads(line) for line in path.read_text().splitlines()] for path in files}


def refusal(*arguments: object) -> str:
    result = invoke(*arguments)
    assert isinstance(result.exception, (ValueError, OSError)), (result.output, result.exception)
    return str(result.exception)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", ["lm2", "llama"])
def test_rows_hold_what_the_model_answers_to_the_plain_prompt(folders, maker, tmp_path, name):
    files = run(folders[name], tmp_path / "out", *SMALL)
    assert list(files) == ["qa1_0k.jsonl", "qa3_0k.jsonl"]
    model = {"lm2": tiny_lm2, "llama": tiny_llama}[name]()
    for task in (1, 3):
        for index, row in enumerate(files[f"qa{task}_0k.jsonl"]):
            sample = maker.sample(task, "0k", index)
            ids = TOKENIZER(plain_prompt(sample.input, sample.question), return_tensors="pt")["input_ids"]
            with torch.no_grad():
                new = model.generate(ids, max_new_tokens=4, do_sample=False, pad_token_id=0)[0, ids.shape[1] :]
            text = TOKENIZER.decode(new, skip_special_tokens=True)
            assert row["output"] == text if "." not in text else text.startswith(row["output"])
            assert {key: row[key] for key in row if key != "output"} == {
                "task": f"qa{task}",
                "length": "0k",
                "index": index,
                "question": sample.question,
                "target": sample.target,
                "prompt_tokens": ids.shape[1],
                "truncated_tokens": 0,
                "model": name,
                "prompt": "plain",
                "seed": 0,
                "facts": "simulator",
                "background": None,
                "dataset": None,
                "tokenizer": name,
                "lengths_counted_by": maker.encoder.fingerprint,
            }
        assert len(files[f"qa{task}_0k.jsonl"]) == 5
    scores = read_scores(tmp_path / "out" / "scores.json")
    assert scores.cells == score_cells(read_predictions([tmp_path / "out" / "predictions"]))


def test_the_scores_are_printed_and_written(folders, tmp_path):
    result = invoke(folders["lm2"], "--out", tmp_path, *SMALL, "--name", "ours")
    assert "ours, prompt plain: exact" in result.stdout
    assert "\x1b" not in result.output
    assert {cell.model for cell in read_scores(tmp_path / "scores.json").cells} == {"ours"}


def test_a_model_that_has_learned_one_answer_scores_its_share(tmp_path, maker):
    """A real model, really trained: the answer ends at its full stop, and is right as often as it is the target."""
    model = tiny_llama(max_position_embeddings=1024)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    samples = [maker.sample(1, "0k", index) for index in range(100, 108)]
    rows = [
        TOKENIZER(plain_prompt(sample.input, sample.question) + answer_text("garden"), return_tensors="pt")["input_ids"]
        for sample in samples
    ]
    for step in range(60):
        ids = rows[step % len(rows)]
        labels = ids.clone()
        labels[:, :-2] = -100
        model(ids, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    files = run(save(model, tmp_path / "model"), tmp_path / "out", "--tasks", 1, "--lengths", "0k", "--samples", 30)
    rows = files["qa1_0k.jsonl"]
    assert {row["output"] for row in rows} == {" garden."}
    share = sum(row["target"] == "garden" for row in rows) / 30
    assert 0 < share < 1
    [cell] = read_scores(tmp_path / "out" / "scores.json").cells
    assert cell.metrics["exact"].accuracy == cell.metrics["official"].accuracy == share


def test_a_dataset_is_asked_as_made_samples_are(folders, dataset, tmp_path):
    made = run(folders["lm2"], tmp_path / "made", *SMALL)
    read = run(folders["lm2"], tmp_path / "read", *SMALL[:4], *SMALL[6:], "--dataset", dataset)
    for name, rows in made.items():
        own = {"seed": None, "facts": None, "background": None, "dataset": str(dataset), "lengths_counted_by": None}
        assert read[name] == [{**row, **own} for row in rows]
    fewer = run(folders["lm2"], tmp_path / "fewer", *SMALL[:4], *SMALL[6:], "--dataset", dataset, "--samples", 2)
    assert fewer == {name: rows[:2] for name, rows in read.items()}


def test_long_samples_are_read_token_by_token_as_in_training(folders, maker, tmp_path):
    files = run(
        folders["lm2"], tmp_path / "out", "--tasks", 1, "--lengths", "1k", "--samples", 2, "--max-new-tokens", 4
    )
    for index, row in enumerate(files["qa1_1k.jsonl"]):
        sample = maker.sample(1, "1k", index)
        question = TOKENIZER(f" Question: {sample.question.strip()} Answer:")["input_ids"]
        [reply] = answer(
            tiny_lm2(), TOKENIZER, [[sample.token_ids, ENCODER.encode(TOKENIZER.decode(question))]], Decoding(4, (".",))
        )
        assert row["prompt_tokens"] == 700 + len(question)
        assert row["output"] == reply.text
        assert row["background"].startswith("builtin text")


def test_the_official_prompt(folders, dataset, maker, tmp_path):
    flags = ("--prompt", "official", "--no-examples")
    made = run(folders["lm2"], tmp_path / "made", *SMALL, *flags)
    read = run(folders["lm2"], tmp_path / "read", *SMALL, *flags, "--dataset", dataset)
    sample = maker.sample(1, "0k", 0)
    parts = PromptParts(examples=False)
    ids = TOKENIZER(build_prompt("qa1", sample.input, sample.question, parts))["input_ids"]
    row = made["qa1_0k.jsonl"][0]
    assert (row["prompt"], row["prompt_tokens"]) == (parts.name, len(ids))
    assert [row["output"] for row in made["qa3_0k.jsonl"]] == [row["output"] for row in read["qa3_0k.jsonl"]]


def test_prompts_beyond_the_positions_are_refused_or_truncated(folders, tmp_path):
    cells = ("--tasks", 1, "--lengths", "0k,1k", "--samples", 2, "--max-new-tokens", 4)
    message = refusal(folders["llama"], "--out", tmp_path / "out", *cells)
    assert message.startswith("a prompt of qa1 at 1k has 708 tokens, but the model has positions for 508 (and")
    assert "--truncate 508" in message
    assert not (tmp_path / "out").exists()
    limit = "--truncate is 509, but the model has positions for a prompt of 508"
    assert refusal(folders["llama"], "--out", tmp_path / "out", *cells, "--truncate", 509) == limit
    for name in ("llama", "lm2"):
        files = run(folders[name], tmp_path / name, *cells, "--truncate", 300)
        assert {row["truncated_tokens"] for row in files["qa1_0k.jsonl"]} == {0}
        assert {(row["prompt_tokens"], row["truncated_tokens"]) for row in files["qa1_1k.jsonl"]} == {(300, 408)}


def test_a_run_goes_on_where_it_stopped(folders, tmp_path):
    whole = run(folders["lm2"], tmp_path / "whole", *SMALL)
    out = tmp_path / "out"
    run(folders["lm2"], out, *SMALL)
    expected = contents(out)
    path = out / "predictions" / "qa1_0k.jsonl"
    torn = path.read_bytes()
    starts = [0, *(place + 1 for place, byte in enumerate(torn) if byte == ord("\n"))]
    (out / "predictions" / "qa3_0k.jsonl").unlink()
    (out / "scores.json").unlink()
    # In the middle of a row, after one, before its line end, and at the very start.
    for size in (starts[3] + 40, starts[2], starts[1] - 1, 10, 0):
        path.write_bytes(torn[:size])
        assert run(folders["lm2"], out, *SMALL, "--resume") == whole
        assert contents(out) == expected
    # Rows that are there stay as they are: nothing is asked again.
    marked = torn.replace(b'"output": "', b'"output": "kept ')
    path.write_bytes(marked[: marked.index(b"\n") + 1])
    outputs = [row["output"] for row in run(folders["lm2"], out, *SMALL, "--resume")["qa1_0k.jsonl"]]
    assert [output.startswith("kept ") for output in outputs] == [True, False, False, False, False]


def test_a_run_goes_on_with_more_cells_and_samples(folders, tmp_path):
    more = ("--tasks", "1,3", "--lengths", "0k", "--max-new-tokens", 4, "--samples", 7)
    whole = run(folders["lm2"], tmp_path / "whole", *more)
    run(folders["lm2"], tmp_path / "out", "--tasks", 3, "--lengths", "0k", "--max-new-tokens", 4, "--samples", 3)
    assert run(folders["lm2"], tmp_path / "out", *more, "--resume") == whole
    message = refusal(folders["lm2"], "--out", tmp_path / "out", *more[:-1], 2, "--resume")
    assert "--samples is 2, but" in message
    assert "has 7 rows" in message


def test_lengths_with_samples_of_their_own(folders, tmp_path):
    cells = ("--tasks", 1, "--lengths", "1k,0k", "--max-new-tokens", 2, "--samples")
    files = run(folders["lm2"], tmp_path / "out", *cells, "2,3")
    assert {name: len(rows) for name, rows in files.items()} == {"qa1_1k.jsonl": 2, "qa1_0k.jsonl": 3}
    # A number for all is the same as its repetition.
    assert run(folders["lm2"], tmp_path / "out", *cells, 3, "--resume") == run(
        folders["lm2"], tmp_path / "alike", *cells, "3,3"
    )


def test_a_killed_run_goes_on(folders, tmp_path):
    cells = ("--tasks", "1", "--lengths", "0k", "--samples", "60", "--batch-size", "1", "--max-new-tokens", "3")
    out = tmp_path / "out"
    code = "from lm2.cli.eval import evaluate; evaluate()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "babilong", str(folders["lm2"]), *cells, "--out", str(out)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
    )
    path = out / "predictions" / "qa1_0k.jsonl"
    while not (path.exists() and path.read_bytes().count(b"\n") >= 3):
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert 3 <= path.read_bytes().count(b"\n") < 60
    assert not (out / "scores.json").exists()
    whole = run(folders["lm2"], tmp_path / "whole", *cells)
    assert run(folders["lm2"], out, *cells, "--resume") == whole


def test_a_run_of_other_settings_is_not_gone_on_with(folders, dataset, tmp_path):
    out = tmp_path / "out"
    run(folders["lm2"], out, *SMALL)
    before = contents(out)
    for arguments, key in (
        ((folders["lm2"], *SMALL, "--seed", 1), "seed (0 there, 1 now)"),
        ((folders["lm2"], *SMALL[:-1], 5), "max_new_tokens (4 there, 5 now)"),
        ((folders["lm2"], *SMALL, "--truncate", 9), "truncate (None there, 9 now)"),
        ((folders["lm2"], *SMALL, "--prompt", "official"), "prompt ('plain' there"),
        ((folders["lm2"], *SMALL, "--dtype", "bfloat16"), "dtype ('float32' there, 'bfloat16' now)"),
        ((folders["lm2"], *SMALL, "--dataset", dataset), "dataset (None there"),
        ((save(tiny_lm2(seed=1), tmp_path / "lm2"), *SMALL), "weights_sha256 ("),
    ):
        message = refusal(*arguments, "--out", out, "--resume")
        assert key in message
    assert contents(out) == before


def test_a_run_is_replaced_only_when_asked(folders, tmp_path):
    out = tmp_path / "out"
    run(folders["lm2"], out, *SMALL)
    before = contents(out)
    assert "--resume to go on, --overwrite to start anew" in refusal(folders["lm2"], "--out", out, *SMALL)
    assert "one of --resume and --overwrite" in refusal(folders["lm2"], "--out", out, "--resume", "--overwrite")
    assert "--facts" not in refusal(folders["lm2"], "--out", out, *SMALL, "--facts", "nowhere", "--overwrite")
    assert contents(out) == before
    files = run(folders["lm2"], out, "--tasks", 2, "--lengths", "0k", "--samples", 1, "--overwrite")
    assert list(files) == ["qa2_0k.jsonl"]
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("mine")
    for flag in ("--resume", "--overwrite"):
        assert "has files, but no run of this command" in refusal(folders["lm2"], "--out", foreign, flag)
    assert "no run to go on with" in refusal(folders["lm2"], "--out", tmp_path / "new", "--resume")


def test_bad_input_is_refused_before_any_work(folders, dataset, tmp_path):
    other = save(tiny_llama(vocab_size=100), tmp_path / "small")
    broken = save(tiny_lm2(), tmp_path / "broken")
    (broken / "model.safetensors").write_bytes((broken / "model.safetensors").read_bytes()[:5000])
    unknown, bare, partial, no_config = (
        save(tiny_llama(), tmp_path / name) for name in ("unknown", "bare", "partial", "no config")
    )
    (unknown / "config.json").write_text('{"model_type": "perceptron"}')
    (no_config / "config.json").write_text("[]")
    for path in bare.glob("tokenizer*"):
        path.unlink()
    config = json.loads((partial / "config.json").read_text())
    (partial / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    out = tmp_path / "out"
    model = folders["lm2"]
    for arguments, message in (
        ((tmp_path / "none",), "must be a model folder (with a config.json)"),
        ((unknown,), "config.json cannot be used: The checkpoint you are trying to load has model type `perceptron`"),
        ((no_config,), "must hold an object of fields, not a list"),
        ((broken,), "cannot be loaded"),
        ((partial,), "have missing keys (9): model.layers.2."),
        ((bare,), "has no tokenizer.json; name the model's tokenizer with --tokenizer"),
        ((other,), "token id 2047, but the model's vocab_size is 100"),
        ((model, "--tasks", "21"), "tasks are 1 to 20"),
        ((model, "--lengths", "5"), "length is '5'"),
        ((model, "--samples", 0), "--samples is '0', but must be a number, or one for each of the 2 lengths"),
        ((model, "--samples", "3,2,1"), "--samples is '3,2,1', but must be"),
        ((model, "--samples", "3,x"), "--samples is '3,x', but must be"),
        ((model, "--batch-size", 0), "--batch-size is 0"),
        ((model, "--max-new-tokens", 0), "--max-new-tokens is 0"),
        ((model, "--truncate", 0), "--truncate is 0"),
        ((model, "--device", "cuda:9"), "--device is 'cuda:9'"),
        ((model, "--dtype", "float8"), "--dtype is 'float8'"),
        ((model, "--prompt", "rude"), "--prompt is 'rude'"),
        ((model, "--no-examples"), "--examples has no effect with --prompt plain"),
        ((model, "--prompt", "official", "--chat-template"), "chat_template is on, but the tokenizer has none"),
        ((model, "--facts", "nowhere"), "facts is 'nowhere'"),
        ((model, "--background", "nowhere"), "background is 'nowhere'"),
        ((model, "--lengths", "0k", "--background", "builtin"), "have no effect at 0k"),
        ((model, "--lengths", "10M"), "allow repeats"),
        ((model, "--dataset", tmp_path / "none"), "must be a folder"),
        ((model, "--dataset", dataset, "--lengths", "2k"), "has no 2k of qa1"),
        ((model, "--dataset", dataset, "--tasks", 1, "--samples", 6), "has 5 rows of qa1 at 0k, but samples is 6"),
        ((model, "--dataset", dataset, "--seed", 1), "--seed has no effect with --dataset"),
        ((model, "--dataset", dataset, "--background", "builtin"), "--background has no effect with --dataset"),
    ):
        text = refusal(*arguments, "--out", out)
        assert message in text, arguments
        assert not out.exists()
    out.write_text("a file")
    assert "is a file" in refusal(model, "--out", out)


def test_the_model_of_a_training_run_is_called_after_the_run(tmp_path):
    folder = save(tiny_lm2(max_position_embeddings=POSITIONS), tmp_path / "tiny run" / "model")
    (tmp_path / "tiny run" / "recipe.yaml").write_text("name: tiny run\n")
    files = run(folder, tmp_path / "out", "--tasks", 1, "--lengths", "0k", "--samples", 1)
    assert files["qa1_0k.jsonl"][0]["model"] == "tiny run"
