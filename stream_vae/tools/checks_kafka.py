"""Checks of the brokers: do they answer, are the topics there and large enough, may we use them."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from time import sleep
from typing import TYPE_CHECKING, Any

from confluent_kafka import KafkaError, KafkaException, Producer, TopicCollection
from confluent_kafka import __version__ as client_version
from confluent_kafka.admin import AclOperation, ConfigResource

from stream_vae import kafka, schemas
from stream_vae.settings import DeliverySettings, Settings
from stream_vae.stages.dead_letter import PREFIX
from stream_vae.tools.checkup import Check, Finding, State

if TYPE_CHECKING:
    from concurrent.futures import Future

_ANSWER_S = 4.0
"""Longest wait for one admin request: brokers that know it answer in milliseconds."""
_HEADER_BYTES = 1024
"""Record batch, key and our headers without the error text."""
_LATENT_BYTES = 4096
"""Two vectors and six numbers, of the largest latent space that anybody trains."""
_LEAST_PACKET_BYTES = 1024
"""The smallest limits.max_packet_bytes."""
_ERROR_BYTES = 4096
"""A dead letter's error text, 1000 characters."""
_UNTOLD = frozenset(
    (
        KafkaError._TIMED_OUT,  # noqa: SLF001 - librdkafka names its local errors so
        KafkaError._UNSUPPORTED_FEATURE,  # noqa: SLF001
        KafkaError.UNSUPPORTED_VERSION,
        KafkaError.CLUSTER_AUTHORIZATION_FAILED,
    )
)
_FORBIDDEN = frozenset((KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError.GROUP_AUTHORIZATION_FAILED))
_COORDINATOR_WAITS_S = (0.5, 1.0, 2.0)
_COORDINATOR_STARTS = frozenset(
    (
        KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
        KafkaError.COORDINATOR_NOT_AVAILABLE,
        KafkaError.NOT_COORDINATOR,
    )
)
"""The first question to a new cluster makes it create the topic that groups live in."""


class UntoldError(Exception):
    """The brokers do not answer this question, or not to us."""


class ForbiddenError(UntoldError):
    """The brokers do not answer us: we lack the right to ask."""


@dataclass(slots=True)
class Topic:
    """One topic of the settings."""

    name: str
    role: str
    partitions: int = 0
    max_message_bytes: int | None = None


@dataclass(slots=True)
class KafkaChecks:
    """The questions that brokers answer; what one finds, the next may use."""

    settings: Settings
    admin: Any = None
    brokers: int = 0
    has_controller: bool = False
    metadata: Mapping[str, Any] = field(default_factory=dict)
    topics: list[Topic] = field(default_factory=list)
    silent: bool = False
    """An admin request was not answered: do not make a person wait for the next."""

    def checks(self) -> list[Check]:
        """List the checks in their order.

        Returns
        -------
        list of Check
            Transactions and labels only where the settings ask for them.
        """
        checks = [
            Check("brokers", self.check_brokers, 20),
            Check("topics", self.check_topics, needs=("brokers",)),
            Check("message sizes", self.check_sizes, needs=("brokers", "topics")),
            Check("permissions", self.check_permissions, needs=("brokers", "topics")),
            Check("consumer group", self.check_group, needs=("brokers",)),
        ]
        if self.settings.delivery.mode == "exactly_once":
            checks.append(Check("transactions", self.check_transactions, 30, needs=("brokers",)))
        if self.settings.labels.topic is not None:
            checks.append(Check("labels topic", self.check_labels, needs=("brokers",)))
        return checks

    def at_start(self) -> list[Check]:
        """List the checks that `run` makes too.

        Returns
        -------
        list of Check
            None of an embedded Kafka, which would let us wait for answers that it does not have.
        """
        self.check_brokers()
        if not self.has_controller:
            return []
        wanted = ("topics", "message sizes", "permissions", "consumer group")
        return [replace(check, needs=()) for check in self.checks() if check.name in wanted]

    def check_brokers(self) -> list[Finding]:
        """Ask whether brokers answer, and how many there are.

        Returns
        -------
        list of Finding
            One.

        Raises
        ------
        ConfigError
            If none answers.
        """
        section = self.settings.kafka
        cluster = kafka.cluster(section)  # fails with what to do about it
        self.admin = kafka.admin(section)
        self.metadata, self.brokers = cluster.topics, len(cluster.brokers)
        self.has_controller = cluster.controller_id >= 0
        says = f"{_many(self.brokers, 'broker')} at {section.bootstrap_servers}"
        if cluster.cluster_id:
            says += f", cluster {cluster.cluster_id}"
        return [Finding("brokers", State.GOOD, f"{says}; confluent-kafka {client_version}")]

    def check_topics(self) -> list[Finding]:
        """Ask whether every topic of the settings exists.

        Returns
        -------
        list of Finding
            One a topic.
        """
        section = self.settings.kafka
        names = [
            *((name, "input") for pattern in section.input_topics for name in self._matching(pattern)),
            (section.output_topic, "output"),
            (section.lite_topic, "lite"),
            (section.dead_letter_topic, "dead-letter"),
        ]
        self.topics = [Topic(name, role) for name, role in names if name]
        missing = [topic.name for topic in self.topics if topic.name not in self.metadata]
        hidden = kafka.hidden(section, missing) if missing else frozenset()
        unmatched = [pattern for pattern in section.input_topics if not self._matching(pattern)]
        found = (self._hidden(topic) if topic.name in hidden else self._topic(topic) for topic in self.topics)
        return [*map(self._no_match, unmatched), *found]

    def _told(self, future: "Future[Any]") -> Any:
        try:
            return future.result(timeout=_ANSWER_S + 1)
        except TimeoutError as error:
            self.silent = True
            raise UntoldError("no answer") from error
        except KafkaException as error:
            code = error.args[0].code()
            self.silent = code == KafkaError._TIMED_OUT  # noqa: SLF001
            if code in _FORBIDDEN:
                raise ForbiddenError(error.args[0].str()) from error
            if code in _UNTOLD:
                raise UntoldError(error.args[0].str()) from error
            raise

    def _matching(self, pattern: str) -> list[str]:
        if not pattern.startswith("^"):
            return [pattern]
        return sorted(name for name in self.metadata if re.match(pattern, name))

    @staticmethod
    def _no_match(pattern: str) -> Finding:
        says = f"no topic matches {pattern}"
        return Finding(
            "topics", State.WARNING, says, "Workers take up topics as they appear; check kafka.input_topics."
        )

    @staticmethod
    def _hidden(topic: Topic) -> Finding:
        right = "READ" if topic.role == "input" else "WRITE"
        says = f"{topic.name} is not shown to us: no right to DESCRIBE it"
        return Finding(f"{topic.role} topic", State.BAD, says, f"{_grant(right)} --topic {topic.name}")

    def _topic(self, topic: Topic) -> Finding:
        name = f"{topic.role} topic"
        found = self.metadata.get(topic.name)
        if found is None or found.error:
            if self.settings.kafka.create_topics:
                return Finding(name, State.WARNING, f"{topic.name} does not exist; a worker will create it")
            remedy = f"kafka-topics.sh --create --topic {topic.name}, or set kafka.create_topics = true."
            return Finding(name, State.BAD, f"{topic.name} does not exist", remedy)
        topic.partitions = len(found.partitions)
        parts = found.partitions.values()
        copies = min(len(part.replicas) for part in parts)
        says = f"{topic.name}: {_many(topic.partitions, 'partition')}, {_many(copies, 'copy', 'copies')}"
        if any(part.error or part.leader < 0 for part in parts):
            return Finding(name, State.BAD, f"{says}; a partition has no leader", "See the brokers' logs.")
        if any(len(part.isrs) < len(part.replicas) for part in parts):
            return Finding(name, State.WARNING, f"{says}; some copies lag behind", "See the brokers' logs.")
        if copies == 1 and self.brokers > 1:
            remedy = f"Give {topic.name} a replication factor of 3: one broker's disk holds all of it."
            return Finding(name, State.WARNING, says, remedy)
        return Finding(name, State.GOOD, says)

    def check_labels(self) -> list[Finding]:
        """Ask whether the labels topic exists; workers do without, a trainer does not.

        Returns
        -------
        list of Finding
            One.
        """
        name = str(self.settings.labels.topic)
        found = self.metadata.get(name)
        if found is not None and not found.error:
            return [Finding("labels topic", State.GOOD, f"{name}: {_many(len(found.partitions), 'partition')}")]
        says, remedy = f"{name} does not exist", f"kafka-topics.sh --create --topic {name}: a trainer needs it."
        if self.settings.kafka.create_topics:
            return [Finding("labels topic", State.WARNING, f"{says}; a trainer will create it")]
        return [Finding("labels topic", State.BAD, says, remedy)]

    def check_sizes(self) -> list[Finding]:
        """Ask whether every message that can come in can also go out.

        Returns
        -------
        list of Finding
            One, or one for each topic that is too small.
        """
        existing = [topic for topic in self.topics if topic.partitions]
        if not any(topic.role == "input" for topic in existing):
            return [Finding("message sizes", State.SKIPPED, "there is no input topic yet")]
        resources = [ConfigResource(ConfigResource.Type.TOPIC, topic.name) for topic in existing]
        try:
            for future, topic in zip(self._described(resources), existing, strict=True):
                topic.max_message_bytes = int(self._told(future)["max.message.bytes"].value)
        except UntoldError as error:
            return [_cannot_tell("message sizes", error, "Compare max.message.bytes of the topics yourself.")]
        limits = [topic.max_message_bytes or 0 for topic in existing if topic.role == "input"]
        largest = max(limits)
        findings = [
            *self._too_small(existing, largest, self.settings.limits.max_packet_bytes),
            *self._clients_too_small(largest),
        ]
        room = min((t.max_message_bytes or 0 for t in existing if t.role in _GROWTH), default=largest)
        says = f"input up to {largest:,} bytes, output and dead letters up to {room:,}"
        return findings or [Finding("message sizes", State.GOOD, says)]

    def _described(self, resources: Sequence[ConfigResource]) -> Iterator["Future[Any]"]:
        futures = self.admin.describe_configs(list(resources), request_timeout=_ANSWER_S)
        return (futures[resource] for resource in resources)

    @staticmethod
    def _too_small(existing: Sequence[Topic], largest: int, packet: int) -> Iterator[Finding]:
        for topic in existing:
            growth, limit = _GROWTH.get(topic.role), topic.max_message_bytes or 0
            # What is larger than max_packet_bytes goes to the dead letters, and there only.
            comes = largest if topic.role == "dead-letter" else min(largest, packet)
            if growth is None or limit >= comes + growth():
                continue
            needed = comes + growth()
            remedy = (
                f"kafka-configs.sh --alter --entity-type topics --entity-name {topic.name} "
                f"--add-config max.message.bytes={needed}"
            )
            if topic.role == "output" and limit > growth() + _LEAST_PACKET_BYTES:
                remedy += f", or limits.max_packet_bytes = {limit - growth()}: larger alerts are dead-lettered"
            says = f"{topic.name} takes {limit:,} bytes, input is up to {comes:,}, and we add up to {growth():,}"
            # Equal limits are every broker's default, and real alerts are a tenth of them.
            state = State.BAD if limit < comes else State.WARNING
            yield Finding("message sizes", state, says, remedy)

    def _clients_too_small(self, largest: int) -> Iterator[Finding]:
        options = kafka.producer_options(self.settings.kafka, DeliverySettings())
        limit = int(options["message.max.bytes"])
        if limit < largest:
            says = f"our producer sends up to {limit:,} bytes, an input topic takes {largest:,}"
            remedy = f'Set kafka.producer_options = {{ "message.max.bytes" = {largest + _enrichment_bytes()} }}.'
            yield Finding("message sizes", State.WARNING, says, remedy)
        packet = self.settings.limits.max_packet_bytes
        if packet < largest:
            says = f"limits.max_packet_bytes = {packet:,}: larger messages, of up to {largest:,}, are dead-lettered"
            yield Finding("message sizes", State.WARNING, says, f"Set it to {largest}.")

    def check_permissions(self) -> list[Finding]:
        """Ask what we may do with the topics.

        Returns
        -------
        list of Finding
            One, or one for each topic with too few rights.
        """
        if self.silent:
            return [_cannot_tell("permissions", UntoldError("no answer"), "A worker's start will tell.")]
        existing = [topic for topic in self.topics if topic.partitions]
        names = TopicCollection([topic.name for topic in existing])
        futures = self.admin.describe_topics(names, include_authorized_operations=True, request_timeout=_ANSWER_S)
        findings = []
        for topic in existing:
            wanted = AclOperation.READ if topic.role == "input" else AclOperation.WRITE
            try:
                allowed = self._told(futures[topic.name]).authorized_operations
            except UntoldError as error:
                return [_cannot_tell("permissions", error, "A worker's start will tell.")]
            if allowed is None:
                return [_cannot_tell("permissions", UntoldError("no list"), "A worker's start will tell.")]
            if wanted not in allowed:
                says = f"no right to {wanted.name} {topic.name}"
                remedy = f"{_grant(wanted.name)} --topic {topic.name}"
                findings.append(Finding("permissions", State.BAD, says, remedy))
        says = "may read the input and write the outputs"
        return findings or [Finding("permissions", State.GOOD, says)]

    def check_group(self) -> list[Finding]:
        """Ask who is in the consumer group, and whether we may join it.

        Returns
        -------
        list of Finding
            One.
        """
        if self.silent:
            return [_cannot_tell("consumer group", UntoldError("no answer"), "A worker's start will tell.")]
        name = self.settings.kafka.group_id
        try:
            group = self._describe_group(name)
        except ForbiddenError:  # whoever may READ may ask
            return [_no_group_right(name)]
        except UntoldError as error:
            return [_cannot_tell("consumer group", error, "A worker's start will tell.")]
        allowed = group.authorized_operations
        if allowed is not None and AclOperation.READ not in allowed:
            return [_no_group_right(name)]
        return [Finding("consumer group", State.GOOD, f"{name}: {_many(len(group.members), 'worker')} in it now")]

    def _describe_group(self, name: str) -> Any:
        for patience_s in _COORDINATOR_WAITS_S:
            futures = self.admin.describe_consumer_groups(
                [name], include_authorized_operations=True, request_timeout=_ANSWER_S
            )
            try:
                return self._told(futures[name])
            except KafkaException as error:
                if error.args[0].code() not in _COORDINATOR_STARTS:
                    raise
            sleep(patience_s)
        raise UntoldError("the group's coordinator is still starting")

    def check_transactions(self) -> list[Finding]:
        """Ask for a producer id, under a name that no worker has.

        Returns
        -------
        list of Finding
            One.

        Raises
        ------
        ConfigError, FatalError, RetriableError
            If the brokers do not give one.
        """
        options = kafka.producer_options(self.settings.kafka, self.settings.delivery)
        name = f"{self.settings.delivery.transactional_id or self.settings.kafka.group_id}-doctor"
        producer = kafka.make(Producer, options | {"transactional.id": name})
        try:
            producer.init_transactions(15)
        except KafkaException as error:
            raise kafka.as_error(error.args[0], "initialising transactions") from error
        return [Finding("transactions", State.GOOD, "the brokers give producer ids")]


def _enrichment_bytes() -> int:
    """What the enrichment adds to a message: its schema in the header of an Avro file, and its values."""
    return len(schemas.read("enrichment", "1.0")) + _LATENT_BYTES + _HEADER_BYTES


def _letter_bytes() -> int:
    return _ERROR_BYTES + _HEADER_BYTES + len(PREFIX)


_GROWTH: Mapping[str, Callable[[], int]] = {"output": _enrichment_bytes, "dead-letter": _letter_bytes}
"""By how much a message may grow on its way to a topic; a lite message is small whatever came in."""


def _cannot_tell(name: str, error: UntoldError, remedy: str) -> Finding:
    return Finding(name, State.WARNING, f"the brokers do not tell: {error}", remedy)


def _no_group_right(name: str) -> Finding:
    return Finding("consumer group", State.BAD, f"no right to READ group {name}", f"{_grant('READ')} --group {name}")


def _grant(right: str) -> str:
    return f"kafka-acls.sh --add --allow-principal User:... --operation {right}"


def _many(count: int, one: str, several: str | None = None) -> str:
    return f"{count} {one if count == 1 else several or one + 's'}"
