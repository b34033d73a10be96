"""
Makes our models known to transformers' auto classes without importing torch, or transformers, ahead of the user.

The auto classes' own `register` takes classes, and a class needs torch. Registering when transformers' auto modules
are imported is no way out: they are imported in the middle of the very modules that our models are built on. So the
work is split between two moments, both seen by one import hook:

1. When `transformers.models.auto.configuration_auto` has been imported, it is told our model types and the names of
   their configuration classes, strings only. To resolve such a name, transformers imports `transformers.models.<type>`;
   the hook answers that with a stand-in that imports our package. This happens at use, not at import.
2. When one of our model packages has been imported, by that stand-in or by anybody else, its classes are registered in
   the regular way. A configuration cannot exist before that, so no model is looked up too early.

Nothing depends on who imports what first, or in which thread, and everything may happen twice.
"""

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import NamedTuple

_AUTO_CONFIG_MODULE = "transformers.models.auto.configuration_auto"


class _Classes(NamedTuple):
    config: str
    model: str
    causal_lm: str


# Model type -> the classes that the package `lm2.models.<type>` exports.
_MODELS = {
    "lm2": _Classes("LM2Config", "LM2Model", "LM2ForCausalLM"),
    "armt": _Classes("ARMTConfig", "ARMTModel", "ARMTForCausalLM"),
    "rmt": _Classes("RMTConfig", "RMTModel", "RMTForCausalLM"),
}
_PACKAGES = {f"lm2.models.{model_type}": model_type for model_type in _MODELS}
_STAND_INS = {f"transformers.models.{model_type}": model_type for model_type in _MODELS}


def install() -> None:
    """Starts watching imports; what has been imported before is handled at once. Calling it again does nothing."""
    if any(isinstance(finder, _ImportHook) for finder in sys.meta_path):
        return
    sys.meta_path.insert(0, _ImportHook())
    for name in (_AUTO_CONFIG_MODULE, *_PACKAGES):
        if name in sys.modules:
            # Not sys.modules[name]: another thread may still be busy importing it, and import_module waits for it.
            _after_import(importlib.import_module(name))


def _after_import(module: ModuleType) -> None:
    if module.__name__ == _AUTO_CONFIG_MODULE:
        for model_type, classes in _MODELS.items():
            module.CONFIG_MAPPING_NAMES[model_type] = classes.config
    else:
        _register(_PACKAGES[module.__name__], module)


def _register(model_type: str, package: ModuleType) -> None:
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

    config, model, causal_lm = (getattr(package, name) for name in _MODELS[model_type])
    AutoConfig.register(model_type, config, exist_ok=True)
    AutoModel.register(config, model, exist_ok=True)
    AutoModelForCausalLM.register(config, causal_lm, exist_ok=True)


class _ImportHook(MetaPathFinder):
    """Finds the stand-ins, and sees to it that `_after_import` runs after the modules that we wait for."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname in _STAND_INS:
            return ModuleSpec(fullname, _StandInLoader())
        if fullname != _AUTO_CONFIG_MODULE and fullname not in _PACKAGES:
            return None
        for finder in sys.meta_path[sys.meta_path.index(self) + 1 :]:
            spec = finder.find_spec(fullname, path, target)
            if spec is not None:
                if spec.loader is not None:
                    spec.loader = _NotifyingLoader(spec.loader)
                return spec
        return None


class _StandInLoader(Loader):
    """Loads `transformers.models.<type>` as a module that holds our configuration class and nothing else."""

    def exec_module(self, module: ModuleType) -> None:
        model_type = _STAND_INS[module.__name__]
        package = importlib.import_module(f"lm2.models.{model_type}")
        name = _MODELS[model_type].config
        setattr(module, name, getattr(package, name))


class _NotifyingLoader(Loader):
    """Loads as the original loader does, puts that one back in place, and calls `_after_import`."""

    def __init__(self, original: Loader) -> None:
        self._original = original

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._original.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        module.__loader__ = self._original
        if module.__spec__ is not None:
            module.__spec__.loader = self._original
        self._original.exec_module(module)
        _after_import(module)
