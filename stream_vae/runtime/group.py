"""What the brokers say about the fleet's consumer group: who owns which partition."""

import logging
import re
from collections.abc import Iterator

from confluent_kafka import Consumer, ConsumerGroupState, KafkaException, TopicPartition

from stream_vae import kafka
from stream_vae.errors import ConfigError
from stream_vae.settings import KafkaSettings
from stream_vae.stages.ledger import Partition

log = logging.getLogger(__name__)

_TIMEOUT_S = 10.0


class Group:
    """The group, seen from outside.

    Parameters
    ----------
    settings : KafkaSettings
        ``[kafka]``.

    Raises
    ------
    ConfigError
        If librdkafka refuses the options.
    """

    def __init__(self, settings: KafkaSettings) -> None:
        self._settings = settings
        self._admin = kafka.admin(settings)
        self._reader: Consumer | None = None

    def input_partitions(self) -> frozenset[Partition]:
        """List the partitions of the input topics, patterns included.

        Returns
        -------
        frozenset
            Of (topic, number).

        Raises
        ------
        ConfigError
            If no broker answers.
        """
        try:
            found = self._admin.list_topics(timeout=_TIMEOUT_S).topics
        except KafkaException as error:
            raise ConfigError(
                f"The input topics cannot be listed: {error.args[0].str()}.",
                remedy="Check the brokers; `stream-vae doctor` helps.",
            ) from error
        wanted = self._settings.input_topics
        return frozenset(
            (name, number)
            for name, topic in found.items()
            if any(re.search(want, name) if want.startswith("^") else want == name for want in wanted)
            for number in topic.partitions
        )

    def lag(self) -> int | None:
        """Count the messages of the input that the group has not settled.

        Returns
        -------
        int or None
            Over all partitions; from the first message where nothing was ever committed. None if the brokers do not
            tell.
        """
        try:
            return sum(self._waiting())
        except (KafkaException, ConfigError, TimeoutError) as error:
            log.warning("the lag of group %s cannot be told: %s", self._settings.group_id, error)
            return None

    def _waiting(self) -> Iterator[int]:
        """Messages of each partition that are not settled."""
        if self._reader is None:
            # The admin client could be asked, too, but that of confluent-kafka 2.16 was seen to end the process with
            # a segmentation fault on a broker that had just started. And one who reads committed would wait for
            # transactions that a dead worker left open.
            options = {"group_id": self._settings.group_id, "isolation_level": "read_uncommitted"}
            self._reader = kafka.plain_consumer(self._settings, **options)
        entries = [TopicPartition(*partition) for partition in self.input_partitions()]
        for entry in self._reader.committed(entries, timeout=_TIMEOUT_S):
            first, end = self._reader.get_watermark_offsets(entry, timeout=_TIMEOUT_S)
            yield end - max(entry.offset, first)

    def agrees(self, claims: dict[str, frozenset[Partition]]) -> bool:
        """Tell whether the group is at rest and sees its members as they see themselves.

        While a partition is on its way from one member to another nobody owns it, and each of them may truly say
        that it has nothing left to do.

        Parameters
        ----------
        claims : dict
            The partitions that members say they own, by member id.

        Returns
        -------
        bool
            True if every partition of the input has an owner and every claim is confirmed.
        """
        name = self._settings.group_id
        try:
            group = self._admin.describe_consumer_groups([name])[name].result(timeout=_TIMEOUT_S)
            everything = self.input_partitions()
        except (KafkaException, ConfigError, TimeoutError) as error:
            log.warning("group %s cannot be described: %s", name, error)
            return False
        owned = {
            member.member_id: frozenset((entry.topic, entry.partition) for entry in member.assignment.topic_partitions)
            for member in group.members
        }
        at_rest = group.state == ConsumerGroupState.STABLE and everything <= frozenset().union(*owned.values())
        return at_rest and all(owned.get(member) == claim for member, claim in claims.items())
