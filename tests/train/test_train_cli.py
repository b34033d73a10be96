"""`lm2 train` from a recipe to a model folder, and what it refuses before it starts."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from click.testing import Result
from train.toy_run import log_of, toy_recipe
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner

from lm2.cli.build_model import build_model
from lm2.cli.train import train
from lm2.data.tokenizer import load_tokenizer
from lm2.train.config import Recipe, dump_recipe
from lm2.train.sections import ModelRecipe

TINY = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


def lm2_train(tmp_path: Path, recipe: Recipe, *options: str) -> Result:
    path = tmp_path / "toy.yaml"
    path.write_text(dump_recipe(recipe), encoding="utf-8")
    app = typer.Typer()
    app.command()(train)
    return CliRunner().invoke(app, [str(path), "--out", str(tmp_path / "run"), *options])


def short(**sections: Any) -> Recipe:
    stages = [{"name": "only", "tasks": {1: 1.0}, "segments": {"max": 2}}]
    return toy_recipe(curriculum=stages, schedule={"total_steps": 2, "warmup_steps": 0}, **sections)


@pytest.mark.parametrize("parallel", ["single", "fsdp"])
def test_a_recipe_becomes_a_model_folder(tmp_path: Path, parallel: str) -> None:
    done = lm2_train(tmp_path, short(), "--set", f"train.parallel={parallel}")
    assert done.exit_code == 0, done.output
    assert "finished step 2 with accuracy" in done.output
    folder = tmp_path / "run"
    names = {path.name for path in folder.iterdir()}
    assert names == {"recipe.yaml", "log.jsonl", "checkpoints", "model"}
    assert f"parallel: {parallel}" in (folder / "recipe.yaml").read_text(encoding="utf-8")
    model = AutoModelForCausalLM.from_pretrained(folder / "model")
    assert model.config.architectures == ["LM2ForCausalLM"]
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    assert len(tokenizer) == model.config.vocab_size
    prompt = tokenizer("Where is Mary?", return_tensors="pt")
    assert torch.isfinite(model(input_ids=prompt["input_ids"]).logits).all()

    # A finished run is saved again, as it was.
    weights = (folder / "model" / "model.safetensors").read_bytes()
    again = lm2_train(tmp_path, short(), "--set", f"train.parallel={parallel}", "--resume")
    assert again.exit_code == 0, again.output
    assert (folder / "model" / "model.safetensors").read_bytes() == weights
    assert [row["step"] for row in log_of(folder, "train")] == [1, 2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--resume"], "has no run to go on with"),
        (["--set", "train.procesess=2"], "did you mean 'processes'"),
        (["--set", "train.parallel=ddp", "--set", "train.processes=2"], "start it by: torchrun"),
        (["--set", "model.architecture=lama"], "did you mean 'llama'"),
        (["--set", "model.architecture=t5"], "no causal language model"),
        (["--set", "model.config.hiden_size=8"], "model.config.hiden_size is no field of LM2Config; .* 'hidden_size'"),
        (["--set", "model.config.num_memory_heads=3"], "num_memory_heads"),
        (["--set", "model.config.vocab_size=100"], "vocab_size of the model is 100, but the tokenizer has"),
        (["--set", "model.init=nowhere"], "model.init is 'nowhere'"),
        (["--set", "data.background=nowhere"], "nowhere"),
        (["--set", "data.tokenizer=."], r"tokenizer is '\.'"),
        (["--set", "data.facts=nowhere"], "nowhere"),
    ],
)
def test_what_cannot_work_is_refused_before_the_start(tmp_path: Path, options: list[str], message: str) -> None:
    refused = lm2_train(tmp_path, short(), *options)
    assert isinstance(refused.exception, (ValueError, OSError)), refused.output
    with pytest.raises(type(refused.exception), match=message):
        raise refused.exception
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there_is_refused(tmp_path: Path) -> None:
    refused = lm2_train(tmp_path, short(), "--set", "train.device=cuda")
    assert "train.device is 'cuda'" in str(refused.exception)


def test_any_causal_architecture_is_built_and_repeated() -> None:
    tokenizer = load_tokenizer()
    recipe = ModelRecipe("gpt2", {"n_embd": 16, "n_layer": 1, "n_head": 2})
    model, same, other = (build_model(recipe, tokenizer, seed) for seed in (0, 0, 1))
    assert model.config.vocab_size == len(tokenizer)
    assert model.config.eos_token_id == tokenizer.eos_token_id
    assert torch.equal(model.transformer.wte.weight, same.transformer.wte.weight)
    assert not torch.equal(model.transformer.wte.weight, other.transformer.wte.weight)


def test_embeddings_are_as_wide_as_asked() -> None:
    tokenizer = load_tokenizer()
    narrow, wide = (
        build_model(ModelRecipe("llama", {**TINY, "pad_token_id": 0}, embedding_std=std), tokenizer, 0)
        for std in (None, 0.5)
    )
    assert narrow.model.embed_tokens.weight[1:].std().item() == pytest.approx(0.02, rel=0.05)
    assert wide.model.embed_tokens.weight[1:].std().item() == pytest.approx(0.5, rel=0.05)
    for model in (narrow, wide):
        assert not model.model.embed_tokens.weight[0].any()
    assert torch.equal(narrow.lm_head.weight, wide.lm_head.weight)


def test_a_llama_folder_starts_a_llama_and_an_lm2(tmp_path: Path) -> None:
    tokenizer = load_tokenizer()
    llama = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **TINY)).to(torch.bfloat16)
    llama.save_pretrained(tmp_path / "llama")
    init = str(tmp_path / "llama")
    for recipe in (
        ModelRecipe("llama", {"hidden_size": 16}, init),
        ModelRecipe("lm2", {"segment_length": 32, "num_memory_slots": 4, "num_memory_heads": 1}, init),
    ):
        model = build_model(recipe, tokenizer, 0)
        assert model.config.model_type == recipe.architecture
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
        assert torch.equal(model.model.embed_tokens.weight, llama.model.embed_tokens.weight.float())
    with pytest.raises(
        ValueError, match=r"model\.config\.hidden_size is 32, but in model\.init it is 16; leave it out"
    ):
        build_model(ModelRecipe("llama", {"hidden_size": 32}, init), tokenizer, 0)
    with pytest.raises(ValueError, match=r"model\.architecture is 'gpt2', but model\.init is a 'llama'"):
        build_model(ModelRecipe("gpt2", {}, init), tokenizer, 0)


def test_a_loss_that_is_not_finite_has_its_own_exit_code(tmp_path: Path) -> None:
    # So large a rate that the second step meets weights of about 1e30.
    broken = lm2_train(
        tmp_path, short(), "--set", "optimizer.learning_rate=1e30", "--set", "train.validate_every_steps=null"
    )
    assert broken.exit_code == 3, broken.output
    assert "is not finite" in broken.output
    assert not (tmp_path / "run" / "model").exists()
    assert json.loads((tmp_path / "run" / "log.jsonl").read_text(encoding="utf-8").splitlines()[-1])["step"] == 1
