"""One script a stage, for `accelerate launch` and for `small-doge train`."""
