"""Data sets from a recipe: a YAML file whose keys are the arguments of `mix_datasets_by_ratio`; and looking at them."""

from __future__ import annotations

import difflib
import inspect as python_inspect
import os
import re
import shutil
from collections.abc import Callable, Mapping
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from small_doge.processor import ft_datasets_process, pt_datasets_process
from small_doge.processor.report import REPORT_FILE, Report
from small_doge.processor.row_store import check_output, publish
from small_doge.processor.sources import BUILTIN_PREFIX, local_copy, open_source, source_names
from small_doge.processor.sources.catalog import catalog
from small_doge.processor.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

STAGES: dict[str, Callable[..., Any]] = {
    "pt": pt_datasets_process.mix_datasets_by_ratio,
    "ft": ft_datasets_process.mix_datasets_by_ratio,
}
OWN_KEYS = ("stage", "output", "tokenizer")
NOT_IN_RECIPES = ("processing_class", "formatting_func", "cache_dir")


def prepare(recipe: str | Path | Mapping[str, Any], overrides: Mapping[str, Any] | None = None) -> Report:
    """Make the data set that a recipe describes and save it to the recipe's `output`; returns the report.

    A recipe has `stage` (pt or ft), `output` (a folder), `tokenizer` (a folder or name, where tokens are made) and the
    arguments of that stage's `mix_datasets_by_ratio`. `$NAME` and `${NAME}` stand for environment variables. A run
    that was killed goes on where it was, to the same bytes; a finished one is made anew.

    Raises:
        ValueError: the recipe cannot be read or a key is unknown, with the nearest name, or a variable is not set, or
            `output` holds other files where the data set would be.
    """
    settings = checked_settings(recipe, overrides)
    stage, output, tokenizer = settings.pop("stage"), settings.pop("output"), settings.pop("tokenizer", None)
    check_output(Path(output))
    partial = Path(output) / ".partial"
    mixed = STAGES[stage](processing_class=tokenizer, cache_dir=partial, **settings)
    report: Report = mixed.report
    publish(mixed, report, mixed.cache, Path(output))
    del mixed
    shutil.rmtree(partial)
    return report


def checked_settings(recipe: str | Path | Mapping[str, Any], overrides: Mapping[str, Any] | None) -> dict[str, Any]:
    """A recipe with its overrides and environment variables put in.

    Raises:
        ValueError: it cannot be read, or a key is unknown or missing.
    """
    settings = _expanded({**read_recipe(recipe), **(overrides or {})})
    stage = settings.get("stage")
    if stage not in STAGES:
        raise ValueError(f"The recipe's stage is {stage!r}: give one of {', '.join(STAGES)}.")
    if not settings.get("output"):
        raise ValueError("The recipe names no output: add `output: FOLDER`.")
    allowed = [name for name in python_inspect.signature(STAGES[stage]).parameters if name not in NOT_IN_RECIPES]
    known = [*OWN_KEYS, *allowed]
    for key in settings:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}."
            raise ValueError(f"The recipe has the unknown key {key!r}: {hint}")
    if "datasets_and_ratios" not in settings:
        raise ValueError("The recipe names no sources: add `datasets_and_ratios`, a list of NAME: RATIO.")
    return settings


def _expanded(value: Any) -> Any:
    """A recipe's value with environment variables put in, in names and texts to any depth."""
    if isinstance(value, dict):
        return {_expanded(key): _expanded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_expanded(item) for item in value]
    if not isinstance(value, str):
        return value
    expanded = os.path.expanduser(os.path.expandvars(value))
    if missing := re.search(r"\$\{?(\w+)\}?", expanded):
        raise ValueError(f"The recipe uses ${missing.group(1)}, which is not set: export {missing.group(1)}=... first.")
    return expanded


def read_recipe(recipe: str | Path | Mapping[str, Any]) -> dict[str, Any]:
    """A recipe as a dict.

    Raises:
        ValueError: there is no such file, or it is no YAML mapping.
    """
    if isinstance(recipe, Mapping):
        return dict(recipe)
    path = Path(recipe)
    if not path.is_file():
        raise ValueError(f"There is no recipe {path}: correct the path.")
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid YAML ({' '.join(str(error).split())[:150]}): mend it.") from None
    if not isinstance(data, dict):
        raise ValueError(f"{path} holds no settings: write KEY: VALUE lines.")
    return data


def list_sources() -> list[dict[str, str]]:
    """Every source known by name: name, kind, description, license and where it would be read from."""
    from small_doge.processor.builtin import BUILTIN_SOURCES

    rows = []
    for name in source_names():
        if name.startswith(BUILTIN_PREFIX):
            description = getattr(BUILTIN_SOURCES[name], "description", "")
            rows.append({"name": name, "kind": "builtin", "description": description, "license": "", "from": "here"})
        else:
            spec = catalog()[name.lower()]
            local = local_copy(spec)
            where = str(local) if local is not None else f"hub: {spec.hub_id}"
            rows.append(
                {
                    "name": name,
                    "kind": spec.kind,
                    "description": spec.description,
                    "license": spec.license,
                    "from": where,
                }
            )
    return rows


def show_source(name: str, rows: int = 2) -> dict[str, Any]:
    """What is known of a source, and its first rows; works for any name, path or Hub id."""
    first = [{"origin": row.origin, **row.fields} for row in islice(open_source(name, Report()), rows)]
    spec = catalog().get(name.lower())
    known = {} if spec is None else {key: value for key, value in vars(spec).items() if value is not None}
    return {**known, "rows": first}


def inspect_folder(
    folder: str | Path, tokenizer: PreTrainedTokenizerBase | str | None = None, rows: int = 1
) -> dict[str, Any]:
    """A prepared folder in figures, its report, and its first rows as text, what the assistant says in brackets.

    Raises:
        ValueError: there is no prepared data set.
    """
    import pyarrow.compute as pc
    from datasets import load_from_disk

    path = Path(folder)
    if not (path / "dataset_dict.json").exists():
        raise ValueError(f"{path} holds no prepared data set: give the output of `small-doge data prepare`.")
    saved = load_from_disk(str(path))
    loaded = None if tokenizer is None else load_tokenizer(tokenizer)
    parts: dict[str, Any] = {}
    for name, part in saved.items():
        shown = [_readable(part[i], loaded) for i in range(min(rows, len(part)))]
        parts[str(name)] = {"rows": len(part), "columns": part.column_names, "first_rows": shown}
        if "input_ids" in part.column_names and len(part):
            parts[str(name)]["tokens"] = pc.sum(pc.list_value_length(part.data.column("input_ids"))).as_py()
    report = Report.load(path).as_dict() if (path / REPORT_FILE).exists() else None
    return {"folder": str(path), "parts": parts, "report": report}


def _readable(row: dict[str, Any], tokenizer: PreTrainedTokenizerBase | None) -> Any:
    if "input_ids" not in row or tokenizer is None:
        return row
    pieces, start = [], 0
    for size in row.get("seq_lengths") or [len(row["input_ids"])]:
        ids = row["input_ids"][start : start + size]
        masks = (row.get("assistant_masks") or [0] * len(row["input_ids"]))[start : start + size]
        pieces.append(_marked(ids, masks, tokenizer))
        start += size
    return pieces


def _marked(ids: list[int], masks: list[int], tokenizer: PreTrainedTokenizerBase) -> str:
    """The text, with what the mask marks between ⟦ and ⟧."""
    text, start = "", 0
    for end in range(1, len(ids) + 1):
        if end == len(ids) or masks[end] != masks[start]:
            part = str(tokenizer.decode(ids[start:end]))
            text += f"⟦{part}⟧" if masks[start] else part
            start = end
    return text
