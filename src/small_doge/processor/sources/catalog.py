"""The sources known by name: one small YAML file each, with where it is, what is in it, its license and citation."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path

import yaml

KINDS = ("text", "conversation", "preference")


@dataclass(frozen=True)
class SourceSpec:
    """A named source on the Hub.

    Attributes:
        name, description: what it is called here and what it holds.
        kind: "text", "conversation" or "preference".
        hub_id, config, split, revision: where it is on the Hub. A report names the commit that a branch stood for.
        columns: the columns that we read, each with a word on it.
        license, citation: to be named wherever a result uses it.
        text_field: the column of the text, for kind "text".
        fetch: how to get the text where the rows hold ids only ("software-heritage").
    """

    name: str
    description: str
    kind: str
    hub_id: str
    split: str
    revision: str
    columns: dict[str, str]
    license: str
    citation: str
    config: str | None = None
    text_field: str | None = None
    fetch: str | None = None


@cache
def catalog() -> dict[str, SourceSpec]:
    """Every named source, by its name in lower case."""
    specs = [read_spec(path) for path in sorted(Path(__file__).parent.glob("*.yaml"))]
    return {spec.name.lower(): spec for spec in specs}


def read_spec(path: Path) -> SourceSpec:
    """Read one source file.

    Raises:
        ValueError: a key is missing or unknown, or the kind is none of ours.
    """
    data = yaml.safe_load(path.read_text(encoding="utf-8"))
    known = {item.name for item in fields(SourceSpec)}
    if unknown := set(data) - known:
        raise ValueError(f"{path} has unknown keys {', '.join(sorted(unknown))}: use {', '.join(sorted(known))}.")
    try:
        spec = SourceSpec(**data)
    except TypeError as error:
        raise ValueError(f"{path} lacks a key ({error}): add it.") from None
    if spec.kind not in KINDS:
        raise ValueError(f"{path} has kind {spec.kind!r}: give one of {', '.join(KINDS)}.")
    return spec
