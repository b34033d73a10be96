"""Files: what save_pretrained writes, from_pretrained and the auto classes read back, also without this package."""

import os
import subprocess
import sys

import pytest
import torch
from contract.helpers import assert_memory_matters, logits_of, random_ids
from contract.subjects import LONGEST, SUBJECT, subjects
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

import lm2


@pytest.mark.parametrize("max_shard_size", ["1GB", "10KB"], ids=["one file", "shards"])
@subjects()
def test_save_and_load(subject, tmp_path, max_shard_size):
    model = subject.make()
    ids = random_ids(2, LONGEST)
    if subject.has_memory:
        assert_memory_matters(subject, model, ids)
    model.save_pretrained(tmp_path, max_shard_size=max_shard_size)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (max_shard_size == "10KB")
    expected = logits_of(model, ids)
    for loaded in (type(model).from_pretrained(tmp_path), AutoModelForCausalLM.from_pretrained(tmp_path)):
        assert type(loaded) is type(model)
        assert loaded.dtype == model.dtype
        assert torch.equal(logits_of(loaded, ids), expected)
        assert loaded.state_dict().keys() == model.state_dict().keys()


@subjects()
def test_auto_classes(subject, tmp_path):
    model = subject.make()
    model.save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    assert type(config) is type(model.config)
    saved, loaded = model.config.to_dict(), config.to_dict()
    assert {name for name in saved if saved[name] != loaded[name]} <= {"_name_or_path", "architectures", "dtype"}
    bare = AutoModel.from_pretrained(tmp_path)
    ids = random_ids(2, LONGEST)
    with torch.no_grad():
        assert torch.equal(bare(ids).last_hidden_state, model.model(ids).last_hidden_state)


@subjects("is_float32")
def test_load_as_bf16(subject, tmp_path):
    model = subject.make()
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.bfloat16}
    ids = random_ids(2, LONGEST)
    expected = logits_of(model, ids)
    in_bf16 = logits_of(loaded, ids)
    assert torch.equal(in_bf16, logits_of(subject.make(dtype=torch.bfloat16), ids))
    # Eight bits of mantissa through two blocks: the mean error stays far below the logits' spread.
    assert (in_bf16.float() - expected).abs().mean() < 0.1 * expected.std()


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
@subjects("has_memory")
def test_numbers_that_are_none_are_refused_by_name(subject, tmp_path, number):
    model = subject.make()
    name = [name for name, _ in model.named_parameters() if ".memory." in name][-1]
    with torch.no_grad():
        model.get_parameter(name).view(-1)[-1] = number
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"weight {name} has NaN or infinite numbers"):
        type(model).from_pretrained(tmp_path)


LOAD_WITHOUT_LM2 = """
import sys
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

sys.modules["lm2"] = None  # Any import of it fails.
torch.set_num_threads(1)
folder = sys.argv[1]
ids = load_file(f"{folder}/ids")["ids"]
for name in sys.argv[2:]:
    path = f"{folder}/{name}.exported"
    model = AutoModelForCausalLM.from_pretrained(path, trust_remote_code=True).eval()
    assert model.config.model_type == "lm2" and type(model).__module__.startswith("transformers_modules")
    assert type(AutoConfig.from_pretrained(path, trust_remote_code=True)).__name__ == "LM2Config"
    bare = AutoModel.from_pretrained(path, trust_remote_code=True)
    with torch.no_grad():
        answer = model.generate(ids, max_new_tokens=12, do_sample=False)
        logits, hidden = model(ids).logits, bare(ids).last_hidden_state
        save_file({"logits": logits, "hidden": hidden, "answer": answer}, f"{folder}/{name}.out")
try:
    import lm2
except ImportError:
    print("lm2 was out of reach")
"""


def test_an_exported_folder_loads_where_this_package_is_missing(tmp_path):
    from lm2.cli.export_hub import export_hub

    names = ["default", "paper", "all-other"]
    ids = random_ids(2, LONGEST)
    save_file({"ids": ids}, tmp_path / "ids")
    for name in names:
        SUBJECT[name].make().save_pretrained(tmp_path / name)
        export_hub(tmp_path / name, tmp_path / f"{name}.exported")
    done = subprocess.run(
        [sys.executable, "-c", LOAD_WITHOUT_LM2, str(tmp_path), *names],
        env=os.environ | {"HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "lm2 was out of reach" in done.stdout
    for name in names:
        model, out = SUBJECT[name].make(), load_file(tmp_path / f"{name}.out")
        assert torch.equal(out["logits"], logits_of(model, ids)), name
        with torch.no_grad():
            assert torch.equal(out["hidden"], model.model(ids).last_hidden_state), name
        assert torch.equal(out["answer"], model.generate(ids, max_new_tokens=12, do_sample=False)), name
    assert lm2.LM2ForCausalLM._auto_class is None
