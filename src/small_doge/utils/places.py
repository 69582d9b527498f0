"""Where a model or a tokenizer can be: in a folder here, or under an id on the Hub."""

from __future__ import annotations

import re
from pathlib import Path

HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")


def refuse_missing(name: str) -> None:
    """Refuse a name that is neither a folder's nor, by its form, a hub id, before the Hub is asked for it.

    Raises:
        ValueError: there is no such folder, or the name is a file's.
    """
    if Path(name).is_file():
        raise ValueError(f"{name} is a file: name the folder that holds it.")
    if not Path(name).exists() and not HUB_ID.fullmatch(name):
        raise ValueError(f"there is no folder {name}: correct the path, or give a hub id such as SmallDoge/Doge-20M.")
