"""The arguments of a mix, checked before any work is done: what cannot be meant is refused with the mend."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from small_doge.processor.sources import check_revision

# The least that each whole number may be.
WHOLE_NUMBERS = {"max_length": 2, "dataset_num_proc": 1, "test_sample_size": 0, "seed": 0}
SWITCHES = ("packing", "repeat", "shuffle", "apply_chat_template", "apply_thinking_template")


def check_arguments(arguments: Mapping[str, Any]) -> None:
    """Refuse arguments of a `mix_datasets_by_ratio` that cannot be meant, as a recipe may give them.

    Raises:
        ValueError: with the mend.
    """
    for name, least in WHOLE_NUMBERS.items():
        check_whole_number(name, arguments[name], least)
    for name in SWITCHES:
        check_switch(name, arguments.get(name, False))
    size = arguments["total_sample_size"]
    if size not in (None, -1) and not (is_whole_number(size) and size > 0):
        raise ValueError(
            f"total_sample_size is {size!r}: give a number of rows, or -1 for as many as the ratios allow."
        )
    if arguments["ratio_by"] not in ("tokens", "rows"):
        raise ValueError(f"ratio_by is {arguments['ratio_by']!r}: give 'tokens' or 'rows'.")
    share = arguments["test_share"]
    if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 <= share < 1:
        raise ValueError(f"test_share is {share!r}: give a share from 0 to below 1.")
    options = arguments["source_options"] or {}
    if not isinstance(options, Mapping) or not all(isinstance(item, Mapping) for item in options.values()):
        raise ValueError(f"source_options is {options!r}: give a mapping such as {{'SOURCE': {{'split': 'train'}}}}.")
    names = [name for entry in arguments["datasets_and_ratios"] for name in entry]
    if unknown := [name for name in options if name not in names]:
        raise ValueError(f"source_options names {unknown[0]!r}, which is not mixed: give one of {', '.join(names)}.")
    for name, option in options.items():
        check_revision(name, option.get("revision"))


def check_whole_number(name: str, value: Any, least: int) -> None:
    """Refuse what is no whole number of at least `least`."""
    if not is_whole_number(value) or value < least:
        raise ValueError(f"{name} is {value!r}: give a whole number of at least {least}.")


def check_switch(name: str, value: Any) -> None:
    """Refuse what is neither true nor false."""
    if not isinstance(value, bool):
        raise ValueError(f"{name} is {value!r}: give true or false.")


def is_whole_number(value: Any) -> bool:
    """Whether a value is an integer; True and False are not."""
    return isinstance(value, int) and not isinstance(value, bool)
