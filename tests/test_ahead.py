# SPDX-License-Identifier: Apache-2.0
"""What is made ahead is what would have been made in time."""

import threading

import pytest

from idlora.training.identity.ahead import Ahead


def test_items_come_in_order_each_made_once_and_none_beyond_the_last() -> None:
    made: list[int] = []

    def make(number: int) -> int:
        made.append(number)
        return number * number

    with Ahead(make, 4) as ahead:
        assert [ahead.take(number) for number in range(1, 4)] == [1, 4, 9]
    assert made == [1, 2, 3]


def test_the_next_item_is_made_elsewhere() -> None:
    with Ahead(lambda _: threading.current_thread(), 2) as ahead:
        first, second = ahead.take(0), ahead.take(1)
    assert first is threading.current_thread()
    assert second is not first


def test_a_leap_makes_what_is_asked_for() -> None:
    with Ahead(lambda number: number, 10) as ahead:
        assert [ahead.take(number) for number in (0, 7, 2)] == [0, 7, 2]


def test_a_fault_comes_when_its_item_is_taken() -> None:
    def make(number: int) -> int:
        if number == 1:
            raise OSError("gone")
        return number

    with Ahead(make, 3) as ahead:
        assert ahead.take(0) == 0
        with pytest.raises(OSError, match="gone"):
            ahead.take(1)


def test_what_settles_is_made_and_still_taken() -> None:
    made: list[int] = []

    def make(number: int) -> int:
        made.append(number)
        return number

    with Ahead(make, 3) as ahead:
        ahead.settle()
        ahead.take(0)
        ahead.settle()
        assert made == [0, 1]
        assert ahead.take(1) == 1
    assert made.count(1) == 1
