"""How good a model is, and how fast: every figure with its number of items and its interval."""
