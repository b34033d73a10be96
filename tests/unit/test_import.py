"""`import lm2`: cheap, and enough for transformers to know our models, whoever is imported first."""

import importlib
import subprocess
import sys

import pytest

import lm2
from lm2 import _register

_USES_AUTO_CLASSES = """
config = AutoConfig.for_model(
    "lm2", vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
    num_attention_heads=2, num_key_value_heads=1, num_memory_slots=4, segment_length=4,
)
assert type(AutoModelForCausalLM.from_config(config)) is lm2.LM2ForCausalLM
assert type(AutoModel.from_config(config)) is lm2.LM2Model
assert type(config) is lm2.LM2Config
"""


def run_python(code: str, *arguments: str) -> str:
    """Runs `code` in a fresh interpreter and returns what it prints."""
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_leaves_torch_and_transformers_alone():
    assert run_python("import sys, lm2; print({'torch', 'transformers'} & set(sys.modules))") == "set()\n"


def test_import_after_transformers_leaves_torch_alone():
    code = (
        "import sys, transformers; before = 'torch' in sys.modules; import lm2; print(before, 'torch' in sys.modules)"
    )
    assert run_python(code) == "False False\n"


@pytest.mark.parametrize(
    "imports",
    [
        "import lm2; from transformers import AutoConfig, AutoModel, AutoModelForCausalLM",
        "from transformers import AutoConfig, AutoModel, AutoModelForCausalLM; import lm2",
        "from transformers import AutoConfig; import lm2; from transformers import AutoModel, AutoModelForCausalLM",
        # modeling_llama imports the auto classes while it is being imported itself.
        "import lm2; from transformers import LlamaForCausalLM, AutoConfig, AutoModel, AutoModelForCausalLM",
        "import lm2.models.lm2.modeling_lm2; from transformers import AutoConfig, AutoModel, AutoModelForCausalLM",
    ],
)
def test_auto_classes_know_lm2_in_any_import_order(imports):
    run_python(imports + _USES_AUTO_CLASSES)


def test_auto_classes_know_a_config_of_ours_made_before_they_are_imported():
    run_python(
        "from lm2 import LM2Config; config = LM2Config(hidden_size=16, intermediate_size=16, num_hidden_layers=1,"
        " num_attention_heads=2, vocab_size=32);"
        "from transformers import AutoModelForCausalLM;"
        "assert type(AutoModelForCausalLM.from_config(config)).__name__ == 'LM2ForCausalLM'"
    )


def test_auto_classes_load_a_saved_model_after_a_plain_import(tmp_path):
    config = lm2.LM2Config(
        vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    lm2.LM2ForCausalLM(config).save_pretrained(tmp_path)
    code = (
        "import sys, lm2; from transformers import AutoModelForCausalLM;"
        "print(type(AutoModelForCausalLM.from_pretrained(sys.argv[1])).__name__)"
    )
    assert run_python(code, str(tmp_path)) == "LM2ForCausalLM\n"


def test_imports_in_several_threads():
    run_python(
        """
import threading, lm2, transformers  # the package itself does not bear two first imports at once
failures = []
threading.excepthook = lambda args: failures.append(args)
def in_thread(code):
    return threading.Thread(target=exec, args=(code, {}))
threads = [
    in_thread("from lm2 import LM2Cache, LM2ForCausalLM"),
    in_thread("from transformers import AutoConfig; AutoConfig.for_model('lm2')"),
    in_thread("from lm2.models.lm2 import LM2Config"),
]
for thread in threads: thread.start()
for thread in threads: thread.join()
assert not failures, failures
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM
"""
        + _USES_AUTO_CLASSES
    )


def test_hook_is_installed_once_and_leaves_no_trace_on_modules():
    from transformers.models.auto import configuration_auto

    importlib.reload(lm2)
    _register.install()
    assert sum(isinstance(finder, _register._ImportHook) for finder in sys.meta_path) == 1
    assert type(configuration_auto.__spec__.loader).__module__ != _register.__name__


def test_every_registered_model_can_be_imported():
    from transformers import AutoConfig
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    for model_type, classes in _register._MODELS.items():
        assert CONFIG_MAPPING[model_type].__name__ == classes.config
        assert AutoConfig.for_model(model_type).model_type == model_type


def test_public_names():
    assert set(lm2.__all__) <= set(dir(lm2))
    for name in lm2.__all__:
        assert getattr(lm2, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'LM3Model'"):
        _ = lm2.LM3Model
