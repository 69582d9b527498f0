"""Data that needs no download: what every machine with Python holds, or what a seed makes. Standard library only."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from .arithmetic import iter_problems
from .python_docs import cached_documents, iter_documents
from .python_preferences import iter_preferences
from .python_qa import iter_conversations

__all__ = [
    "BUILTIN_SOURCES",
    "BuiltinSource",
    "iter_conversations",
    "iter_documents",
    "iter_preferences",
    "iter_problems",
]


@dataclass(frozen=True)
class BuiltinSource:
    """A named source: calling it yields plain dicts; keyword arguments go to its generator."""

    description: str
    generate: Callable[..., Iterator[dict]]

    def __call__(self, **options: Any) -> Iterator[dict]:
        """Yield the rows."""
        return self.generate(**options)


def _documents(packages: bool = True) -> Iterator[dict]:
    """As `iter_documents`, but read once a process: questions and preferences are made from the same ones."""
    return map(dict, cached_documents(packages))


def _some_problems(n: int = 20_000, **options: Any) -> Iterator[dict]:
    return iter_problems(n, **options)


BUILTIN_SOURCES = {
    "builtin:python-docs": BuiltinSource(
        "English documentation of Python and of the installed packages (text)", _documents
    ),
    "builtin:python-qa": BuiltinSource(
        "short questions and answers about that documentation (messages)", iter_conversations
    ),
    "builtin:python-preferences": BuiltinSource(
        "right answers against truncated, repeated or mismatched ones (prompt, chosen, rejected)", iter_preferences
    ),
    "builtin:arithmetic": BuiltinSource(
        "arithmetic word problems with worked steps (messages, question, reasoning, answer)", _some_problems
    ),
}
