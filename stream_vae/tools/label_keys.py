"""Answers by single keys: stamps are shown one after the other, and each is called real, bogus or neither."""

import os
import termios
import tty
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from stream_vae.labels.label import BOGUS, REAL, UNKNOWN

ANSWERS = {"r": REAL, "b": BOGUS, "u": UNKNOWN}
SKIP, QUIT, UNDO = "s", frozenset(("q", "", "\x04")), frozenset(("\x7f", "\b"))
HELP = "r real, b bogus, u cannot tell, s skip, backspace takes the last answer back, q ends"

ReadKey = Callable[[], str]
"""Gives one key; empty where the input ends."""


def ask(
    count: int,
    show: Callable[[int], None],
    read_key: ReadKey,
    send: Callable[[int, int], None],
) -> Counter[str]:
    """Ask for the labels of some stamps.

    What a reservoir has of a label it does not forget. So an answer is sent when the next key is pressed, or at the
    end: until then backspace takes it back.

    Parameters
    ----------
    count : int
        How many stamps.
    show : callable
        Shows one, by its number.
    read_key : callable
        Waits for a key.
    send : callable
        Takes the number of a stamp and its label.

    Returns
    -------
    Counter of str
        Answers by key; `s` for those skipped.
    """
    counts: Counter[str] = Counter()
    held: tuple[int, str] | None = None

    def let_go() -> None:
        nonlocal held
        if held is not None:
            (number, key), held = held, None
            send(number, ANSWERS[key])
            counts[key] += 1

    at = 0
    try:
        while at < count:
            show(at)
            key = read_key()
            while key not in ANSWERS and key != SKIP and key not in QUIT and not (key in UNDO and held):
                key = read_key()
            if key in UNDO and held:
                (at, _), held = held, None
                continue
            let_go()
            if key in QUIT:
                break
            if key in ANSWERS:
                held = (at, key)
            else:
                counts[SKIP] += 1
            at += 1
    finally:
        let_go()  # also after Ctrl-C: it was given
    return counts


@contextmanager
def single_keys(descriptor: int) -> Iterator[ReadKey]:
    """Read keys from a terminal as they are pressed, without Enter and unseen.

    Parameters
    ----------
    descriptor : int
        Of the terminal.

    Yields
    ------
    callable
        Gives one key; empty when the terminal is gone.
    """
    before = termios.tcgetattr(descriptor)
    tty.setcbreak(descriptor)
    try:
        yield lambda: os.read(descriptor, 1).decode("latin-1").lower()
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
