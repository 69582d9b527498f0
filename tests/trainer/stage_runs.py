"""A stage run in the test's own process, as its command line would run it, and the log that it leaves."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any


def command_line(options: dict[str, Any]) -> list[str]:
    return [word for name, value in options.items() for word in (f"--{name}", json.dumps(value))]


def log_lines(folder: Path | str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (Path(folder) / "log.jsonl").read_text().splitlines()]


def run(main: Callable[[list[str]], None], options: dict[str, Any]) -> list[dict[str, Any]]:
    """The lines of a finished run's log."""
    main(command_line(options))
    return log_lines(options["output_dir"])


def steps(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The lines of a log that are of a training step."""
    return [line for line in lines if "loss" in line]
