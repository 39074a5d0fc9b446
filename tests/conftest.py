"""What every test may ask for by name: servers, and the folder of real alerts.

A server that cannot be had fails the test where the environment says CI, and skips it with the reason elsewhere.
"""

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn, TypeVar

import hypothesis
import pytest
from stream_vae.embedded.kafka import EmbeddedKafka

import monitoring
import programs
from servers import (
    REPOSITORY,
    Broker,
    Kafka,
    MissingServiceError,
    RedisServer,
    SecureListeners,
    real_kafka,
    real_redis,
)
from servers import (
    broker as own_broker,
)

Server = TypeVar("Server")

# CI draws the same examples every time, so that a change is judged by itself; at home each run explores further.
# No example has a time limit: machines are shared.
hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None)
hypothesis.settings.register_profile("exploring", deadline=None)
hypothesis.settings.load_profile("repeatable" if os.environ.get("CI") else "exploring")

# A console keeps the width that it begins with, and what runs tests side by side sets one: tests set their own.
os.environ.pop("COLUMNS", None)

_MARKED_FIXTURES = {
    "kafka": "kafka",
    "mortal_broker": "kafka",
    "redis_server": "redis",
}  # fixture -> marker, so that -m can leave them out


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for fixture, marker in _MARKED_FIXTURES.items():
            if fixture in getattr(item, "fixturenames", ()):
                item.add_marker(marker)


@pytest.fixture(scope="session")
def kafka() -> Iterator[Kafka]:
    """A real Apache Kafka."""
    with _started(real_kafka(for_tests=True)) as server:
        yield server


@pytest.fixture(scope="module")
def mortal_broker() -> Iterator[Broker]:
    """A real Apache Kafka of one module's own, to be killed and started again."""
    with _started(own_broker(for_tests=True)) as server:
        yield server


@pytest.fixture(scope="session")
def secure_kafka(kafka: Kafka) -> tuple[Kafka, SecureListeners]:
    """The real Apache Kafka and its secure listeners; one that was given has none that we know."""
    if kafka.secure is None:
        pytest.skip("KAFKA_BOOTSTRAP names a Kafka without the users and certificates of these tests")
    return kafka, kafka.secure


@pytest.fixture(scope="session")
def embedded_kafka() -> Iterator[Kafka]:
    """The mock cluster in this process, with the verbs of the real one."""
    with EmbeddedKafka() as cluster:
        yield Kafka(cluster.bootstrap_servers, embedded=cluster)


@pytest.fixture(params=["embedded", pytest.param("real", marks=pytest.mark.kafka)])
def broker(request: pytest.FixtureRequest) -> Kafka:
    """Each Kafka in turn: for what both must do."""
    return request.getfixturevalue({"embedded": "embedded_kafka", "real": "kafka"}[request.param])


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    """A real Redis or Valkey."""
    with _started(real_redis()) as server:
        yield server


@pytest.fixture(scope="session")
def monitoring_tools() -> None:
    """promtool and prometheus are installed."""
    try:
        for name in ("promtool", "prometheus"):
            monitoring.program(name)
    except MissingServiceError as error:
        _missing(str(error))


@pytest.fixture(scope="session")
def helm() -> None:
    """Helm is installed."""
    _want("helm")


@pytest.fixture(scope="session")
def linters() -> None:
    """What reads Dockerfiles, shell scripts and YAML is installed."""
    for name in ("hadolint", "shellcheck", "yamllint", "check-jsonschema"):
        _want(name)


@pytest.fixture(scope="session")
def alerts_dir() -> Path:
    """The folder of real alerts; this repository holds none."""
    given = os.environ.get("ALERTS_DIR")
    folder = Path(given) if given else REPOSITORY.parent / "shared" / "data"
    if folder.is_dir():
        return folder
    if given:
        pytest.fail(f"ALERTS_DIR={given} is no folder")
    # In CI too: nothing installs it, so its absence is no fault of that machine.
    pytest.skip(f"no real alerts: {folder} is absent; set ALERTS_DIR to a folder with ztf/, lsst/, ...")


@pytest.fixture(scope="session")
def real_packets(alerts_dir: Path) -> Callable[[str], list[Path]]:
    """List packets by name, of a survey (`real_packets("ztf")`) or one origin (`real_packets("ztf/kowalski")`)."""

    def list_packets(survey: str) -> list[Path]:
        packets = sorted((alerts_dir / survey).rglob("*.avro"))
        if not packets:
            pytest.skip(f"no real alerts of {survey} in {alerts_dir}")
        return packets

    return list_packets


@contextlib.contextmanager
def _started(server: contextlib.AbstractContextManager[Server]) -> Iterator[Server]:
    with contextlib.ExitStack() as stack:
        try:
            running = stack.enter_context(server)
        except MissingServiceError as error:
            _missing(str(error))
        yield running


def _want(name: str) -> None:
    try:
        programs.program(name)
    except MissingServiceError as error:
        _missing(str(error))


def _missing(reason: str) -> NoReturn:
    if os.environ.get("CI", "").lower() in {"", "0", "false"}:
        pytest.skip(reason)
    pytest.fail(f"{reason} (in CI a missing service is a failure)")
