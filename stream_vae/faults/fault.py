"""What a fault is: how it is made, what it needs, and what must become of the message."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from stream_vae.errors import Reason
from stream_vae.faults.unpacking import Scope, Unpacked
from stream_vae.quality import Quality

__all__ = ["Expected", "Fault", "Outcome", "Scope", "dead_letter", "flagged", "scored"]


_NOTHING = Quality(0)


class Outcome(StrEnum):
    """Where a message ends."""

    DEAD_LETTER = "dead_letter"
    FLAGGED = "flagged"
    """Published without codes and scores, with the reason in its quality bits."""
    SCORED = "scored"


@dataclass(frozen=True, slots=True)
class Expected:
    """What must become of a message.

    Parameters
    ----------
    outcome : Outcome
        Where it ends.
    reasons : frozenset of Reason
        For a dead letter: one of these. More than one where it depends on the random bytes, or on which of two
        things that are wrong is found first.
    quality : Quality
        For a published message: these bits are set, others may be.
    """

    outcome: Outcome
    reasons: frozenset[Reason] = frozenset()
    quality: Quality = _NOTHING


@dataclass(frozen=True, slots=True)
class Fault:
    """One kind of bad message.

    Parameters
    ----------
    scope : Scope
        What a message must have for this to be done to it.
    spoil : callable
        Takes the message, its parts (None if only its bytes are needed) and random numbers; gives the bad message.
    expected : Expected
        What must become of it.
    """

    scope: Scope
    spoil: Callable[[bytes, Unpacked | None, np.random.Generator], bytes]
    expected: Expected


def dead_letter(*reasons: Reason) -> Expected:
    """Expect a dead letter.

    Parameters
    ----------
    *reasons : Reason
        One of these must be given.

    Returns
    -------
    Expected
        That.
    """
    return Expected(Outcome.DEAD_LETTER, reasons=frozenset(reasons))


def flagged(quality: Quality) -> Expected:
    """Expect an alert without a score.

    Parameters
    ----------
    quality : Quality
        The bits that must be set.

    Returns
    -------
    Expected
        That.
    """
    return Expected(Outcome.FLAGGED, quality=quality)


def scored(quality: Quality = _NOTHING) -> Expected:
    """Expect a score all the same.

    Parameters
    ----------
    quality : Quality
        The bits that must be set.

    Returns
    -------
    Expected
        That.
    """
    return Expected(Outcome.SCORED, quality=quality)
