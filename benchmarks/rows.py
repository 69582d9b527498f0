"""What the benchmarks share: where a run comes from, the shape of a result row, and the file that rows go to."""

from __future__ import annotations

import datetime
import json
import os
import re
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(os.environ.get("OUT") or ROOT / "benchmarks" / "results")


def commit() -> str:
    """COMMIT of the environment, for a copy without git; else git's short hash, `-dirty` where files differ from it."""
    # Imported late: attention.py first puts a bare package in the place of small_doge's front door.
    from small_doge.utils.provenance import git_state

    state = git_state(ROOT) or "unknown"
    return os.environ.get("COMMIT") or state[:7] + state[40:]


def origin() -> dict[str, str]:
    """The command line and the commit of this run."""
    script = f"benchmarks/{Path(sys.argv[0]).name}"
    return {"command": " ".join(["python", script, *sys.argv[1:]]), "commit": commit()}


class Table:
    """Rows of the benchmark `name`: figures are kept as `digits` formats them, and `more` stands in every row.

    With `line`, a format of a row's fields and `digits`, each row is printed as it comes.
    """

    def __init__(self, name: str, device: str, line: str = "", digits: str = ".4f", **more: Any) -> None:
        self.name, self.device, self.line, self.digits = name, device, line, digits
        self.more = origin() | more
        self.rows: list[Row] = []

    def add(
        self, variant: str, size: str, metric: str, values: Sequence[float], digits: str | None = None, **more: Any
    ) -> Row:
        """Add the row of `values`, one a round: their median, number, least and most."""
        digits = digits or self.digits
        row: Row = {"name": self.name, "variant": variant, "size": size, "device": self.device, "metric": metric}
        value, low, high = (float(f"{x:{digits}}") for x in (statistics.median(values), min(values), max(values)))
        row |= {"value": value, "n": len(values), "min": low, "max": high, **self.more, **more}
        self.rows.append(row)
        if self.line:
            print(self.line.format(**row, digits=digits), flush=True)
        return row


def save(rows: list[Row], folder: Path, name: str, device: str) -> Path:
    """Write the rows to FOLDER/NAME_DEVICE_DATE.json."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}_{re.sub('[ ,/]+', '-', device)}_{datetime.date.today()}.json"
    path.write_text(json.dumps(rows, indent=1) + "\n")
    return path


def finish(rows: list[Row], file: Path | None) -> None:
    """Print the rows as the last line; write them to `file` too, if one is given."""
    if file is not None:
        file.write_text(json.dumps(rows, indent=1) + "\n")
    print(json.dumps(rows))
