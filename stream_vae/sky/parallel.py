"""Work spread over processes, in order: what comes out does not depend on how many there are."""

import os
import signal
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from itertools import islice
from multiprocessing import connection, get_context, parent_process
from threading import Thread
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

_AHEAD = 3
"""Tasks under way for each process: enough that none waits, few enough that little is made in vain at the end."""


def map_in_order(
    function: Callable[[Item], Result], items: Iterable[Item], workers: int
) -> Generator[Result, None, None]:
    """Apply a function to items, of which there may be infinitely many, and yield the results in their order.

    Processes are spawned, not forked: a fork beside TensorFlow's or BLAS's threads may hang. They end with the
    generator, with Ctrl-C, and with this process however it ends.

    Parameters
    ----------
    function : callable
        It can be pickled, as its arguments and results can.
    items : iterable
        Taken only a few ahead of what was yielded.
    workers : int
        Processes; 1 works in this one.

    Yields
    ------
    Result
        Of each item.
    """
    if workers == 1:
        yield from map(function, items)
        return
    todo = iter(items)
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_follow_parent)
    try:
        under_way: deque[Future[Result]] = deque(pool.submit(function, item) for item in islice(todo, _AHEAD * workers))
        while under_way:
            result = under_way.popleft().result()
            under_way.extend(pool.submit(function, item) for item in islice(todo, 1))
            yield result
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _follow_parent() -> None:
    """Leave Ctrl-C to the parent, which ends its workers; and end if the parent was killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Thread(target=_end_with_parent, name="end-with-parent", daemon=True).start()


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None, "it runs in spawned processes only"
    connection.wait([parent.sentinel])
    os._exit(1)
