"""A checkup ends, whatever its checks do."""

import threading
from concurrent.futures import Future
from time import monotonic
from types import SimpleNamespace

import pytest
from confluent_kafka.admin import AclOperation
from stream_vae.errors import ConfigError
from stream_vae.tools.checks_kafka import KafkaChecks, Topic
from stream_vae.tools.checkup import Check, Finding, State, examine


def good(name):
    return lambda: [Finding(name, State.GOOD, "fine")]


def test_a_check_that_hangs_is_bad_and_does_not_hold_up_the_others():
    release = threading.Event()
    started = monotonic()
    findings = list(examine([Check("slow", lambda: release.wait() or [], 0.1), Check("next", good("next"))]))
    release.set()
    assert monotonic() - started < 2
    assert [finding.state for finding in findings] == [State.BAD, State.GOOD]
    assert "0.1 s" in findings[0].says


def test_an_error_becomes_a_finding_with_its_remedy():
    def fail():
        raise ConfigError("It is wrong.", remedy="Do this.")

    (finding,) = examine([Check("settings", fail)])
    assert finding == Finding("settings", State.BAD, "It is wrong.", "Do this.")


def test_an_error_that_nobody_foresaw_is_a_finding_too():
    def fail():
        raise ZeroDivisionError("oh")

    (finding,) = examine([Check("sum", fail)])
    assert (finding.state, finding.says) == (State.BAD, "ZeroDivisionError: oh")


def test_what_needs_something_bad_is_skipped_and_so_is_what_needs_that():
    def fail():
        raise ConfigError("no")

    checks = [Check("a", fail), Check("b", good("b"), needs=("a",)), Check("c", good("c"), needs=("b",))]
    states = {finding.name: finding.state for finding in examine([*checks, Check("d", good("d"))])}
    assert states == {"a": State.BAD, "b": State.SKIPPED, "c": State.SKIPPED, "d": State.GOOD}


def test_a_warning_stops_nothing():
    warn = Check("a", lambda: [Finding("a", State.WARNING, "hm")])
    assert [finding.state for finding in examine([warn, Check("b", good("b"), needs=("a",))])][1] is State.GOOD


def test_the_watcher_is_told_each_check():
    told = []
    list(examine([Check("a", good("a")), Check("b", good("b"))], told.append))
    assert told == ["a", "b"]


class _Admin:
    """Answers `describe_topics` as a broker with an authorizer does."""

    def __init__(self, rights):
        self._rights = rights

    def describe_topics(self, _names, **_options):
        futures = {name: Future() for name in self._rights}
        for name, future in futures.items():
            future.set_result(SimpleNamespace(authorized_operations=self._rights[name]))
        return futures


@pytest.mark.parametrize(
    ("rights", "state"),
    [
        ({"in": [AclOperation.READ], "out": [AclOperation.WRITE]}, State.GOOD),
        ({"in": [AclOperation.READ], "out": [AclOperation.READ]}, State.BAD),
        ({"in": [], "out": [AclOperation.WRITE]}, State.BAD),
        ({"in": None, "out": None}, State.WARNING),
    ],
)
def test_a_missing_right_is_bad_and_the_remedy_grants_it(rights, state):
    checks = KafkaChecks(SimpleNamespace(), admin=_Admin(rights))
    checks.topics = [Topic("in", "input", 1), Topic("out", "output", 1)]
    found = checks.check_permissions()
    assert [finding.state for finding in found] == [state]
    if state is State.BAD:
        right = "WRITE --topic out" if rights["in"] else "READ --topic in"
        assert right in found[0].remedy
