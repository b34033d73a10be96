"""The Associative Recurrent Memory Transformer: configuration, model classes and state."""

from .configuration_armt import ARMTConfig
from .modeling_armt import ARMTCache, ARMTForCausalLM, ARMTModel, ARMTPreTrainedModel

__all__ = ["ARMTCache", "ARMTConfig", "ARMTForCausalLM", "ARMTModel", "ARMTPreTrainedModel"]
