"""Kafka clients, made in one place: from the settings, with what stream_vae needs on top.

librdkafka's options of the settings win over the choices made here, except for those that delivery depends on.
"""

import logging
import re
from collections.abc import Callable, Iterable, Mapping
from time import monotonic
from typing import TYPE_CHECKING, Any

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicCollection
from confluent_kafka.admin import AdminClient, NewTopic
from pydantic import SecretStr

from stream_vae.errors import ConfigError
from stream_vae.kafka_refusals import as_error, is_hopeless, refusal
from stream_vae.settings import DeliverySettings, KafkaSettings

if TYPE_CHECKING:
    from concurrent.futures import Future

__all__ = [
    "admin",
    "as_error",
    "cluster",
    "common_options",
    "consumer_options",
    "create_topics",
    "hidden",
    "make",
    "partitions",
    "plain_consumer",
    "plain_producer",
    "producer_options",
]

log = logging.getLogger("stream_vae.kafka")

_FIXED_CONSUMER = ("enable.auto.commit", "enable.auto.offset.store", "group.id", "isolation.level")
_FIXED_PRODUCER = ("enable.idempotence", "transactional.id", "acks", "request.required.acks")
_FIXED_IN_ORDER = ("max.in.flight.requests.per.connection", "max.in.flight")
"""Without idempotence, two requests in flight may change places when the first is sent again."""


def common_options(settings: KafkaSettings) -> dict[str, Any]:
    """Return the options of every client.

    Parameters
    ----------
    settings : KafkaSettings
        ``[kafka]``.

    Returns
    -------
    dict
        librdkafka configuration.
    """
    options: dict[str, Any] = {
        "bootstrap.servers": settings.bootstrap_servers,
        "client.id": "stream-vae",
        # A broker that comes back is found within this; by default only after 10 s.
        "reconnect.backoff.max.ms": 2_000,
    }
    if settings.sasl_username is not None:
        options["sasl.username"] = settings.sasl_username
    if settings.sasl_password is not None:
        options["sasl.password"] = settings.sasl_password.get_secret_value()
    return options | _plain(settings.options)


def _plain(options: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: value.get_secret_value() if isinstance(value, SecretStr) else value for name, value in options.items()
    }


def consumer_options(settings: KafkaSettings) -> dict[str, Any]:
    """Return the options of the consumer.

    Parameters
    ----------
    settings : KafkaSettings
        ``[kafka]``.

    Returns
    -------
    dict
        librdkafka configuration.

    Raises
    ------
    ConfigError
        If the settings override what delivery depends on.
    """
    _refuse(settings, "consumer_options", _FIXED_CONSUMER)
    chosen = {
        "partition.assignment.strategy": "cooperative-sticky",
        "auto.offset.reset": "earliest",
        # A worker that dies keeps its partitions idle this long.
        "session.timeout.ms": 10_000,
        "heartbeat.interval.ms": 2_000,
        # Fetched ahead at most: two seconds of LSST's peak, and no more memory than that.
        "queued.max.messages.kbytes": 65_536,
        "fetch.message.max.bytes": 4_194_304,
        "fetch.max.bytes": 33_554_432,
        "fetch.wait.max.ms": 50,
        # When the queue is full librdkafka would not fetch for a whole second, and the worker runs dry.
        "fetch.queue.backoff.ms": 20,
    }
    delivery = {
        "group.id": settings.group_id,
        "enable.auto.commit": False,
        "enable.auto.offset.store": False,
        "enable.partition.eof": True,  # tells when everything there was has been read
        "isolation.level": "read_committed",
    }
    return chosen | common_options(settings) | _plain(settings.consumer_options) | delivery


def producer_options(settings: KafkaSettings, delivery: DeliverySettings, slot: int = 0) -> dict[str, Any]:
    """Return the options of the producer.

    Parameters
    ----------
    settings : KafkaSettings
        ``[kafka]``.
    delivery : DeliverySettings
        ``[delivery]``.
    slot : int
        The worker's number, stable over restarts: part of its transactional id.

    Returns
    -------
    dict
        librdkafka configuration.

    Raises
    ------
    ConfigError
        If the settings override what delivery depends on.
    """
    in_order = _FIXED_IN_ORDER if delivery.mode == "at_least_once" else ()
    _refuse(settings, "producer_options", (*_FIXED_PRODUCER, *in_order))
    chosen: dict[str, Any] = {
        "linger.ms": 5,
        "batch.size": 1_000_000,
        "message.max.bytes": 10_485_760,
        "queue.buffering.max.kbytes": 262_144,
        "message.timeout.ms": 120_000,
        # An alert's cutouts are compressed already: a codec would cost more CPU than all else.
        "compression.type": "none",
        "partitioner": "murmur2_random",  # as Java's: one object's alerts stay on one partition for everybody
    }
    if delivery.mode == "exactly_once":
        slot_id = f"{delivery.transactional_id or settings.group_id}-{slot}"
        promised: dict[str, Any] = {"transactional.id": slot_id, "acks": "all"}
        chosen |= {"message.timeout.ms": 20_000, "transaction.timeout.ms": 30_000}
    else:
        # Order needs one request in flight, not idempotence, which makes librdkafka 2.16 spin while a request
        # of more than five messages is out and more wait behind it (280 to 850 us an alert instead of 44).
        promised = {"enable.idempotence": False, "max.in.flight.requests.per.connection": 1, "acks": "all"}
    return chosen | common_options(settings) | _plain(settings.producer_options) | promised


def _refuse(settings: KafkaSettings, own: str, fixed: Iterable[str]) -> None:
    for section in ("options", own):
        if taken := sorted(set(fixed).intersection(getattr(settings, section))):
            raise ConfigError(
                f"kafka.{section} sets {', '.join(taken)}, on which delivery depends.",
                remedy="Leave it out; kafka.group_id and delivery.mode are the settings for it.",
            )


class _WithoutPasswords(logging.Filter):
    """Takes passwords out of URLs: librdkafka hides its own secrets, and shows those of an endpoint's URL."""

    _PASSWORD = re.compile(r"(://[^/?#\s:]*):[^/?#\s]*@")

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = self._PASSWORD.sub(r"\1:***@", record.getMessage()), ()
        return True


_without_passwords = _WithoutPasswords()


class _LastLine(logging.Handler):
    """Keeps librdkafka's last line that tells something; all of them show at the most verbose level alone."""

    line = ""

    def emit(self, record: logging.LogRecord) -> None:
        log.debug("%s", record.getMessage())
        if "brokers are down" not in (line := record.getMessage().partition("]: ")[2]):
            self.line = line


def make(client: Callable[..., Any], options: dict[str, Any], logger: logging.Logger = log) -> Any:
    """Make a client, or say which option is wrong.

    Parameters
    ----------
    client : callable
        ``Consumer``, ``Producer`` or ``AdminClient``.
    options : dict
        librdkafka configuration.
    logger : Logger
        For librdkafka's own log; ``stream_vae.kafka`` if absent.

    Returns
    -------
    Consumer, Producer or AdminClient
        The client.

    Raises
    ------
    ConfigError
        If librdkafka refuses the options.
    """
    log.addFilter(_without_passwords)  # once, however often
    try:
        return client(options, logger=logger)
    except (KafkaException, ValueError, TypeError) as error:
        detail = error.args[0].str() if error.args and isinstance(error.args[0], KafkaError) else str(error)
        remedy = "See kafka.options and kafka.*_options."
        if (option := re.search(r"ssl\.\w+\.(location|pem)", detail)) is not None:
            remedy = (
                f"Check that {option.group()} in kafka.options names a PEM file that this user may read, and "
                "ssl.key.password if it holds an encrypted key."
            )
        raise ConfigError(f"librdkafka refuses the settings: {detail}.", remedy=remedy) from error


def admin(settings: KafkaSettings) -> AdminClient:
    """Make an admin client.

    Parameters
    ----------
    settings : KafkaSettings
        ``[kafka]``.

    Returns
    -------
    AdminClient
        For metadata and topics.

    Raises
    ------
    ConfigError
        If librdkafka refuses the options.
    """
    return make(AdminClient, common_options(settings))


def plain_consumer(settings: KafkaSettings, **options: Any) -> Consumer:
    """Make a consumer for looking: it never commits, and its group never balances with the workers'.

    Parameters
    ----------
    settings : KafkaSettings
        ``[kafka]``.
    **options : Any
        More librdkafka options, with underscores for dots.

    Returns
    -------
    Consumer
        To be assigned by hand.

    Raises
    ------
    ConfigError
        If librdkafka refuses the options.
    """
    extra = {name.replace("_", "."): value for name, value in options.items()}
    looking = {"group.id": f"{settings.group_id}-look", "enable.auto.commit": False, "auto.offset.reset": "earliest"}
    return make(Consumer, common_options(settings) | _plain(settings.consumer_options) | looking | extra)


def plain_producer(settings: KafkaSettings, **options: Any) -> Producer:
    """Make a producer for tools: replay and dead letters that are sent again.

    Parameters
    ----------
    settings : KafkaSettings
        ``[kafka]``.
    **options : Any
        More librdkafka options, with underscores for dots.

    Returns
    -------
    Producer
        At-least-once, in order.

    Raises
    ------
    ConfigError
        If librdkafka refuses the options.
    """
    extra = {name.replace("_", "."): value for name, value in options.items()}
    return make(Producer, producer_options(settings, DeliverySettings()) | extra)


def cluster(settings: KafkaSettings, timeout_s: float = 10.0, topic: str | None = None) -> Any:
    """Ask the brokers what there is, and find out why where they do not answer.

    Parameters
    ----------
    settings : KafkaSettings
        ``[kafka]``.
    timeout_s : float
        Longest wait.
    topic : str, optional
        Ask for this one alone.

    Returns
    -------
    ClusterMetadata
        Brokers and topics.

    Raises
    ------
    ConfigError
        If no broker answers, or none that we trust, or none that trusts us.
    """
    complaints: list[KafkaError] = []
    # librdkafka would log each of a hundred attempts, and the error says it once.
    last, logger = _LastLine(), logging.Logger("stream_vae.kafka.start")  # noqa: LOG001 - one a call, for nobody else
    logger.addHandler(last)
    client = make(AdminClient, common_options(settings) | {"error_cb": complaints.append}, logger)
    deadline = monotonic() + timeout_s
    while True:
        try:
            return client.list_topics(topic, timeout=min(_STEP_S, timeout_s))
        except KafkaException as error:
            client.poll(0)  # complaints wait for it
            hopeless = [each for each in complaints if is_hopeless(each)]
            if hopeless or monotonic() > deadline:
                # "All brokers are down" and time-outs come besides what tells more.
                telling = [each for each in complaints if each.code() not in _SAYS_LITTLE]
                reason = (hopeless or telling or complaints or [error.args[0]])[-1]
                authority = common_options(settings).get("ssl.ca.location")
                what = f"does not answer within {timeout_s:g} s"
                line = "" if hopeless or telling else last.line
                raise refusal(reason, settings.bootstrap_servers, authority, what, line) from error


_STEP_S = 1.0
_SAYS_LITTLE = frozenset((KafkaError._ALL_BROKERS_DOWN, KafkaError._TIMED_OUT))  # noqa: SLF001


def hidden(settings: KafkaSettings, topics: Iterable[str], timeout_s: float = 4.0) -> frozenset[str]:
    """Tell which topics brokers do not show us, whether they exist or not.

    Parameters
    ----------
    settings : KafkaSettings
        ``[kafka]``.
    topics : iterable of str
        Names that are missing from the metadata.
    timeout_s : float
        Longest wait.

    Returns
    -------
    frozenset of str
        Those for which we lack the right DESCRIBE; empty where brokers do not tell.
    """
    client = admin(settings)
    if client.list_topics(timeout=timeout_s).controller_id < 0:
        return frozenset()  # the embedded Kafka has no controller, and would let us wait for one
    futures = client.describe_topics(TopicCollection(list(topics)), request_timeout=timeout_s)
    return frozenset(name for name, future in futures.items() if _is_forbidden(future))


def _is_forbidden(future: "Future[Any]") -> bool:
    try:
        future.result()
    except KafkaException as error:
        return bool(error.args[0].code() == KafkaError.TOPIC_AUTHORIZATION_FAILED)
    return False


def partitions(settings: KafkaSettings, topics: Iterable[str], timeout_s: float = 10.0) -> dict[str, int]:
    """Ask the brokers for topics.

    Parameters
    ----------
    settings : KafkaSettings
        ``[kafka]``.
    topics : iterable of str
        Names.
    timeout_s : float
        Longest wait.

    Returns
    -------
    dict
        Number of partitions by topic; topics that do not exist, or that we may not see, are left out.

    Raises
    ------
    ConfigError
        If no broker answers, or none that we trust, or none that trusts us.
    """
    found = cluster(settings, timeout_s).topics
    return {name: len(found[name].partitions) for name in topics if name in found and not found[name].error}


def create_topics(settings: KafkaSettings, topics: Mapping[str, int]) -> None:
    """Create topics that do not exist.

    Parameters
    ----------
    settings : KafkaSettings
        ``[kafka]``.
    topics : Mapping
        Number of partitions by name.

    Raises
    ------
    ConfigError
        If a broker refuses.
    """
    client = admin(settings)  # it must outlive its futures
    futures = client.create_topics([NewTopic(name, count) for name, count in topics.items()])
    for name, future in futures.items():
        try:
            future.result(timeout=30)
        except KafkaException as error:
            if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                raise ConfigError(
                    f"Topic {name} cannot be created: {error.args[0].str()}.",
                    remedy="Create it by hand (kafka-topics.sh --create), or grant our user CREATE on the cluster.",
                ) from error
