"""The training stages: transformers' Trainer and TRL, driven by YAML recipes."""
