"""Show how far long work has come: bars on a terminal, a line now and then elsewhere."""

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

log = logging.getLogger(__name__)


class Reporter(Protocol):
    """Told how far a step of the work has come."""

    def __call__(self, step: str, done: int, total: int, note: str = "") -> None:
        """Take note.

        Parameters
        ----------
        step : str
            What is being done; the same text for all calls of one step.
        done, total : int
            How much of it is behind and how much there is.
        note : str
            Something worth showing beside it, such as the loss.
        """


def silent(step: str, done: int, total: int, note: str = "") -> None:
    """Report nothing.

    Parameters
    ----------
    step : str
        Unused.
    done, total : int
        Unused.
    note : str
        Unused.
    """


class _Bars:
    """One rich bar a step."""

    def __init__(self, bars: Progress) -> None:
        self._bars = bars
        self._tasks: dict[str, TaskID] = {}

    def __call__(self, step: str, done: int, total: int, note: str = "") -> None:
        if step not in self._tasks:
            self._tasks[step] = self._bars.add_task(step, total=total, note="")
        self._bars.update(self._tasks[step], completed=done, total=total, note=note)


class _Lines:
    """One log line when a step starts, ends, and every ten seconds between."""

    interval_s = 10.0

    def __init__(self) -> None:
        self._last: dict[str, float] = {}

    def __call__(self, step: str, done: int, total: int, note: str = "") -> None:
        now = time.monotonic()
        due = step not in self._last or now - self._last[step] >= self.interval_s
        if due or done >= total:
            self._last[step] = now
            log.info("%s: %d of %d %s", step, done, total, note)


@contextmanager
def reporter(*, show: bool = True) -> Iterator[Reporter]:
    """Choose how to report: bars if standard error is a terminal, log lines if not.

    Parameters
    ----------
    show : bool
        False reports nothing.

    Yields
    ------
    Reporter
        To pass to the work.
    """
    if not show:
        yield silent
    elif not sys.stderr.isatty():
        yield _Lines()
    else:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, TextColumn("{task.fields[note]}"), console=Console(stderr=True)) as bars:
            yield _Bars(bars)
