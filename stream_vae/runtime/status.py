"""What an actor of a fleet says of itself, as values that travel."""

from dataclasses import dataclass
from enum import StrEnum

from stream_vae.errors import StreamVaeError
from stream_vae.stages.ledger import Partition


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a worker stands in its group."""

    member_id: str = ""
    """The coordinator's name for it; empty before it has joined."""
    partitions: frozenset[Partition] = frozenset()
    idle_s: float | None = None
    """For how long these partitions are caught up and all is settled; None while there is something to do.
    Having no partitions is having nothing to do."""
    progressed: bool = False
    """Whether it has settled an alert, or had nothing to do, since it started."""


class Phase(StrEnum):
    """How far a worker is."""

    STARTING = "starting"
    RUNNING = "running"
    ENDED = "ended"


@dataclass(frozen=True, slots=True)
class Status:
    """What the supervisor asks for several times a second."""

    phase: Phase
    ready: bool
    """Whether it consumes."""
    reason: str
    alive: bool
    """Whether its loop turns."""
    standing: Standing
    error: StreamVaeError | None
    """Why it ended, if not because it was told to."""
    process: int
    host: str
