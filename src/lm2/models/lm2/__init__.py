"""The LM2 model: configuration, model classes and state."""

from .cache_lm2 import LM2Cache
from .configuration_lm2 import LM2Config
from .modeling_lm2 import LM2_LORA_TARGETS, LM2ForCausalLM, LM2Model, LM2PreTrainedModel

__all__ = ["LM2_LORA_TARGETS", "LM2Cache", "LM2Config", "LM2ForCausalLM", "LM2Model", "LM2PreTrainedModel"]
