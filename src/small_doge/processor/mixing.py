"""Exact mixing: streams merged so that their shares of the whole equal their ratios at any moment."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

Payload = TypeVar("Payload")


@dataclass
class Sample(Generic[Payload]):
    """One thing to mix: its weight (tokens, or 1 where rows are counted) and what it is."""

    weight: int
    payload: Payload


@dataclass
class MixState:
    """Where a mix stands: enough to go on from here with streams that have skipped `taken` samples each.

    Attributes:
        used: weight given out, by stream.
        taken: samples given out, by stream.
        limit: total weight at which the mix ends, if known.
        ran_out: the streams that ended before the mix did.
    """

    used: list[int]
    taken: list[int]
    limit: float | None = None
    ran_out: list[int] = field(default_factory=list)


def parse_ratios(datasets_and_ratios: Sequence[Mapping[str, float]]) -> tuple[list[str], list[float]]:
    """Names and ratios that add up to 1, from `[{"name": ratio}, ...]`; the argument is left as it is.

    Raises:
        ValueError: the list is empty, a name comes twice, or a ratio is not a positive number.
    """
    pairs = [pair for entry in datasets_and_ratios for pair in entry.items()]
    if not pairs:
        raise ValueError("datasets_and_ratios is empty: give at least one entry such as {'builtin:python-docs': 1.0}.")
    names = [name for name, _ in pairs]
    for name, ratio in pairs:
        if isinstance(ratio, bool) or not isinstance(ratio, (int, float)) or not 0 < ratio < float("inf"):
            raise ValueError(f"The ratio of {name!r} is {ratio!r}: give a positive number.")
        if names.count(name) > 1:
            raise ValueError(
                f"{name!r} is listed twice in datasets_and_ratios: give it once, with the sum of its ratios."
            )
    total = sum(float(ratio) for _, ratio in pairs)
    return names, [float(ratio) / total for _, ratio in pairs]


def mix(
    streams: Sequence[Iterator[Sample[Payload]]],
    ratios: Sequence[float],
    total: float | None,
    state: MixState,
    cut: Callable[[Payload, int], Payload] | None = None,
) -> Iterator[tuple[int, Sample[Payload]]]:
    """Yield (stream, sample) so that every stream's share of the weight given out equals its ratio.

    Each stream runs on its own clock, weight / ratio, and whichever sample ends first on it comes next; so at no
    moment is a stream ahead by more than one sample. The mix ends at weight `total`, or where a stream ends: the
    ratios hold and the whole gets smaller. At the end the sample that each stream is in the middle of is cut to fit,
    if `cut` is given (`cut(payload, weight)` returns its first part), else left out.

    Args:
        streams: samples of positive weight, those that `state.taken` counts already skipped.
        ratios: positive, adding up to 1.
        total: the weight to stop at; None goes on until a stream ends.
        state: updated in place before each yield; a new one starts at zero.
    """
    if state.limit is None:
        state.limit = total
    heads: list[tuple[float, int]] = []
    samples: dict[int, Sample[Payload]] = {}

    def advance(index: int) -> None:
        sample = next(streams[index], None)
        if sample is None:
            end = state.used[index] / ratios[index]
            if state.limit is None or end < state.limit:
                state.limit = end
                state.ran_out.append(index)
            return
        samples[index] = sample
        heapq.heappush(heads, ((state.used[index] + sample.weight) / ratios[index], index))

    for index in range(len(streams)):
        advance(index)
    while heads:
        end, index = heapq.heappop(heads)
        if state.limit is not None and end > state.limit:
            heapq.heappush(heads, (end, index))
            break
        sample = samples.pop(index)
        state.used[index] += sample.weight
        state.taken[index] += 1
        yield index, sample
        advance(index)
    if cut is None or state.limit is None:
        return
    for _, index in sorted(heads, key=lambda head: head[1]):
        sample = samples[index]
        room = int(state.limit * ratios[index] + 1e-6) - state.used[index]
        if room > 0:
            part = Sample(min(room, sample.weight), cut(sample.payload, min(room, sample.weight)))
            state.used[index] += part.weight
            state.taken[index] += 1
            yield index, part


def shares(state: MixState) -> list[float]:
    """Each stream's share of the weight given out."""
    total = sum(state.used)
    return [used / total if total else 0.0 for used in state.used]


def ratio_error(state: MixState, ratios: Sequence[float]) -> float:
    """The largest difference between a share and its ratio, relative to the ratio."""
    return max(abs(share / ratio - 1) for share, ratio in zip(shares(state), ratios, strict=True))


def describe(state: MixState, names: Sequence[str], ratios: Sequence[float], unit: str) -> dict[str, Any]:
    """The mix in figures, for a report."""
    got = shares(state)
    return {
        "unit": unit,
        "sources": {
            name: {"ratio": ratio, "share": share, unit: used}
            for name, ratio, share, used in zip(names, ratios, got, state.used, strict=True)
        },
        "largest_share_error": max(abs(share - ratio) for share, ratio in zip(got, ratios, strict=True)),
        "largest_relative_error": ratio_error(state, ratios) if sum(state.used) else None,
        "ran_out": [names[index] for index in state.ran_out],
    }
