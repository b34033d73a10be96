"""The `lm2` command as users call it: what it prints, and how it reports what they can fix."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from typer.testing import CliRunner

import lm2
from lm2.cli.main import app

TINY = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_memory_slots": 8,
    "segment_length": 16,
}


def invoke(*arguments: object):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def write_recipe(path: Path, model: dict) -> Path:
    path.write_text(yaml.safe_dump({"model": {"architecture": "lm2", "config": model}, "train": {"steps": 3}}))
    return path


@pytest.fixture(scope="module")
def tiny_model():
    torch.manual_seed(0)
    return lm2.LM2ForCausalLM(lm2.LM2Config(**TINY)).eval()


@pytest.fixture(scope="module")
def model_folder(tiny_model, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tiny_model.save_pretrained(folder)
    words = Tokenizer(WordLevel({"[UNK]": 0, "where": 1, "is": 2, "Mary": 3}, unk_token="[UNK]"))
    words.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]").save_pretrained(folder)
    return folder


def test_version_and_help():
    assert invoke("--version").output == f"lm2 {lm2.__version__}\n"
    help_text = invoke("--help").output
    assert "params" in help_text
    assert "export-hub" in help_text


def test_help_does_not_import_torch():
    code = (
        "import sys\nfrom lm2.cli.main import app\n"
        "try: app(['--help'])\nexcept SystemExit: pass\n"
        "sys.exit(bool({'torch', 'transformers', 'numpy'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60).returncode == 0


def test_params_agree_for_folder_config_and_recipe(model_folder, tiny_model, tmp_path):
    recipe = write_recipe(tmp_path / "tiny.yaml", TINY)
    reports = []
    for source in (model_folder, model_folder / "config.json", recipe):
        result = invoke("params", source, "--json")
        assert result.exit_code == 0, result.output
        reports.append(json.loads(result.stdout))
    assert reports[0] == reports[1] == reports[2]

    (report,) = reports[0]["models"]
    in_memory = sum(value.numel() for name, value in tiny_model.named_parameters() if ".memory." in name)
    in_all = sum(value.numel() for value in tiny_model.parameters())
    assert report["parameters"] == {"backbone": in_all - in_memory, "memory": in_memory, "total": in_all}
    assert report["state_bytes_per_sequence"] == {
        "float32": tiny_model.config.num_state_bytes(4),
        "bfloat16": tiny_model.config.num_state_bytes(2),
    }


def test_params_table_shows_what_the_json_holds(tmp_path):
    recipe = write_recipe(tmp_path / "tiny.yaml", TINY)
    (report,) = json.loads(invoke("params", recipe, "--json").stdout)["models"]
    table = invoke("params", recipe).stdout
    for number in (*report["parameters"].values(), *report["state_bytes_per_sequence"].values()):
        assert f"{number:,}" in table
    assert "1.2B backbone + 0.5B memory = 1.7B" in table


def test_params_of_the_paper():
    result = invoke("params", "--paper", "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["paper"] == {"backbone": 1.2e9, "memory": 0.5e9, "total": 1.7e9}
    assert [model["memory_design"] for model in report["models"]] == ["segment", "paper"]
    for model in report["models"]:
        assert model["parameters"]["backbone"] == 1_235_814_400
        # Six matrices of 2048 x 2048 in 16 blocks, and what is counted in the released code.
        assert model["memory_of_equations_1_to_6"] == 402_653_184
        assert model["memory_of_authors_code"] == 537_296_928


@pytest.mark.parametrize("change", [{"memory_layers": 0}, {"attention_window": None}])
def test_params_of_a_state_without_bound(tmp_path, change):
    recipe = write_recipe(tmp_path / "tiny.yaml", {**TINY, **change})
    (report,) = json.loads(invoke("params", recipe, "--json").stdout)["models"]
    assert report["state_bytes_per_sequence"] == {"float32": None, "bfloat16": None}
    assert "grows with the text" in invoke("params", recipe).stdout


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("absent.yaml", None, "no such file or folder"),
        ("notes.txt", "hidden_size: 32", "give a model folder, a config .json, or a .yaml recipe"),
        ("broken.yaml", "model: [1, 2", "not valid YAML"),
        ("binary.yaml", b"\xff\xfe\x00", "not a text file"),
        ("empty.yaml", "", "holds nothing, but a recipe is a mapping"),
        ("flat.yaml", "hidden_size: 32", "has no 'model:' section"),
        ("typo.yaml", "modle:\n  hidden_size: 32", "has no 'model:' section (only 'modle')"),
        ("list.yaml", "model: [1, 2]", "'config:' with LM2Config's fields"),
        ("fields.yaml", "model: {hidden_size: 32}", "'config:' with LM2Config's fields"),
        ("llama.yaml", "model: {architecture: llama, config: {}}", "model.architecture is 'llama'"),
        ("field.yaml", "model: {architecture: lm2, config: {num_memory_slot: 8}}", "did you mean 'num_memory_slots'?"),
        ("field.yaml", "model: {architecture: lm2, config: {zzz: 8}}", "unknown field 'zzz'"),
        (
            "value.yaml",
            "model: {architecture: lm2, config: {segment_length: 0}}",
            "segment_length=0 must be at least 1",
        ),
        ("type.yaml", "model: {architecture: lm2, config: {hidden_size: wide}}", "hidden_size"),
        ("broken.json", "{", "not valid JSON"),
        ("list.json", "[]", "a config is an object of fields"),
        ("llama.json", '{"model_type": "llama"}', "model_type is 'llama'"),
    ],
)
def test_params_names_what_to_fix_in_one_line(tmp_path, name, content, message):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    result = invoke("params", path)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith(f"lm2 params: {path}: ")
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


def test_params_wants_one_source(tmp_path):
    for arguments in ([], [tmp_path, "--paper"]):
        result = invoke("params", *arguments)
        assert result.exit_code == 2
        assert "either a SOURCE" in result.stderr


def test_params_of_a_folder_without_config(tmp_path):
    result = invoke("params", tmp_path)
    assert result.exit_code == 2
    assert "has no config.json" in result.stderr


def test_debug_shows_the_traceback(tmp_path):
    result = invoke("--debug", "params", tmp_path)
    assert isinstance(result.exception, ValueError)


def test_errors_of_the_installed_command():
    code = "from lm2.cli.main import app; app()"
    done = subprocess.run([sys.executable, "-c", code, "params", "nowhere"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr.startswith("lm2 params: nowhere: no such file or folder")
    assert "Traceback" not in done.stderr


def test_exported_folder_works_without_lm2(model_folder, tiny_model, tmp_path):
    out = tmp_path / "new" / "hub"
    result = invoke("export-hub", model_folder, out)
    assert result.exit_code == 0, result.output
    assert [path.name for path in out.parent.iterdir()] == ["hub"]

    code = """
import sys
sys.modules["lm2"] = None  # importing it raises ImportError
import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True).eval()
assert type(model).__name__ == "LM2ForCausalLM" and type(model).__module__.startswith("transformers_modules."), model
assert type(AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True)).__name__ == "LM2Model"
assert type(AutoConfig.from_pretrained(sys.argv[1], trust_remote_code=True)).__name__ == "LM2Config"
with torch.no_grad():
    torch.save(model(torch.arange(40)[None]).logits, sys.argv[2])
"""
    logits_path = tmp_path / "logits.pt"
    done = subprocess.run(
        [sys.executable, "-c", code, str(out), str(logits_path)],
        env={**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    with torch.no_grad():
        torch.testing.assert_close(torch.load(logits_path), tiny_model(torch.arange(40)[None]).logits)


def test_export_copies_the_tokenizer_and_keeps_the_dtype(model_folder, tiny_model, tmp_path):
    source = tmp_path / "bf16"
    lm2.LM2ForCausalLM.from_pretrained(model_folder, dtype=torch.bfloat16).save_pretrained(source)
    for path in model_folder.glob("tokenizer*"):
        (source / path.name).write_bytes(path.read_bytes())
    out = tmp_path / "hub"
    assert invoke("export-hub", source, out).exit_code == 0
    assert AutoTokenizer.from_pretrained(out)("where is Mary")["input_ids"] == [1, 2, 3]
    assert json.loads((out / "config.json").read_text())["dtype"] == "bfloat16"


def test_export_does_not_mark_the_classes_for_later_saves(model_folder, tmp_path):
    assert invoke("export-hub", model_folder, tmp_path / "hub").exit_code == 0
    lm2.LM2ForCausalLM.from_pretrained(model_folder).save_pretrained(tmp_path / "plain")
    assert not list((tmp_path / "plain").glob("*.py"))
    assert "auto_map" not in json.loads((tmp_path / "plain" / "config.json").read_text())


def test_export_into_an_empty_folder(model_folder, tmp_path):
    (tmp_path / "hub").mkdir()
    assert invoke("export-hub", model_folder, tmp_path / "hub").exit_code == 0


def test_export_refuses_to_overwrite(model_folder, tmp_path):
    (tmp_path / "kept.txt").write_text("kept")
    for out, message in ((tmp_path, "not empty"), (tmp_path / "kept.txt", "is a file")):
        result = invoke("export-hub", model_folder, out)
        assert result.exit_code == 2
        assert message in result.stderr
    assert (tmp_path / "kept.txt").read_text() == "kept"


def test_export_leaves_nothing_when_it_fails(tmp_path):
    source = tmp_path / "model"
    source.mkdir()
    lm2.LM2Config(**TINY).save_pretrained(source)  # a config without weights
    result = invoke("export-hub", source, tmp_path / "out" / "hub")
    assert result.exit_code == 2
    assert list((tmp_path / "out").iterdir()) == []


def test_export_of_something_else(tmp_path):
    result = invoke("export-hub", tmp_path / "absent", tmp_path / "hub")
    assert result.exit_code == 2
    assert "not a folder" in result.stderr


@pytest.mark.parametrize("verb", [["eval", "cost"], ["eval", "retention"], ["eval", "perplexity"], ["tables", "mmlu"]])
def test_a_folder_is_no_file_for_numbers(verb, tmp_path):
    """It is refused before the missing model is, that is before any work."""
    arguments = [*verb, "missing", *(["missing.txt"] if verb[1] == "perplexity" else [])]
    result = CliRunner().invoke(app, [*arguments, "--json", str(tmp_path)])
    assert result.exit_code != 0
    assert "which is a folder; name a file" in f"{result.output}{result.exception}"
