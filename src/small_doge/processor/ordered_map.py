"""Work in threads that keeps the order of its items, with a bounded number of them under way."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import TypeVar

In = TypeVar("In")
Out = TypeVar("Out")


def map_in_order(
    function: Callable[[In], Out], items: Iterable[In], pool: Executor | None, ahead: int
) -> Iterator[Out]:
    """`map(function, items)` with `ahead` calls under way in `pool`; without a pool, plain `map`."""
    if pool is None:
        yield from map(function, items)
        return
    waiting: deque[Future[Out]] = deque()
    for item in items:
        waiting.append(pool.submit(function, item))
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def read_ahead(items: Iterable[In], ahead: int) -> Iterator[In]:
    """The items, in order, up to `ahead` of them made before they are asked for, by a thread of their own.

    An error is raised where its item would have come. Close the iterator to stop the thread.
    """
    iterator, end = iter(items), object()
    reader = ThreadPoolExecutor(1)
    try:
        waiting = deque(reader.submit(next, iterator, end) for _ in range(ahead))
        while (item := waiting.popleft().result()) is not end:
            waiting.append(reader.submit(next, iterator, end))
            yield item  # type: ignore[misc]
    finally:
        reader.shutdown(cancel_futures=True)
