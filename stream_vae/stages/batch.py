"""A batch closes by number or time in the source, whichever comes first; here it is split where it is heavy."""

from collections.abc import Sequence

from stream_vae.alert import Packet


def by_bytes(packets: Sequence[Packet], max_bytes: int) -> list[Sequence[Packet]]:
    """Split a batch whose messages are large.

    Parameters
    ----------
    packets : sequence of Packet
        As read.
    max_bytes : int
        Largest sum of a part, unless a single message is larger.

    Returns
    -------
    list of sequence of Packet
        In order.
    """
    parts: list[Sequence[Packet]] = []
    start = size = 0
    for at, packet in enumerate(packets):
        if size and size + len(packet.value) > max_bytes:
            parts.append(packets[start:at])
            start, size = at, 0
        size += len(packet.value)
    parts.append(packets[start:])
    return parts
