"""Rejected packets to dead letters: the bytes unchanged, and headers that say why and from where."""

from stream_vae.alert import Outcome, Outgoing, Rejected

PREFIX = "stream_vae."
REASON, STAGE, ERROR, ALERT_ID = (f"{PREFIX}{name}" for name in ("reason", "stage", "error", "alert_id"))
TOPIC, PARTITION, OFFSET, TIMESTAMP = (f"{PREFIX}{name}" for name in ("topic", "partition", "offset", "timestamp_ms"))
_LONGEST_ERROR = 1000


def dead_letter(rejected: Rejected, topic: str) -> Outcome:
    """Make the dead letter of one packet.

    Parameters
    ----------
    rejected : Rejected
        The packet and what is wrong with it.
    topic : str
        The dead-letter topic.

    Returns
    -------
    Outcome
        With one message whose value and key are the original's.
    """
    packet = rejected.packet
    about = {
        REASON: rejected.reason.value,
        STAGE: rejected.stage,
        ERROR: rejected.error[:_LONGEST_ERROR],
        TOPIC: packet.topic,
        PARTITION: str(packet.partition),
        OFFSET: str(packet.offset),
    }
    if packet.timestamp_ms is not None:
        about[TIMESTAMP] = str(packet.timestamp_ms)
    if rejected.alert_id is not None:
        about[ALERT_ID] = rejected.alert_id
    headers = [
        *((name, value) for name, value in packet.headers if not name.startswith(PREFIX)),
        (f"{PREFIX}source", packet.origin.encode()),
        *((name, value.encode("utf-8", "replace")) for name, value in about.items()),
    ]
    # The letter is as old as its refusal: with the alert's own time, retention would delete an old night's at once.
    message = Outgoing(topic, (packet.value,), packet.key, headers, None)
    return Outcome(packet, (message,), "dead_lettered")
