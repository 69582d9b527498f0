"""Where the verbs print, and the form of their tables."""

from __future__ import annotations

import os
import sys

from rich import box
from rich.console import Console
from rich.table import Column, Table

# What goes to a file or a pipe is not cut to the 80 columns that rich would take.
WIDTH_OF_FILES = 160

console = Console(width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else WIDTH_OF_FILES)


def plain_table(*columns: str | Column) -> Table:
    """A table without lines between its columns, which leaves their room to what they hold."""
    return Table(*columns, box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
