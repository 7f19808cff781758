"""The pool that a detector's calls take their pipelines from."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest

from kizu import KizuError
from kizu.pool import Pool


class Part:
    """A pipeline or an engine, as far as the pool sees it."""

    def __init__(self, fault: Exception | None = None) -> None:
        self.closed, self.fault = 0, fault

    def close(self) -> None:
        self.closed += 1
        if self.fault is not None:
            raise self.fault


def pool_of(count: int, *, faults: dict[int, Exception] | None = None) -> tuple[Pool, list[Any], Any]:
    parts: list[Any] = [Part((faults or {}).get(i)) for i in range(count)]
    engine: Any = Part((faults or {}).get(-1))
    return Pool(parts, engine), parts, engine


def started(work: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    time.sleep(0.02)  # it waits by now
    return thread


def test_each_is_used_by_one_call() -> None:
    pool, parts, _ = pool_of(2)
    first, second = pool.take(), pool.take()
    assert [first, second] == parts  # the first comes first
    assert pool.try_take() is None
    pool.give(first)
    assert pool.try_take(second) is None
    assert pool.try_take(first) is first
    pool.give(second)
    with pool.using(second) as taken:
        assert taken is second
    with pytest.raises(ZeroDivisionError), pool.using():
        raise ZeroDivisionError
    assert pool.try_take() is second


def test_calls_come_in_turn() -> None:
    pool, (only,), _ = pool_of(1)
    pool.take()
    order: list[int] = []

    def work(i: int) -> None:
        with pool.using():
            order.append(i)

    threads = [started(lambda i=i: work(i)) for i in range(5)]  # type: ignore[misc]
    pool.give(only)
    for thread in threads:
        thread.join()
    assert order == [0, 1, 2, 3, 4]


def test_who_wants_one_waits_for_it_and_lets_others_pass() -> None:
    pool, (first, second), _ = pool_of(2)
    pool.take(), pool.take()
    got: list[Any] = []
    wants_first = started(lambda: got.append(pool.take(first)))
    wants_any = started(lambda: got.append(pool.take()))
    pool.give(second)
    wants_any.join(5)
    assert got == [second]
    pool.give(first)
    wants_first.join(5)
    assert got == [second, first]


def test_closing_waits_for_calls_but_not_for_what_is_parked() -> None:
    pool, (first, second), engine = pool_of(2)
    pool.take(first), pool.take(second)
    pool.park(second)
    errors: list[KizuError] = []

    def wait() -> None:
        try:
            pool.take()
        except KizuError as error:
            errors.append(error)

    waiting, closing, again = started(wait), started(pool.close), started(pool.close)
    waiting.join(5)
    assert "the detector is closed" in str(errors[0])
    assert closing.is_alive()
    assert again.is_alive()
    assert not first.closed + second.closed + engine.closed
    pool.give(first)
    closing.join(5)
    again.join(5)
    assert min(first.closed, second.closed, engine.closed) >= 1
    for call in (pool.take, pool.try_take, lambda: pool.resume(second), pool.check_open):
        with pytest.raises(KizuError, match="the detector is closed"):
            call()


def test_all_are_closed_whatever_one_raises() -> None:
    pool, parts, engine = pool_of(3, faults={0: OSError("first"), 2: ValueError("third")})
    with pytest.raises(OSError, match="first"):
        pool.close()
    assert [part.closed for part in (*parts, engine)] == [1, 1, 1, 1]


def interrupting(work: Callable[[], object]) -> None:
    """Run what waits, and interrupt it."""

    def handler(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    try:
        with pytest.raises(KeyboardInterrupt):
            work()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_a_call_that_is_interrupted_while_it_waits() -> None:
    pool, (only,), _ = pool_of(1)
    pool.take()
    interrupting(pool.take)
    pool.give(only)
    assert pool.take() is only


def test_closing_again_after_an_interrupt() -> None:
    pool, (only,), engine = pool_of(1)
    pool.take()
    interrupting(pool.close)
    pool.give(only)
    assert not only.closed
    pool.close()
    assert (only.closed, engine.closed) == (1, 1)
