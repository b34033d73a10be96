"""A small but complete recipe for the tests of training, and what to change in it."""

import json
from pathlib import Path
from typing import Any

from lm2.train.config import Recipe, load_recipe

TOY = """
name: toy
seed: 3
model:
  architecture: llama
  config: {vocab_size: 2048, hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2}
data: {segment_length_tokens: 96, primer_length_tokens: 32}
curriculum:
  - name: copying
    primer_every: 1
    until: {steps: 2}
  - name: short
    tasks: {1: 1.0}
    segments: {max: 1}
    primer_every: 3
    until: {accuracy: 0.9, min_steps: 2, max_steps: 5}
  - name: long
    tasks: {1: 2.0, 4: 1.0}
    segments: {max: 3}
optimizer: {name: adamw, learning_rate: 1e-3}
schedule: {name: cosine, total_steps: 20, warmup_steps: 4, final_fraction: 0.1}
train:
  batch_size: 12
  micro_batch_size: 2
  validate_every_steps: 2
  validation_samples: 7
  checkpoint_every_steps: 4
evaluation: {tasks: [1], lengths: [0k, 1k]}
"""


def write_toy(folder: Path, text: str = TOY) -> Path:
    path = folder / "toy.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def toy_recipe(folder: Path, **changes: Any) -> Recipe:
    """The toy with changes: `train__batch_size=4` is `--set train.batch_size=4`."""
    overrides = [f"{key.replace('__', '.')}={json.dumps(value)}" for key, value in changes.items()]
    return load_recipe(write_toy(folder), overrides)
