"""What the brokers say about the fleet's consumer group: who owns which partition."""

import logging
import re

from confluent_kafka import ConsumerGroupState, KafkaException

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
