"""What the models with memory tokens (RMT, ARMT) share: segments with tokens of their own around them."""
