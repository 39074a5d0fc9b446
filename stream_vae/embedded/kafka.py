"""A Kafka in this process: librdkafka's own mock cluster, reached through ctypes.

confluent-kafka brings librdkafka, and librdkafka brings a small broker written for its own tests. It listens
on loopback, so other processes can use it too, and it speaks enough of the protocol for producers, consumer
groups, headers, timestamps, keys and committed offsets. What it does not do:

- It keeps about 5 MB a partition and evicts the oldest messages silently. Whoever produces must wait for
  whoever consumes, and whoever consumes must treat a gap in the offsets as a loss.
- A rebalance of an existing group waits for its members for the session time-out less one second, also when all
  of them are there or gone: consumers should take `CONSUMER_OPTIONS`.
- A topic that does not exist is made on the fly, with four partitions.
- Transactions begin and end but mean nothing: no offsets in them, no fencing, no ``read_committed``.
- Topics cannot be made or described through an admin client: use `EmbeddedKafka.create_topic`.

So it shows that the path runs and proves nothing about exactly-once.
"""

import ctypes
import weakref
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Self

from stream_vae.errors import ConfigError

RETAINED_BYTES_PER_PARTITION = 5 * 1024 * 1024
"""What the mock keeps of each partition (``rdkafka_mock.c``) before it drops the oldest messages."""

MAX_PARTITIONS = 64
"""More than any demo needs; each partition of the mock may hold 5 MB of this process's memory."""

CONSUMER_OPTIONS: Mapping[str, int] = MappingProxyType({"session.timeout.ms": 2000, "heartbeat.interval.ms": 200})
"""What a consumer of the mock should set: a group then settles in a second, with the default time-out in 44."""

_PRODUCER = 0  # rd_kafka_type_t; the mock cluster hangs on a client handle of any type
_LOG_ERRORS_ONLY = b"3"  # syslog level: without it the unused handle warns that it has no bootstrap servers
_ERROR_TEXT_BYTES = 512

# name -> (result type, argument types); pointers are void pointers, as nothing here looks inside them.
_SIGNATURES: Mapping[str, tuple[Any, tuple[Any, ...]]] = MappingProxyType(
    {
        "rd_kafka_conf_new": (ctypes.c_void_p, ()),
        "rd_kafka_conf_set": (
            ctypes.c_int,
            (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_size_t),
        ),
        "rd_kafka_new": (ctypes.c_void_p, (ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t)),
        "rd_kafka_destroy": (None, (ctypes.c_void_p,)),
        "rd_kafka_err2str": (ctypes.c_char_p, (ctypes.c_int,)),
        "rd_kafka_mock_cluster_new": (ctypes.c_void_p, (ctypes.c_void_p, ctypes.c_int)),
        "rd_kafka_mock_cluster_destroy": (None, (ctypes.c_void_p,)),
        "rd_kafka_mock_cluster_bootstraps": (ctypes.c_char_p, (ctypes.c_void_p,)),
        "rd_kafka_mock_topic_create": (ctypes.c_int, (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int, ctypes.c_int)),
        "rd_kafka_mock_group_initial_rebalance_delay_ms": (None, (ctypes.c_void_p, ctypes.c_int32)),
    }
)


class EmbeddedKafka:
    """A mock Kafka cluster on loopback that lives as long as this object is open.

    Parameters
    ----------
    brokers : int
        Brokers to pretend, each with a port of its own.

    Attributes
    ----------
    bootstrap_servers : str
        What clients connect to, ``127.0.0.1:port`` for each broker.

    Raises
    ------
    ConfigError
        Where the installed confluent-kafka hides librdkafka's mock cluster.

    Examples
    --------
    >>> with EmbeddedKafka() as kafka:
    ...     kafka.create_topic("alerts", partitions=4)
    ...     print(kafka.bootstrap_servers)  # doctest: +SKIP
    127.0.0.1:41263
    """

    def __init__(self, *, brokers: int = 1) -> None:
        self._library = load_librdkafka()
        client, cluster = _start(self._library, brokers)
        self._cluster = ctypes.c_void_p(cluster)
        self.bootstrap_servers: str = self._library.rd_kafka_mock_cluster_bootstraps(self._cluster).decode()
        # Members join the demo's groups one by one: waiting 3 s for more of them only delays the first alert.
        self._library.rd_kafka_mock_group_initial_rebalance_delay_ms(self._cluster, 0)
        self._finalizer = weakref.finalize(self, _stop, self._library, client, cluster)

    def create_topic(self, name: str, partitions: int = 1) -> None:
        """Make a topic.

        Parameters
        ----------
        name : str
            The topic's name.
        partitions : int
            From 1 to 64.

        Raises
        ------
        ConfigError
            If it exists, the name or the number is not valid, or the cluster is closed.
        """
        if not self._finalizer.alive:
            raise ConfigError("the embedded Kafka is closed.", remedy="Create topics inside its `with` block.")
        if not 1 <= partitions <= MAX_PARTITIONS:
            raise ConfigError(
                f"the embedded Kafka cannot make topic {name!r} with {partitions} partitions.",
                remedy=f"Ask for 1 to {MAX_PARTITIONS}, or set kafka.bootstrap_servers to a real Kafka.",
            )
        error = self._library.rd_kafka_mock_topic_create(self._cluster, name.encode(), partitions, 1)
        if error:
            reason = self._library.rd_kafka_err2str(error).decode()
            raise ConfigError(
                f"the embedded Kafka cannot make topic {name!r}: {reason}.", remedy="Choose another name."
            )

    def close(self) -> None:
        """End the cluster and free its memory; more than once does no harm."""
        self._finalizer()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def load_librdkafka() -> ctypes.CDLL:
    """Give the very librdkafka that confluent-kafka uses, with the mock cluster's functions declared.

    Returns
    -------
    ctypes.CDLL
        The library.

    Raises
    ------
    ConfigError
        If no candidate has the functions.
    """
    missing = "nothing to look in"
    for path in _candidates():
        try:
            library = ctypes.CDLL(str(path))
            for name, (result, arguments) in _SIGNATURES.items():
                function = getattr(library, name)
                function.restype, function.argtypes = result, arguments
        except (OSError, AttributeError) as error:  # not loadable here, or without the mock cluster
            missing = str(error)
        else:
            return library
    raise ConfigError(
        f"the embedded Kafka needs librdkafka's mock cluster, which this confluent-kafka does not show ({missing}).",
        remedy="Install the confluent-kafka wheel (2.11 or later), or set kafka.bootstrap_servers to a real Kafka.",
    )


def _candidates() -> list[Path]:
    """List where librdkafka may be, best first."""
    from confluent_kafka import cimpl

    # A look-up in the extension module also searches what it was linked with: on Linux and macOS this finds
    # librdkafka wherever the wheel, a distribution or a source build put it. Windows searches one file only.
    extension = Path(cimpl.__file__)
    wheel_folders = (extension.parent.parent / "confluent_kafka.libs", extension.parent / ".dylibs", extension.parent)
    bundled = [path for folder in wheel_folders for path in sorted(folder.glob("*rdkafka*"))]
    return [extension, *bundled]


def _start(library: ctypes.CDLL, brokers: int) -> tuple[int, int]:
    """Make the client handle that the cluster hangs on, and the cluster."""
    text = ctypes.create_string_buffer(_ERROR_TEXT_BYTES)
    conf = library.rd_kafka_conf_new()
    library.rd_kafka_conf_set(conf, b"log_level", _LOG_ERRORS_ONLY, text, _ERROR_TEXT_BYTES)
    client = library.rd_kafka_new(_PRODUCER, conf, text, _ERROR_TEXT_BYTES)
    if not client:
        raise ConfigError(f"the embedded Kafka does not start: {text.value.decode()}.", remedy="Free some memory.")
    cluster = library.rd_kafka_mock_cluster_new(client, brokers) if brokers > 0 else None
    if not cluster:
        library.rd_kafka_destroy(client)
        raise ConfigError(
            f"the embedded Kafka cannot start {brokers} brokers on loopback.",
            remedy="Ask for at least one, and see that 127.0.0.1 can be listened on.",
        )
    return client, cluster


def _stop(library: ctypes.CDLL, client: int, cluster: int) -> None:
    library.rd_kafka_mock_cluster_destroy(cluster)
    library.rd_kafka_destroy(client)
