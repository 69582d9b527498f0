"""Exact mixing: streams merged so that their shares of the whole equal their ratios at any moment."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Any, Generic, TypeVar

Payload = TypeVar("Payload")
LOOK_AHEAD = 256
"""Samples of a stream among which the last ones are chosen, where none may be cut."""


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
        ValueError: the list is empty or none of mappings, a name comes twice, or a ratio is not a positive number.
    """
    is_list = isinstance(datasets_and_ratios, Sequence) and not isinstance(datasets_and_ratios, str)
    if not is_list or not all(isinstance(entry, Mapping) for entry in datasets_and_ratios):
        raise ValueError(
            "datasets_and_ratios is no list of NAME: RATIO: write one entry a source, such as - NAME: 0.7."
        )
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
    if `cut` is given (`cut(payload, weight)` returns its first part). Otherwise those of the stream's next 256 samples
    that add up to nearest to what it lacks are taken: samples of weight 1 to one sample, others mostly exactly.

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
    if state.limit is None:
        return
    targets = whole_weights(state.limit, ratios)
    for _, index in sorted(heads, key=lambda head: head[1]):
        sample, room = samples[index], targets[index] - state.used[index]
        if room <= 0:
            continue
        if cut is None:
            last = nearest_sum(islice(chain([sample], streams[index]), LOOK_AHEAD), room)
        else:
            weight = min(room, sample.weight)
            last = [Sample(weight, cut(sample.payload, weight))]
        for part in last:
            state.used[index] += part.weight
            state.taken[index] += 1
            yield index, part


def whole_weights(total: float, ratios: Sequence[float]) -> list[int]:
    """`total`, rounded, in whole parts nearest to the ratios: what rounding down leaves goes to the largest rests."""
    parts = [total * ratio for ratio in ratios]
    # The margin is for products such as 0.29 * 100, which falls short of 29 by a rounding error.
    whole = [int(part + 1e-6) for part in parts]
    by_rest = sorted(range(len(parts)), key=lambda index: whole[index] - parts[index])
    for index in by_rest[: round(total) - sum(whole)]:
        whole[index] += 1
    return whole


def nearest_sum(samples: Iterator[Sample[Payload]], target: int) -> list[Sample[Payload]]:
    """The samples whose weights add up to nearest to `target`, in order; reads no further than it must to hit it."""
    read: list[Sample[Payload]] = []
    # Bit s of sums[n] says whether some of the first n samples add up to s; sums beyond twice the target are no use.
    sums, useful = [1], (1 << (2 * target + 1)) - 1
    while not sums[-1] >> target & 1 and (sample := next(samples, None)) is not None:
        read.append(sample)
        sums.append((sums[-1] | sums[-1] << sample.weight) & useful)
    rest = min((s for s in range(2 * target + 1) if sums[-1] >> s & 1), key=lambda s: abs(s - target))
    chosen = []
    for number in reversed(range(len(read))):
        if not sums[number] >> rest & 1:
            chosen.append(read[number])
            rest -= read[number].weight
    return chosen[::-1]


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
