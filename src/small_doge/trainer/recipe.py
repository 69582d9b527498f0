"""Reads a YAML recipe and the command line's overrides into a stage's arguments, refusing what it does not know."""

from __future__ import annotations

import dataclasses
import difflib
import logging
import os
import sys
import textwrap
import types
import typing
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
import yaml

from small_doge.trainer.budget import options_for_tokens

logger = logging.getLogger(__name__)

Arguments = TypeVar("Arguments")

# Names that released recipes and guides use, for fields that transformers has since renamed.
RENAMED = {
    "warmup_ratio": "warmup_steps",
    "torch_dtype": "dtype",
    "evaluation_strategy": "eval_strategy",
    "min_lr_rate": "min_lr_ratio",
}

OTHER_MICRO_BATCHES = {"per_device_train_batch_size", "auto_find_batch_size"}
"""Options that `auto_micro_batch` of a recipe would overrule or refuse."""
AUTO_MICRO_BATCH = {"auto_micro_batch", "memory_gib"}


def load_recipe(kind: type[Arguments], argv: Sequence[str]) -> Arguments:
    """The arguments of one stage, from `--config FILE.yaml` and `--field value` overrides.

    Another way to a micro-batch among the overrides wins over the recipe's `auto_micro_batch` too.

    Raises:
        ValueError: an unknown field (the nearest valid name is given), a value of the wrong type, a file that is not
            YAML.
        SystemExit: --help is among them, and what may be set was printed.
    """
    if "--help" in argv:
        print(describe_options(kind))
        raise SystemExit(0)
    path, overrides = _split(argv)
    values = _read_yaml(path) if path is not None else {}
    origin = dict.fromkeys(values, str(path))
    for name, text in overrides.items():
        values[name] = yaml.safe_load(text) if text != "" else ""
        origin[name] = "the command line"
    if OTHER_MICRO_BATCHES & overrides.keys() and not AUTO_MICRO_BATCH & overrides.keys():
        values = {name: value for name, value in values.items() if name not in AUTO_MICRO_BATCH}
    if values.get("tokens") is not None and hasattr(kind, "tokens"):
        if origin.get("gradient_accumulation_steps") == "the command line":
            raise ValueError(
                "tokens sets the rows of a step: drop gradient_accumulation_steps (per_device_train_batch_size is the "
                "largest micro-batch to use), or set max_steps in the place of tokens."
            )
        for name, value in options_for_tokens(values).items():
            if name in ("tokens", "per_device_train_batch_size") or origin.get(name) != "the command line":
                values[name], origin[name] = value, "tokens"

    hints = typing.get_type_hints(kind)
    known = {f.name for f in dataclasses.fields(kind) if f.init}  # type: ignore[arg-type]
    arguments: dict[str, Any] = {}
    for given, value in values.items():
        name = RENAMED.get(given, given)
        if name not in known:
            # YAML reads on, off, yes and no as booleans.
            near = difflib.get_close_matches(str(name), sorted(known), n=1)
            mend = f"did you mean {near[0]!r}?" if near else "remove it."
            raise ValueError(f"{origin[given]}: there is no option {given!r} in {kind.__name__}: {mend}")
        arguments[name] = _coerce(value, hints[name], f"{origin[given]}: {given}")
    if arguments.get("bf16") and arguments.get("fp16"):
        raise ValueError("bf16 and fp16 are both true: choose one (bf16 on recent GPUs).")
    if arguments.get("bf16") and not arguments.get("use_cpu") and not torch.cuda.is_available():
        raise ValueError("bf16 is for a GPU, and torch sees none: add --use_cpu true --bf16 false to train on the CPU.")
    if path is None and not overrides:
        raise ValueError("no recipe: give --config RECIPE.yaml, such as one of recipes/doge.")
    if not arguments.get("output_dir"):
        raise ValueError("no output_dir: name the folder to write to, in the recipe or with --output_dir.")
    return kind(**arguments)


def describe_options(kind: type) -> str:
    """What a recipe of a stage may set: this project's options with their help, and the names of the library's."""
    own = [base for base in kind.__mro__ if base.__module__.startswith("small_doge")]
    library = next(base for base in kind.__mro__ if base not in own)
    fields = {f.name: f for f in dataclasses.fields(kind) if f.init}
    ours = [name for base in reversed(own) for name in vars(base).get("__annotations__", {}) if name in fields]
    lines = ["--config RECIPE.yaml, and any of these as --name value, in the recipe as `name: value`:"]
    for name in dict.fromkeys(ours):
        field = fields.pop(name)
        factory = field.default_factory
        default = field.default if factory is dataclasses.MISSING else factory()
        lines.append(f"  --{name}  [default: {default}]")
        lines += textwrap.wrap(field.metadata.get("help", ""), 100, initial_indent=" " * 6, subsequent_indent=" " * 6)
    lines.append(f"and those of {library.__module__.partition('.')[0]}'s {library.__name__}:")
    lines += textwrap.wrap(", ".join(sorted(fields)), 100, initial_indent="  ", subsequent_indent="  ")
    return "\n".join(lines)


def _split(argv: Sequence[str]) -> tuple[Path | None, dict[str, str]]:
    path: Path | None = None
    overrides: dict[str, str] = {}
    words = list(argv)
    while words:
        word = words.pop(0)
        if not word.startswith("--"):
            raise ValueError(f"{word!r} is not an option: write --name value.")
        name, equals, value = word[2:].partition("=")
        if not equals:
            value = words.pop(0) if words and not words[0].startswith("--") else "true"
        name = name.replace("-", "_")
        if name == "config":
            path = Path(value)
            if not path.exists() and "-R1" in value:
                path = Path(value.replace("-R1", "-Reason"))  # The reasoning models' earlier name.
        elif name == "config_file":
            logger.warning(
                "--config_file stands after the script, where accelerate does not read it: put it before the script."
            )
        else:
            overrides[name] = value
    return path, overrides


def _read_yaml(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(f"there is no recipe {path}: give --config an existing YAML file.")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds no `name: value` lines: see recipes/ for examples.")
    return values


def _coerce(value: Any, hint: Any, what: str) -> Any:
    """`value` as the field's type; PyYAML reads 8e-3 as a string, and a command line has strings only."""
    options = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    if value is None or Any in options:
        return value
    plain = tuple(typing.get_origin(o) or o for o in options if isinstance(typing.get_origin(o) or o, type))
    if isinstance(value, plain) and not (isinstance(value, bool) and bool not in plain):
        return value
    for target in (int, float):
        if target in plain and isinstance(value, (int, float, str)) and not isinstance(value, bool):
            try:
                return target(value)
            except ValueError:
                continue
    if str in plain and isinstance(value, bool):
        return "yes" if value else "no"  # YAML reads the words yes and no as booleans.
    if str in plain and isinstance(value, (int, float)):
        return str(value)
    if not plain:
        return value
    names = " or ".join(t.__name__ for t in plain if t is not types.NoneType)
    raise ValueError(f"{what} is {value!r}, which is not {names}: correct it.")


def save_recipe(arguments: Any) -> None:
    """Write the full recipe that runs to `output_dir/recipe.yaml`, and warn of what differs from an earlier run's.

    Of several processes the first does it.
    """
    if arguments.process_index != 0:
        return
    values = {f.name: getattr(arguments, f.name) for f in dataclasses.fields(arguments) if f.init}
    values = {name: value for name, value in sorted(values.items()) if _is_plain(value)}
    path = Path(arguments.output_dir) / "recipe.yaml"
    if path.exists():
        before = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        changed = [n for n in values if n in before and before[n] != values[n] and n not in ("resume", "logging_dir")]
        if changed:
            logger.warning("the recipe differs from the run in %s in: %s.", path.parent, ", ".join(changed))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(values, sort_keys=True), encoding="utf-8")


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(_is_plain(v) for v in value)
    if isinstance(value, dict):
        return all(_is_plain(v) for v in value.values())
    return value is None or type(value) in (bool, int, float, str)


def quiet_renaming() -> None:
    """Say nothing of names that TRL uses and transformers has since changed."""
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")


def run_stage(stage: Any, argv: Sequence[str] | None = None) -> None:
    """Run a stage's `main` as a script: a user's mistake is one line on stderr and exit code 1, not a traceback."""
    quiet_renaming()
    try:
        stage(list(sys.argv[1:] if argv is None else argv))
    except (ValueError, OSError) as error:
        if os.environ.get("SMALL_DOGE_TRACEBACK"):
            raise
        sys.exit(f"error: {' '.join(str(error).split())}")
