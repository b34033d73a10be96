"""Training: recipes, curriculum, batches, optimizers, and the loop. Knows any model by transformers' signature only."""
