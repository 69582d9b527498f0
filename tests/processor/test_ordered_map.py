from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from small_doge.processor.ordered_map import map_in_order, read_ahead


def test_results_come_in_the_order_of_the_items_though_the_first_ends_last():
    release = threading.Event()

    def work(number):
        if number == 0:
            assert release.wait(10)
        elif number == 2:
            release.set()
        return number

    with ThreadPoolExecutor(3) as pool:
        assert list(map_in_order(work, range(20), pool, ahead=4)) == list(range(20))


def test_items_are_read_before_they_are_asked_for_but_no_more_than_wanted():
    read, third = [], threading.Event()

    def items():
        for number in range(100):
            read.append(number)
            if len(read) == 4:
                third.set()
            yield number

    ahead = read_ahead(items(), 3)
    assert next(ahead) == 0
    assert third.wait(10), "the next three are read while the first is used"
    assert read == [0, 1, 2, 3]
    ahead.close()


def test_all_items_come_in_order_from_another_thread():
    threads = set()

    def items():
        for number in range(50):
            threads.add(threading.get_ident())
            yield number

    assert list(read_ahead(items(), 7)) == list(range(50))
    assert len(threads) == 1
    assert threading.get_ident() not in threads


def test_an_error_comes_where_its_item_would_have_come():
    def items():
        yield 1
        yield 2
        raise ValueError("line 3")

    ahead = read_ahead(items(), 10)
    assert [next(ahead), next(ahead)] == [1, 2]
    with pytest.raises(ValueError, match="line 3"):
        next(ahead)


def test_closing_stops_the_thread():
    before = threading.active_count()
    ahead = read_ahead(iter(int, 1), 5)
    next(ahead)
    assert threading.active_count() == before + 1
    ahead.close()
    assert threading.active_count() == before
