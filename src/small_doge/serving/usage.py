"""Tokens of a request, as clients read them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class TokenCounts:
    """Tokens of a request so far; a prompt with several completions counts once."""

    prompt: int = 0
    cached: int = 0
    completions: dict[int, int] = field(default_factory=dict)


def usage_of(counts: TokenCounts) -> dict[str, Any]:
    """The `usage` object."""
    completion = sum(counts.completions.values())
    return {
        "prompt_tokens": counts.prompt,
        "completion_tokens": completion,
        "total_tokens": counts.prompt + completion,
        "prompt_tokens_details": {"cached_tokens": counts.cached},
    }
