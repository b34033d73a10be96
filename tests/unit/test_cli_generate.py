"""`lm2 generate` as users call it: what it writes, a memory that outlives the process, and refusals."""

import copy

import pytest
import torch
from tiny_models import POSITIONS, save, tiny_llama, tiny_lm2
from typer import Typer
from typer.testing import CliRunner

from lm2 import LM2Cache
from lm2.cli.generate import generate
from lm2.data.tokenizer import load_tokenizer
from lm2.eval import perplexity, runner

TOKENIZER = load_tokenizer("builtin")
PROMPT = "Mary went to the garden. " * 9 + "Where is"
app = Typer()
app.command()(generate)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    place = tmp_path_factory.mktemp("models")
    models = {"lm2": tiny_lm2(), "llama": tiny_llama(), "other": tiny_lm2(num_memory_slots=4)}
    models["bfloat16"] = copy.deepcopy(models["lm2"]).bfloat16()
    return {name: save(model, place / name) for name, model in models.items()}


def invoke(*arguments: object, **options):
    return CliRunner().invoke(app, list(map(str, arguments)), **options)


def written(*arguments: object, **options) -> str:
    result = invoke(*arguments, "--max-new-tokens", 9, **options)
    assert result.exit_code == 0, result.output
    return result.stdout.removesuffix("\n")


def greedy(model, text: str, count: int = 9) -> str:
    ids = TOKENIZER(text, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        output = model.generate(ids, max_new_tokens=count, do_sample=False, pad_token_id=0)
    return TOKENIZER.decode(output[0, ids.shape[1] :], skip_special_tokens=True)


@pytest.mark.parametrize("name", ["lm2", "llama"])
def test_the_likeliest_continuation(folders, name):
    model = {"lm2": tiny_lm2, "llama": tiny_llama}[name]()
    assert written(folders[name], PROMPT) == greedy(model, PROMPT)


def test_a_prompt_from_a_file_and_from_standard_input(folders, tmp_path, monkeypatch):
    path = tmp_path / "prompt.txt"
    path.write_text(PROMPT, encoding="utf-8")
    # Several blocks and calls.
    monkeypatch.setattr(perplexity.text_blocks, "__defaults__", (20,))
    monkeypatch.setattr(runner, "CALL_TOKENS", 1)
    expected = greedy(tiny_lm2(), PROMPT)
    assert written(folders["lm2"], "--prompt-file", path) == expected
    assert written(folders["lm2"], "--prompt-file", "-", input=PROMPT) == expected


def test_a_memory_goes_on_as_if_all_had_come_in_one_text(folders, tmp_path):
    memory = tmp_path / "conversation"
    model = tiny_lm2()
    ids = torch.empty(1, 0, dtype=torch.long)
    for turn in (PROMPT, " And John? ", "\nAnswer:"):
        new = TOKENIZER(turn, return_tensors="pt")["input_ids"]
        ids = torch.cat([ids, new], dim=1)
        with torch.no_grad():
            output = model.generate(ids, max_new_tokens=9, do_sample=False, pad_token_id=0, use_cache=False)
        expected = TOKENIZER.decode(output[0, ids.shape[1] :], skip_special_tokens=True)
        assert written(folders["lm2"], turn, "--memory", memory) == expected
        ids = output
        assert LM2Cache.load(memory, model.config).num_tokens.tolist() == [ids.shape[1]]
    assert [path.name for path in tmp_path.iterdir()] == ["conversation"]


def test_an_end_of_text_token_is_not_remembered(folders, tmp_path):
    model = tiny_lm2()
    ids = TOKENIZER(PROMPT, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        output = model.generate(ids, max_new_tokens=4, do_sample=False, pad_token_id=0)
    model.generation_config.eos_token_id = int(output[0, -1])
    folder = save(model, tmp_path / "ending")
    memory = tmp_path / "memory"
    written(folder, PROMPT, "--memory", memory)
    assert LM2Cache.load(memory).num_tokens.tolist() == [ids.shape[1] + 3]


def test_draws_depend_on_the_seed(folders):
    options = ("--temperature", 1.5)
    for name in ("lm2", "llama"):
        first = written(folders[name], PROMPT, *options, "--seed", 1)
        assert first == written(folders[name], PROMPT, *options, "--seed", 1)
        assert first != written(folders[name], PROMPT, *options)


def test_a_memory_that_does_not_belong_to_the_model_is_refused_and_kept(folders, tmp_path):
    memory = tmp_path / "memory"
    written(folders["lm2"], PROMPT, "--memory", memory)
    before = memory.read_bytes()
    two_rows = tmp_path / "two rows"
    cache = LM2Cache.load(memory)
    cache.batch_repeat_interleave(2)
    cache.save(two_rows)
    damaged = tmp_path / "damaged"
    damaged.write_bytes(before[:100])
    for name, path, message in (
        ("other", memory, "this cache belongs to another model: it has num_memory_slots=8 (model: 4)"),
        ("bfloat16", memory, "which a model in float32 wrote; give --dtype float32"),
        ("llama", memory, "--memory needs a model with a bounded memory, but llama has none"),
        ("lm2", two_rows, "holds 2 rows"),
        ("lm2", damaged, "no saved memory, or damaged"),
    ):
        kept = path.read_bytes()
        result = invoke(folders[name], PROMPT, "--memory", path)
        assert isinstance(result.exception, ValueError), result.output
        assert message in str(result.exception)
        assert path.read_bytes() == kept
    assert written(folders["bfloat16"], PROMPT, "--memory", memory, "--dtype", "float32")


def test_bad_input_is_refused(folders, tmp_path):
    model = folders["llama"]
    binary = tmp_path / "b.txt"
    binary.write_bytes(b"\xff\xfe\x00")
    for arguments, message in (
        ((model,), "give either a PROMPT or --prompt-file"),
        ((model, "a", "--prompt-file", "-"), "give either a PROMPT or --prompt-file"),
        ((model, ""), "PROMPT is empty"),
        ((model, "--prompt-file", tmp_path / "none"), "none, which is no file"),
        ((model, "--prompt-file", binary), "the prompt is no UTF-8 text"),
        ((model, "--prompt-file", "-"), "a prompt is empty"),
        ((model, "a", "--seed", 3), "--seed has no effect at temperature 0"),
        ((model, "a", "--top-k", 3), "top_k is 3, but has no effect at temperature 0"),
        ((model, "a", "--memory", tmp_path), "must be a file in a folder that is there"),
        ((model, " word" * POSITIONS), "but the model has positions for 412 and 100 new ones"),
        ((tmp_path, "a"), "must be a model folder"),
        ((model, "a", "--device", "cuda:7"), "--device is 'cuda:7', but there are"),
        ((model, "a", "--device", "toaster"), "--device is 'toaster', but must be"),
        ((model, "a", "--dtype", "int8"), "--dtype is 'int8'"),
    ):
        result = invoke(*arguments)
        assert isinstance(result.exception, ValueError), (arguments, result.output)
        assert message in str(result.exception)
