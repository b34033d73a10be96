"""
LM2: a Llama-style causal language model with a gated memory bank in its decoder blocks (arXiv 2502.06049).

Importing this package is cheap: torch is imported with the first model class that is used. It also makes the models
known to transformers, so that `AutoModelForCausalLM.from_pretrained` loads a folder of ours.
"""

import importlib
from typing import TYPE_CHECKING, Any

from lm2 import _register

if TYPE_CHECKING:
    from lm2.models.armt import ARMTCache, ARMTConfig, ARMTForCausalLM, ARMTModel
    from lm2.models.lm2 import LM2_LORA_TARGETS, LM2Cache, LM2Config, LM2ForCausalLM, LM2Model
    from lm2.models.rmt import RMTCache, RMTConfig, RMTForCausalLM, RMTModel

__version__ = "0.1.0"

__all__ = [
    "LM2_LORA_TARGETS",
    "ARMTCache",
    "ARMTConfig",
    "ARMTForCausalLM",
    "ARMTModel",
    "LM2Cache",
    "LM2Config",
    "LM2ForCausalLM",
    "LM2Model",
    "RMTCache",
    "RMTConfig",
    "RMTForCausalLM",
    "RMTModel",
    "__version__",
]

# Where the public names are defined. Packages, not their modules: two threads that import a package and a module of it
# at the same time may deadlock in Python's import locks.
_HOME = {
    **dict.fromkeys(("LM2_LORA_TARGETS", "LM2Cache", "LM2Config", "LM2ForCausalLM", "LM2Model"), "lm2.models.lm2"),
    **dict.fromkeys(("ARMTCache", "ARMTConfig", "ARMTForCausalLM", "ARMTModel"), "lm2.models.armt"),
    **dict.fromkeys(("RMTCache", "RMTConfig", "RMTForCausalLM", "RMTModel"), "lm2.models.rmt"),
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})


_register.install()
