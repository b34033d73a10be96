"""The `lm2` command: one file per verb. Verbs import torch and transformers when they run, so that help is instant."""
