"""The Recurrent Memory Transformer: configuration, model classes and state."""

from .configuration_rmt import RMTConfig
from .modeling_rmt import RMTCache, RMTForCausalLM, RMTModel, RMTPreTrainedModel

__all__ = ["RMTCache", "RMTConfig", "RMTForCausalLM", "RMTModel", "RMTPreTrainedModel"]
