"""Model folders of a few kilobytes for the tests of evaluation, with weights so large that answers differ."""

from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from lm2 import ARMTConfig, ARMTForCausalLM, LM2Config, LM2ForCausalLM, RMTConfig, RMTForCausalLM
from lm2.data.tokenizer import load_tokenizer

SEGMENT = 16
POSITIONS = 512

_TINY = {
    "vocab_size": 2048,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": POSITIONS,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
_MEMORY = {"segment_length": SEGMENT, "num_memory_slots": 8, "num_memory_heads": 2}


def tiny_lm2(seed: int = 0, **fields: Any) -> LM2ForCausalLM:
    return _random(lambda: LM2ForCausalLM(LM2Config(**{**_TINY, **_MEMORY, **fields})), seed)


def tiny_llama(seed: int = 0, **fields: Any) -> LlamaForCausalLM:
    return _random(lambda: LlamaForCausalLM(LlamaConfig(**{**_TINY, **fields})), seed)


def tiny_rmt(seed: int = 0) -> RMTForCausalLM:
    return _random(lambda: RMTForCausalLM(RMTConfig(**_TINY, segment_length=SEGMENT, num_memory_tokens=2)), seed)


def tiny_armt(seed: int = 0) -> ARMTForCausalLM:
    sizes = {"segment_length": SEGMENT, "num_memory_tokens": 2, "memory_key_size": 4}
    return _random(lambda: ARMTForCausalLM(ARMTConfig(**_TINY, **sizes)), seed)


def save(model: PreTrainedModel, folder: Path) -> Path:
    model.save_pretrained(folder)
    load_tokenizer("builtin").save_pretrained(folder)
    return folder


def _random(make: Any, seed: int) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = make().eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return model
