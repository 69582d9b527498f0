"""The stage's earlier path, as old guides launch it; its home is small_doge/trainer/doge/dpo.py."""

from small_doge.trainer.doge.dpo import main
from small_doge.trainer.recipe import run_stage

if __name__ == "__main__":
    run_stage(main)
