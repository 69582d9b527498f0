"""What a distilled model learns next, by three roads: more traces, a larger model's logits, and a curriculum.

    python benchmarks/after_distillation.py --student runs/real-20M --teacher runs/real-60M --out runs/after
        [--arms traces logits logits_grpo curriculum] [--steps 120]

Both runs are of real_run.py. Every arm starts from the student's `distill`, takes the same number of steps at the same
rates, and is measured as real_run.py measures a stage, beside where it started, on the same problems:
traces: supervised on the worked problems of the distillation; logits: the questions of the same problems, answered by
the student, and the logits of the teacher's `distill`; logits_grpo: comparisons of numbers and the logits of the
teacher's `grpo`, no reward; curriculum: reinforcement on reasoning-gym's tasks, and held-out problems of them before
and after. A finished arm is not run again. Results go to OUT/after_distillation.json; the last line printed is JSON.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import yaml
from datasets import Dataset, DatasetDict, load_from_disk
from real_run import MUON, ROOT, Run
from reasoning_gym import create_dataset
from reasoning_gym.factory import create_curriculum
from transformers import AutoTokenizer

from small_doge.evaluation.results import mean_with_interval
from small_doge.evaluation.statistics import paired_difference_interval
from small_doge.inference import load
from small_doge.rewards import Group, get_reward

RATES: dict[str, Any] = {"muon_learning_rate": 0.005, "learning_rate": 0.001, **MUON}
ROLLOUTS: dict[str, Any] = {"max_completion_length": 256, "per_device_train_batch_size": 128}
ARMS: dict[str, dict[str, Any]] = {
    "traces": {
        "module": "sft",
        "recipe": "Doge-{size}-Reason/sft/config_full.yaml",
        "dataset": "reasoning_dataset",
        "max_length": 2048,
        "train_sampling_strategy": "group_by_length",
        "per_device_train_batch_size": 128,
        "gradient_accumulation_steps": 1,
    },
    "logits": {
        "module": "distill",
        "recipe": "Doge-20M-Reason/distill/config_full.yaml",
        "dataset": "questions",
        "teacher": "distill",
        "gradient_accumulation_steps": 1,
        **ROLLOUTS,
    },
    "logits_grpo": {
        "module": "distill",
        "recipe": "Doge-20M-Reason/distill/config_full.yaml",
        "dataset": "arithmetic_dataset",
        "teacher": "grpo",
        "gradient_accumulation_steps": 1,
        **ROLLOUTS,
        "max_completion_length": 64,
    },
    "curriculum": {
        "module": "grpo",
        "recipe": "Doge-20M-Reason/grpo/config_curriculum.yaml",
        "gradient_accumulation_steps": 4,
        **ROLLOUTS,
        "max_completion_length": 128,
    },
}
"""What each arm runs, and the options that differ from its recipe."""
LEVELS = (0, 1, 2)
"""Levels of reasoning-gym's curricula whose problems are answered before and after."""


class Arms(Run):
    """Real_run's training and measuring, for arms that begin at the same model."""

    def walk(self) -> None:
        """Measure the beginning, then train and measure arm after arm."""
        for name in ("distill", *self.args.arms):
            if name not in self.results:
                seconds = 0.0 if name == "distill" else self.train(name, ARMS[name])
                logged = {} if name == "distill" else self.logged(name)
                self.results[name] = {"seconds": round(seconds, 1), **logged, **self.measure(name)}
                self.file.write_text(json.dumps({"stages": self.results, **self.about}, indent=1) + "\n")
                print(name, json.dumps(self.results[name])[:1500], flush=True)
        print(json.dumps({"stages": self.results, **self.about}))

    def train(self, name: str, stage: dict[str, Any]) -> float:
        """Run the arm's command; seconds."""
        own = ("module", "recipe", "dataset", "teacher")
        options = RATES | {key: value for key, value in stage.items() if key not in own}
        options |= {"model_name_or_path": str(self.out / "distill"), "output_dir": str(self.out / name)}
        options |= {"stage": name, "save_strategy": "no", "eval_strategy": "no", "eval_on_start": False}
        options |= {"max_steps": self.args.steps}
        if "dataset" in stage:
            folder = self.questions() if stage["dataset"] == "questions" else self.args.datasets / stage["dataset"]
            options["dataset"] = str(folder)
        if "teacher" in stage:
            options["teacher_model_name_or_path"] = str(self.args.teacher / stage["teacher"])
        options |= self.options.get(name, {})
        return self.launch(name, stage["module"], stage["recipe"].format(size=self.args.size), options)

    def questions(self) -> Path:
        """The questions of the worked problems that the traces answer, as a data set."""
        folder = self.out / "questions"
        if not folder.exists():
            tokenizer = AutoTokenizer.from_pretrained(str(self.out / "distill"))
            rows = load_from_disk(str(self.args.datasets / "reasoning_dataset"))["train"]
            texts = [tokenizer.decode(row["input_ids"]) for row in rows]
            asked = [
                text.split("user<|end_header_id|>")[1].split("<|eot_id|>")[0] for text in texts if "<think>" in text
            ]
            DatasetDict(train=Dataset.from_dict({"question": asked})).save_to_disk(str(folder))
        return folder

    def measure(self, name: str) -> dict[str, Any]:
        """What real_run measures; changes from the beginning on the same problems; reasoning-gym's where it matters."""
        figures = super().measure(name)
        gym = name in ("distill", "curriculum") and "curriculum" in self.args.arms
        kinds = ["comparisons", "sums", *(["gym"] if gym else [])]
        if gym:
            figures["gym"] = self.gym(name)
        if name != "distill":
            for kind in kinds:
                before, after = (
                    json.loads((self.out / f"{n}.{kind}.right.json").read_text()) for n in ("distill", name)
                )
                figures[kind]["change_ci95"] = paired_difference_interval(before, after)
        return figures

    def gym(self, name: str) -> dict[str, Any]:
        """Scores on held-out problems of the curriculum's tasks, by task and level."""
        tasks = yaml.safe_load((ROOT / "recipes" / "doge" / ARMS["curriculum"]["recipe"]).read_text())["curriculum"]
        cells = [(task, level) for task in tasks for level in LEVELS]
        entries = [(cell, entry) for cell in cells for entry in problems(*cell, n=self.args.problems // 10)]
        engine = load(
            str(self.out / name), device=str(self.device), dtype="bf16" if self.device.type == "cuda" else "fp32"
        )
        prompts: list[Any] = [[{"role": "user", "content": entry["question"]}] for _, entry in entries]
        answers = engine.generate(prompts, max_new_tokens=128, batch_size=500)
        judge = get_reward("gym")
        scores = [
            judge(Group(str(entry["answer"]), [answer.text], [answer.token_ids], entry["metadata"]))[0] or 0.0
            for (_, entry), answer in zip(entries, answers, strict=True)
        ]
        right = [score > 0.99 for score in scores]
        (self.out / f"{name}.gym.right.json").write_text(json.dumps(right))
        figures: dict[str, Any] = {"n": len(right), "right": round(sum(right) / len(right), 4)}
        for cell in cells:
            here = [score for (other, _), score in zip(entries, scores, strict=True) if other == cell]
            mean, _, interval = mean_with_interval([float(score > 0.99) for score in here])
            figures[f"{cell[0]} {cell[1]}"] = [round(mean, 4), *(round(end, 4) for end in interval)]
        figures["samples"] = [
            [prompts[i][0]["content"], answers[i].text] for i in range(0, len(prompts), len(prompts) // 9)
        ]
        return figures


def problems(task: str, level: int, n: int) -> list[dict[str, Any]]:
    """Problems of a task at a level, of a seed that no training uses; the easiest levels have few different ones."""
    curriculum = create_curriculum(task)
    curriculum.set_global_level(level)
    configuration = curriculum.generate_configuration({"seed": 1_000_003, "size": n})
    dataset = create_dataset(task, **vars(configuration))
    return [dataset[index] for index in range(n)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="20M", help="the student's")
    parser.add_argument("--student", type=Path, required=True, help="a run of real_run.py")
    parser.add_argument("--teacher", type=Path, required=True, help="another, with the same tokenizer")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--datasets", type=Path, default=Path("datasets"), help="what `small-doge data prepare` made")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--options", type=Path, help="YAML: {arm: {option: value}}")
    parser.add_argument("--problems", type=int, default=1000, help="the most of a task to answer")
    parser.add_argument("--held-out", type=int, default=500, help="the most rows to measure a loss on")
    args = parser.parse_args()
    for name in ("out", "datasets", "student", "teacher"):
        setattr(args, name, getattr(args, name).resolve())
    args.out.mkdir(parents=True, exist_ok=True)
    beginning = args.out / "distill"
    if not beginning.exists():
        beginning.symlink_to(args.student / "distill")
    arms = Arms(args)
    arms.file = args.out / "after_distillation.json"
    arms.results = json.loads(arms.file.read_text())["stages"] if arms.file.exists() else {}
    arms.walk()


if __name__ == "__main__":
    main()
