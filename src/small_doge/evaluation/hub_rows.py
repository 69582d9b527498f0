"""From the fields of the hub's data sets to those of the local files, so that a task is written once."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

Row = dict[str, Any]


def arc(row: Row) -> Row:
    """allenai/ai2_arc: labels are letters or digits."""
    labels = row["choices"]["label"]
    return {
        "query": f"Question: {row['question']}",
        "choices": row["choices"]["text"],
        "gold": labels.index(row["answerKey"]),
    }


def openbookqa(row: Row) -> Row:
    """allenai/openbookqa."""
    gold = row["choices"]["label"].index(row["answerKey"].strip())
    return {"query": row["question_stem"], "choices": row["choices"]["text"], "gold": gold}


def clean_hellaswag(text: str) -> str:
    """WikiHow's marks out of a HellaSwag text."""
    text = text.strip().replace(" [title]", ". ")
    return re.sub(r"\[.*?\]", "", text).replace("  ", " ")


def hellaswag(row: Row) -> Row:
    """Rowan/hellaswag: the two halves of the context joined, and cleaned."""
    context = f"{row['ctx_a']} {row['ctx_b'].capitalize()}"
    return {
        "query": clean_hellaswag(f"{row['activity_label']}: {context}"),
        "endings": [clean_hellaswag(ending) for ending in row["endings"]],
        "label": int(row["label"]),
    }


def piqa(row: Row) -> Row:
    """ybisk/piqa and its copies."""
    return {name: row[name] for name in ("goal", "sol1", "sol2", "label")}


def winogrande(row: Row) -> Row:
    """allenai/winogrande: the blank filled by either option, and what follows it."""
    before, after = row["sentence"].split("_")
    return {
        "context_options": [before + row["option1"], before + row["option2"]],
        "continuation": after.strip(),
        "gold": int(row["answer"]) - 1,
    }


def boolq(row: Row) -> Row:
    """aps/super_glue, boolq."""
    query = f"Passage: {row['passage']}\nQuestion: {row['question']}?"
    return {"query": query, "choices": ["no", "yes"], "gold": int(row["label"])}


def lambada(row: Row) -> Row:
    """EleutherAI/lambada_openai: the last word is the continuation."""
    context, continuation = row["text"].rsplit(" ", 1)
    return {"context": context, "continuation": continuation}


def triviaqa(row: Row) -> Row:
    """mandarjoshi/trivia_qa, rc.nocontext."""
    return {
        "context": f"Question: {row['question']}\nAnswer:",
        "answer": row["answer"]["value"],
        "aliases": row["answer"]["aliases"],
    }


def mmlu(row: Row) -> Row:
    """cais/mmlu."""
    return {name: row[name] for name in ("subject", "question", "choices", "answer")}


def math(row: Row) -> Row:
    """HuggingFaceH4/MATH-500."""
    return {name: row[name] for name in ("problem", "solution", "answer")}


def gsm8k(row: Row) -> Row:
    """openai/gsm8k."""
    return {name: row[name] for name in ("question", "answer")}


def ifeval(row: Row) -> Row:
    """google/IFEval: settings that an instruction does not have are None there and absent here."""
    kwargs = [{k: v for k, v in setting.items() if v is not None} for setting in row["kwargs"]]
    return {**{k: row[k] for k in ("key", "prompt", "instruction_id_list")}, "kwargs": kwargs}


def bbh(row: Row) -> Row:
    """SaylorTwift/bbh and lukaemon/bbh, one configuration a task; the loader names the task."""
    return {name: row[name] for name in ("task", "input", "target")}


HUB_ROWS: dict[str, Callable[[Row], Row]] = {
    convert.__name__: convert
    for convert in (
        arc,
        openbookqa,
        hellaswag,
        piqa,
        winogrande,
        boolq,
        lambada,
        triviaqa,
        mmlu,
        math,
        gsm8k,
        ifeval,
        bbh,
    )
}
