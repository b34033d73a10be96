"""Measuring: what a model is asked, how its answers are scored, and how the scores are shown."""
