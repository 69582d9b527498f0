"""Walks the road stage by stage, measures what each stage did, and goes on where it was interrupted."""

from __future__ import annotations

import dataclasses
import errno
import gc
import json
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.resources import files
from pathlib import Path
from typing import Any

from rich.console import Console
from torch import nn
from transformers import AutoTokenizer

from small_doge.evaluation.likelihood import answer_loss, bits_per_byte, gzip_bits_per_byte, preference_scores
from small_doge.evaluation.problems import ProblemScores, solve
from small_doge.evaluation.statistics import mean_interval, paired_difference_interval, wilson_interval
from small_doge.inference import load
from small_doge.models.loading import load_checkpoint
from small_doge.quickstart.data import choose_sources, make_data, make_tokenizer
from small_doge.quickstart.settings import Settings
from small_doge.quickstart.state import RoadState
from small_doge.utils.hardware import default_device
from small_doge.utils.throughput import clock_time

logger = logging.getLogger(__name__)

STAGE_NAMES = ("pretrain", "sft", "dpo", "distill", "grpo")
QUESTIONS = (
    "Who are you?",
    "What does `math.sqrt` do?",
    "Which number is larger, 47 or 74?",
)


class Road:
    """The stages in order; each is a method that returns the figures it measured.

    Args:
        out: Folder of the run.
        data: A person's own files; the built-in sources if None.
        settings: Sizes of everything.
        console: Where progress is told.

    Raises:
        ValueError: `data` cannot be used, or `out` holds another run.
    """

    def __init__(
        self, out: Path, data: Path | None = None, settings: Settings | None = None, console: Console | None = None
    ) -> None:
        self.out = out
        self.settings = settings or Settings()
        self.console = console or Console(stderr=True)
        self.sources = choose_sources(data)
        out.mkdir(parents=True, exist_ok=True)
        identity = dataclasses.asdict(self.settings) | {"data": str(data.resolve()) if data else "builtin"}
        self.state = RoadState(out, json.loads(json.dumps(identity)))
        self.device = default_device()
        self._scores: dict[str, ProblemScores] = {}

    def run(self) -> RoadState:
        """Walk what is left of the road."""
        stages: list[tuple[str, Callable[[], dict[str, Any]]]] = [
            ("tokenizer", self.tokenizer),
            ("data", self.data),
            ("pretrain", self.pretrain),
            ("sft", self.sft),
            ("dpo", self.dpo),
            ("distill", self.distill),
            ("grpo", self.grpo),
        ]
        for number, (name, stage) in enumerate(stages, 1):
            if self.state.done(name):
                continue
            self.console.print(f"[bold]{number} of {len(stages)}: {name}[/bold]", highlight=False)
            with told_of_full_disk(name, self.out):
                self.state.begin(name)
                start = time.monotonic()
                result = stage()
                gc.collect()
                self.state.finish(name, result, time.monotonic() - start)
            figures = ", ".join(f"{key} {value}" for key, value in result.items() if isinstance(value, (int, float)))
            took = clock_time(self.state.values["seconds"][name])
            self.console.print(f"{name} took {took}: {figures}", highlight=False)
        return self.state

    def checkpoint(self, stage: str) -> Path:
        """Folder of a stage's finished model."""
        return self.out / "checkpoints" / stage

    def tokenizer(self) -> dict[str, Any]:
        """Train the tokenizer."""
        return make_tokenizer(self.sources, self.settings, self.out / "tokenizer")

    def data(self) -> dict[str, Any]:
        """Prepare the data of every stage."""
        return make_data(self.sources, self.settings, self.out / "tokenizer", self.out / "data")

    def pretrain(self) -> dict[str, Any]:
        """Train the base model, and measure bits per byte on held-out text beside gzip's."""
        model_config = self.settings.model | {"max_position_embeddings": max(1024, self.settings.row_length)}
        options = {"model_config": model_config, "tokenizer_name_or_path": str(self.out / "tokenizer")}
        self._train("pretrain", "pt", "pretrain", **options)
        texts = self._held_out()["texts"]
        model, tokenizer = self._load("pretrain")
        ours = bits_per_byte(model, tokenizer, texts, self.settings.row_length)
        # In the order that serves gzip best: its window then holds what is alike.
        gzip = gzip_bits_per_byte(sorted(texts))
        return {
            "parameters": model.num_parameters(),
            "bits_per_byte": round(ours, 4),
            "gzip_bits_per_byte": round(gzip, 4),
            "ratio": round(ours / gzip, 4),
            "held_out_bytes": sum(len(text.encode()) for text in texts),
        }

    def sft(self) -> dict[str, Any]:
        """Teach answering, and measure the loss on held-out answers before and after."""
        conversations = self._held_out()["conversations"]
        before = answer_loss(*self._load("pretrain"), conversations)
        self._train("sft", "sft", "sft", model_name_or_path=str(self.checkpoint("pretrain")))
        after = answer_loss(*self._load("sft"), conversations)
        return {"answer_loss_before": round(before, 4), "answer_loss_after": round(after, 4), "n": len(conversations)}

    def dpo(self) -> dict[str, Any]:
        """Teach preferences, and measure accuracy and margin on held-out pairs, and the loss on the chosen answers."""
        pairs = self._held_out()["preferences"]
        before = preference_scores(*self._load("sft"), pairs)
        self._train("dpo", "dpo", "dpo", model_name_or_path=str(self.checkpoint("sft")))
        after = preference_scores(*self._load("dpo"), pairs)
        margins = (after.log_ratios - before.log_ratios).tolist()
        return {
            "accuracy_before": round(sum(before.prefers_chosen) / len(pairs), 4),
            "accuracy_after": round(sum(after.prefers_chosen) / len(pairs), 4),
            "accuracy_change_ci95": rounded(paired_difference_interval(before.prefers_chosen, after.prefers_chosen)),
            "reward_accuracy": round(sum(margin > 0 for margin in margins) / len(pairs), 4),
            "reward_margin": round(sum(margins) / len(pairs), 4),
            "reward_margin_ci95": rounded(mean_interval(margins)),
            "answer_loss_before": round(before.chosen_loss, 4),
            "answer_loss_after": round(after.chosen_loss, 4),
            "n": len(pairs),
        }

    def distill(self) -> dict[str, Any]:
        """Teach thinking before answering, and measure how many held-out problems get well-formed thoughts."""
        self._train("distill", "sft", "distill", model_name_or_path=str(self.checkpoint("dpo")))
        scores = self._solve("distill")
        formed = sum(scores.formed)
        return {
            "format_rate": round(scores.format_rate, 4),
            "format_rate_ci95": rounded(wilson_interval(formed, len(scores.formed))),
            "accuracy": round(scores.accuracy, 4),
            "n": len(scores.right),
        }

    def grpo(self) -> dict[str, Any]:
        """Reinforce right answers, and measure held-out accuracy before and after on the same problems."""
        before = self._solve("distill")
        self._train("grpo", "grpo", "grpo", model_name_or_path=str(self.checkpoint("distill")))
        after = self._solve("grpo")
        return {
            "accuracy_before": round(before.accuracy, 4),
            "accuracy_after": round(after.accuracy, 4),
            "n": len(after.right),
            "ci95": {
                "before": rounded(before.ci95),
                "after": rounded(after.ci95),
                "change": rounded(paired_difference_interval(before.right, after.right)),
            },
            "format_rate": round(after.format_rate, 4),
        }

    def sample_answers(self) -> list[dict[str, str]]:
        """What the finished model says to three questions."""
        engine = load(str(self.checkpoint("grpo")), device=str(self.device), dtype="float32")
        prompts: list[Any] = [[{"role": "user", "content": question}] for question in QUESTIONS]
        answers = engine.generate(prompts, max_new_tokens=96)
        return [{"question": q, "answer": a.text} for q, a in zip(QUESTIONS, answers, strict=True)]

    def _train(self, name: str, stage: str, data: str, **options: Any) -> None:
        """Run a stage's recipe on this road's data; it goes on from its own last checkpoint."""
        recipe = files("small_doge.quickstart") / "recipes" / f"{name}.yaml"
        options |= {
            "dataset": str(self.out / "data" / data),
            "output_dir": str(self.checkpoint(name)),
            "seed": self.settings.seed,
            "stage": name,
            "use_cpu": self.device.type == "cpu",
        }
        options |= self.settings.overrides.get(name, {})
        argv = ["--config", str(recipe)]
        for key, value in options.items():
            argv += [f"--{key}", json.dumps(value)]
        import_module(f"small_doge.trainer.doge.{stage}").main(argv)

    def _load(self, stage: str) -> tuple[Any, Any]:
        path = str(self.checkpoint(stage))
        return nn.Module.to(load_checkpoint(path), self.device), AutoTokenizer.from_pretrained(path)

    def _solve(self, stage: str) -> ProblemScores:
        """How a stage's finished model does on the held-out problems, measured once."""
        if stage not in self._scores:
            engine = load(str(self.checkpoint(stage)), device=str(self.device), dtype="float32")
            self._scores[stage] = solve(engine, self._held_out()["problems"])
        return self._scores[stage]

    def _held_out(self) -> dict[str, Any]:
        return json.loads((self.out / "data" / "held_out.json").read_text(encoding="utf-8"))


@contextmanager
def told_of_full_disk(stage: str, out: Path) -> Iterator[None]:
    """Turn a full disk into one line that says what is kept; stages that train say it themselves."""
    try:
        yield
    except OSError as error:
        if error.errno != errno.ENOSPC or "free some space" in str(error):
            raise
        raise OSError(
            errno.ENOSPC,
            f"the disk is full in the stage {stage}: free some space and run again; the finished stages in {out} stay",
        ) from error


def rounded(interval: tuple[float, float]) -> list[float]:
    """An interval as two numbers of four digits."""
    return [round(end, 4) for end in interval]
