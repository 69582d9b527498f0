"""Every task reads the real files, asks what it should, and IFEval's checks agree with the paper's on real answers."""

import pytest

pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install 'small-doge[eval]'")

from lm_eval.tasks import TaskManager

from small_doge.evaluation.harness import task_metadata
from small_doge.evaluation.lists import TASKS_FOLDER, task_names
from small_doge.evaluation.metrics import followed
from small_doge.evaluation.rows import find_rows, flat, read_rows

pytestmark = pytest.mark.data

ROWS = {
    "arc_challenge": 603,
    "arc_easy": 1208,
    "bbh": 3220,
    "boolq": 1607,
    "gsm8k": 666,
    "hellaswag": 5123,
    "ifeval": 282,
    "lambada": 2578,
    "math500": 252,
    "mmlu": 7073,
    "needle": 100,
    "openbookqa": 248,
    "piqa": 948,
    "triviaqa": 1483,
    "winogrande": 647,
}
"""Rows of each file, as the README of the data counts them."""


@pytest.mark.parametrize("name", task_names())
def test_a_task_reads_its_file_and_builds_its_prompts(real_data, name):
    metadata = task_metadata(name)
    shots = metadata["shots"]
    runtime = {"data_dir": str(real_data), "shots": shots, "seed": 0}
    manager = TaskManager(include_path=str(TASKS_FOLDER), include_defaults=False, metadata=runtime)
    (task,) = manager.load(name)["tasks"].values()
    worked = "worked" in task.task_docs.features
    assert len(task.eval_docs) == ROWS[name] - (0 if worked else shots)
    assert ROWS[name] <= metadata["official"]
    task.set_config("num_fewshot", 0 if worked else shots)
    task.build_all_requests(limit=2)
    for instance in task.instances:
        assert instance.args[0] and instance.args[0] == instance.args[0].rstrip(" ")
        if shots and name != "bbh":
            assert instance.args[0].count("\n\n") >= shots
        if instance.request_type == "loglikelihood":
            assert instance.args[1].startswith(" ")


def test_gpt4s_answers_follow_as_many_instructions_as_the_paper_says(real_data):
    pytest.importorskip("langdetect", reason="langdetect is not installed: pip install 'small-doge[eval]'")
    prompts = flat(read_rows(find_rows(real_data, "ifeval_input_data")))
    answers = {row["prompt"]: row["response"] for row in read_rows(find_rows(real_data, "ifeval_gpt4_responses"))}
    found = [followed(row, [answers[row["prompt"]]]) for row in prompts]
    published = {
        "prompt_strict": 0.7689,
        "instruction_strict": 0.8357,
        "prompt_loose": 0.7930,
        "instruction_loose": 0.8537,
    }
    for metric, share in published.items():
        # Three standard errors of 282 prompts, which are half of the paper's 541.
        assert abs(sum(scores[metric] for scores in found) / len(found) - share) < 0.05
