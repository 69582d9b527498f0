"""What made a result: versions of the libraries, and the state of the source."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

LIBRARIES = ("small-doge", "torch", "transformers", "trl", "datasets", "tokenizers", "accelerate", "deepspeed")


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that are installed."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def git_state(folder: Path | None = None) -> str | None:
    """Commit of the source in `folder` (this package's if not given), with `-dirty` where files differ from it.

    None outside a git checkout, as for an installed wheel, or where there is no git.
    """
    where = folder or Path(__file__).parent
    try:
        done = subprocess.run(
            ["git", "-C", str(where), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            capture_output=True,
            text=True,
            timeout=20,
        )
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
