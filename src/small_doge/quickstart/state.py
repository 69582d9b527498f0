"""What the road has behind it, on disk: a finished stage is never run again."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

FILE = "state.json"


def write_json(path: Path, value: Any) -> None:
    """Write JSON so that a reader sees the old file or the new one, never half of one."""
    partial = path.with_suffix(path.suffix + ".partial")
    partial.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(partial, path)


class RoadState:
    """Results and seconds of the finished stages, and how often each was begun.

    Args:
        folder: The run's folder.
        settings: What the run was made with; going on with other settings is refused.

    Raises:
        ValueError: the folder holds a run with other settings.
    """

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self.path = folder / FILE
        self.values: dict[str, Any] = {"settings": settings, "results": {}, "seconds": {}, "begun": {}}
        if self.path.exists():
            self.values = json.loads(self.path.read_text(encoding="utf-8"))
            if self.values["settings"] != settings:
                raise ValueError(f"{folder} holds a run with other settings or data: name another folder with --out.")

    def done(self, stage: str) -> bool:
        """Whether the stage has finished."""
        return stage in self.values["results"]

    def begin(self, stage: str) -> None:
        """Count one more start of the stage."""
        self.values["begun"][stage] = self.values["begun"].get(stage, 0) + 1
        write_json(self.path, self.values)

    def finish(self, stage: str, result: dict[str, Any], seconds: float) -> None:
        """Record a finished stage; `seconds` are those of the start that finished it."""
        self.values["results"][stage] = result
        self.values["seconds"][stage] = round(seconds, 1)
        write_json(self.path, self.values)

    def result(self, stage: str) -> dict[str, Any]:
        """What the finished stage reported."""
        return self.values["results"][stage]
