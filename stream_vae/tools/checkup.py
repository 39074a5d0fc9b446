"""A checkup: checks one after the other, each under a time-out, each ending in findings and never in a crash."""

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

from confluent_kafka import KafkaError, KafkaException

from stream_vae.errors import StreamVaeError


class State(StrEnum):
    """How bad a finding is."""

    GOOD = "good"
    WARNING = "warning"
    """It may work, or it cannot be told."""
    BAD = "bad"
    """A worker would not start, or would lose time or alerts."""
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report."""

    name: str
    state: State
    says: str
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class Check:
    """One question, and what must be in order before it can be asked."""

    name: str
    run: Callable[[], Sequence[Finding]]
    timeout_s: float = 15.0
    needs: tuple[str, ...] = ()
    """Names of checks; if one of them is bad or skipped, so is this."""


def examine(checks: Sequence[Check], watch: Callable[[str], None] = lambda _name: None) -> Iterator[Finding]:
    """Run checks in order.

    Parameters
    ----------
    checks : sequence of Check
        What to ask.
    watch : callable
        Told the name of each check before it runs.

    Yields
    ------
    Finding
        At least one a check; a check that fails or takes too long is a finding too.
    """
    unusable: set[str] = set()
    for check in checks:
        watch(check.name)
        lacking = [name for name in check.needs if name in unusable]
        if lacking:
            findings: Sequence[Finding] = [Finding(check.name, State.SKIPPED, f"needs: {', '.join(lacking)}")]
        else:
            findings = _run(check)
        if lacking or any(finding.state is State.BAD for finding in findings):
            unusable.add(check.name)
        yield from findings


def _run(check: Check) -> Sequence[Finding]:
    found: list[Finding] = []

    def work() -> None:
        try:
            found.extend(check.run())
        except Exception as error:  # noqa: BLE001 - whatever goes wrong is what a checkup is there to find
            found.append(_of(check.name, error))

    # A daemon, because a client that hangs in C cannot be interrupted and must not keep the process.
    thread = threading.Thread(target=work, name=f"check {check.name}", daemon=True)
    thread.start()
    thread.join(check.timeout_s)
    if thread.is_alive():
        says = f"no answer within {check.timeout_s:g} s"
        return [Finding(check.name, State.BAD, says, "Look for a firewall or a server that hangs.")]
    return found


def _of(name: str, error: Exception) -> Finding:
    if isinstance(error, StreamVaeError):
        return Finding(name, State.BAD, str(error.args[0]) if error.args else str(error), error.remedy)
    if isinstance(error, KafkaException) and error.args and isinstance(error.args[0], KafkaError):
        return Finding(name, State.BAD, f"Kafka: {error.args[0].str()} ({error.args[0].name()})", "See kafka.options.")
    return Finding(name, State.BAD, f"{type(error).__name__}: {error}")
