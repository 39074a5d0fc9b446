"""Workers that are only pretended, for tests of what a supervisor makes of them."""

from dataclasses import replace

from stream_vae.errors import StreamVaeError
from stream_vae.runtime.status import Phase, Standing, Status

FRESH = Status(Phase.STARTING, False, "starting", True, Standing(), None, 1, "here")
RUNNING = replace(FRESH, phase=Phase.RUNNING, ready=True, reason="consuming")


class Pretended:
    """A worker that says what the test wants."""

    def __init__(self) -> None:
        self.status: Status | None = None
        self.next: Status | StreamVaeError | None = FRESH
        self.answered_at = 0.0
        self.killed = False

    def poll(self) -> Status | None:
        if isinstance(self.next, StreamVaeError):
            raise self.next
        self.status = self.next
        return self.status

    def stop(self) -> None:
        self.next = replace(RUNNING, phase=Phase.ENDED)

    def kill(self) -> None:
        self.killed = True
