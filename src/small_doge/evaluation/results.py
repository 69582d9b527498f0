"""From item scores to results: rows with intervals, as JSON, Markdown, a table and a plot; and models compared."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from small_doge.evaluation.harness import TaskScores
from small_doge.evaluation.statistics import paired_difference_interval, wilson_interval

Z95 = 1.959964
COLUMNS = ("task", "shots", "metric", "value", "stderr", "95 % interval", "chance", "items")
Result = dict[str, Any]


def mean_with_interval(values: Sequence[float]) -> tuple[float, float, tuple[float, float]]:
    """Mean, standard error and 95 % interval: Wilson's for shares, the normal one for other values."""
    mean, n = fmean(values), len(values)
    error = stdev(values) / math.sqrt(n) if n > 1 else float("nan")
    if set(values) <= {0.0, 1.0}:
        return mean, error, wilson_interval(round(sum(values)), n)
    return mean, error, (mean - Z95 * error, mean + Z95 * error)


def perplexity(log_probability: float) -> float:
    """exp(-x), and the largest float where that is larger still."""
    return math.exp(min(-log_probability, 709.0))


def finite(x: float) -> float | None:
    """The number, or None for one that JSON does not have."""
    return x if math.isfinite(x) else None


def task_rows(scores: TaskScores) -> list[Result]:
    """A row for each metric of a task."""
    rows = []
    for metric, values in scores.items.items():
        if metric == "perplexity":
            # Of the log-probabilities, and then turned into a perplexity with the ends of the interval changed over.
            mean, error, (low, high) = mean_with_interval(values)
            value, low, high = perplexity(mean), perplexity(high), perplexity(low)
            error *= value
        else:
            value, error, (low, high) = mean_with_interval(values)
        rows.append(
            {
                "task": scores.task,
                "shots": scores.shots,
                "metric": metric,
                "value": value,
                "stderr": finite(error),
                "ci95": [finite(low), finite(high)],
                "chance": scores.chance if metric.startswith("acc") else None,
                "n": len(values),
                "official_n": scores.official,
                "primary": metric == scores.primary,
                "seconds": round(scores.seconds, 2),
            }
        )
    return rows


def group_values(scores: TaskScores) -> dict[str, dict[str, float | int]]:
    """The primary metric by group (MMLU's subject, BBH's task), where there are groups."""
    found: dict[str, list[float]] = {}
    for group, value in zip(scores.groups, scores.items[scores.primary], strict=False):
        found.setdefault(group, []).append(value)
    return {group: {"value": fmean(values), "n": len(values)} for group, values in sorted(found.items())}


def make_result(about: dict[str, Any], tasks: Sequence[TaskScores], domains: Sequence[Result] = ()) -> Result:
    """Everything that a run found.

    Args:
        about: Model, device, seed and whatever else says how it was made.
        domains: Rows of bits per byte, in the shape of `task_rows`.
    """
    return {
        **about,
        "rows": [row for scores in tasks for row in task_rows(scores)] + list(domains),
        "groups": {scores.task: group_values(scores) for scores in tasks if scores.groups},
        "items": {scores.task: scores.items for scores in tasks},
    }


def shown(row: Result) -> list[str]:
    """A row's cells, in the order of `COLUMNS`: shares in per cent."""
    share = row["metric"] not in ("perplexity", "bits_per_byte")

    def number(x: float | None) -> str:
        if x is None:
            return "-"
        return f"{100 * x:.2f}" if share else f"{x:,.3f}"

    of = f" of {row['official_n']:,}" if row["official_n"] and row["n"] <= row["official_n"] else ""
    return [
        row["task"],
        "-" if row["shots"] is None else str(row["shots"]),
        row["metric"],
        number(row["value"]),
        number(row["stderr"]),
        "-" if None in row["ci95"] else " to ".join(map(number, row["ci95"])),
        row["reference"] if "reference" in row else number(row["chance"]),
        f"{row['n']:,}{of}",
    ]


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Rows as a Markdown table."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def to_markdown(result: Result) -> str:
    """A page about one model."""
    about = {key: value for key, value in result.items() if key not in ("rows", "groups", "items")}
    head = "".join(f"- {key}: {value}\n" for key, value in about.items())
    table = markdown_table(COLUMNS, [shown(row) for row in result["rows"]])
    return (
        f"# Evaluation of {result['model']}\n\n{head}\n{table}\n"
        "Accuracies in per cent. Items: those scored, of those in the official set. Shots: worked examples in the "
        "prompt. Chance: what guessing gets.\n"
    )


def plot(results: Sequence[Result], path: Path) -> None:
    """Bars of the primary metric of each task with 95 % intervals, a color for each model, and chance as a mark."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    tables = [{row["task"]: row for row in result["rows"] if row["primary"]} for result in results]
    tasks = list(dict.fromkeys(task for table in tables for task in table))
    width = 0.8 / len(results)
    figure, axes = pyplot.subplots(figsize=(max(6.0, 1.1 * len(tasks)), 4.0), layout="constrained")
    for number, (result, table) in enumerate(zip(results, tables, strict=True)):
        places = [
            place + (number - (len(results) - 1) / 2) * width for place, task in enumerate(tasks) if task in table
        ]
        rows = [table[task] for task in tasks if task in table]
        values = [100 * row["value"] for row in rows]
        errors = [
            [max(0.0, 100 * (row["value"] - row["ci95"][0])) for row in rows],
            [max(0.0, 100 * (row["ci95"][1] - row["value"])) for row in rows],
        ]
        axes.bar(places, values, width, yerr=errors, capsize=2, label=str(result["model"]))
    chance = {task: row["chance"] for table in tables for task, row in table.items() if row["chance"] is not None}
    for task, share in chance.items():
        place = tasks.index(task)
        axes.plot([place - 0.45, place + 0.45], [100 * share] * 2, color="black", linestyle=":", linewidth=1)
    axes.set_xticks(range(len(tasks)), tasks, rotation=30, ha="right")
    axes.set_ylabel("per cent; dotted: chance")
    axes.legend(fontsize="small", loc="lower left", bbox_to_anchor=(0, 1), ncols=3, frameon=False)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def write_result(result: Result, folder: Path) -> None:
    """`results.json`, `results.md` and, where there are tasks, `results.png` in the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    (folder / "results.md").write_text(to_markdown(result), encoding="utf-8")
    if any(row["primary"] for row in result["rows"]):
        plot([result], folder / "results.png")


def read_result(path: Path) -> Result:
    """A `results.json`, given by itself or by its folder.

    Raises:
        ValueError: the file is not there, or is no result.
    """
    file = path / "results.json" if path.is_dir() else path
    if not file.is_file():
        raise ValueError(f"there is no {file}: name a results.json that `small-doge eval --output` wrote.")
    result = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(result, dict) or not {"model", "rows", "items"} <= set(result):
        raise ValueError(f"{file} is no result of `small-doge eval --tasks`: name its results.json.")
    return result


def difference(first: Result, other: Result, task: str, metric: str) -> tuple[float, float, float, bool]:
    """Other less first, its 95 % interval, and whether the same items were compared one by one."""
    before, after = (result["items"][task][metric] for result in (first, other))
    paired = first["seed"] == other["seed"] and len(before) == len(after)
    if paired and set(before) | set(after) <= {0.0, 1.0}:
        low, high = paired_difference_interval([x == 1 for x in before], [x == 1 for x in after])
        return fmean(after) - fmean(before), low, high, True
    if paired:
        mean, _, (low, high) = mean_with_interval([b - a for a, b in zip(before, after, strict=True)])
        return mean, low, high, True
    (a, error_a, _), (b, error_b, _) = mean_with_interval(before), mean_with_interval(after)
    half = Z95 * math.hypot(error_a, error_b)
    return b - a, b - a - half, b - a + half, False


def short_names(models: Sequence[str]) -> list[str]:
    """Each model's path without the folders that all of them begin with."""
    parts = [model.rstrip("/").split("/") for model in models]
    folders = zip(*(p[:-1] for p in parts), strict=False)
    shared = sum(1 for _ in takewhile(lambda level: len(set(level)) == 1, folders))
    return ["/".join(p[shared:]) for p in parts]


def comparison_rows(results: Sequence[Result]) -> tuple[list[str], list[list[str]]]:
    """Columns and rows of a table: the primary metric of each task for each model, and what each differs by from the
    first, with its interval.
    """
    names = short_names([str(result["model"]) for result in results])
    columns = ["task", "metric", *names, *(f"{name} less {names[0]}, 95 % interval" for name in names[1:])]
    tables = [{(row["task"], row["metric"]): row for row in result["rows"] if row["primary"]} for result in results]
    rows = []
    for task, metric in tables[0]:
        cells = [task, metric]
        for table in tables:
            row = table.get((task, metric))
            cells.append(f"{100 * row['value']:.2f} (n {row['n']:,}, {row['shots']} shots)" if row else "-")
        for other, table in zip(results[1:], tables[1:], strict=True):
            if (task, metric) not in table:
                cells.append("-")
                continue
            value, low, high, paired = difference(results[0], other, task, metric)
            how = "" if paired else ", other items"
            cells.append(f"{100 * value:+.2f} ({100 * low:+.2f} to {100 * high:+.2f}{how})")
        rows.append(cells)
    return columns, rows
