"""The bounds within which bytes from outside are read.

An alert's bytes are not trusted: a few of them can announce two thousand million array
items or a body of gigabytes. Every reader of this package takes its bounds from here.
"""

from dataclasses import dataclass

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds on one message; over any of them it is rejected as `Reason.TOO_LARGE`.

    Parameters
    ----------
    max_packet_bytes : int
        Length of the Kafka message's value. Real alerts are 30 to 220 kB.
    max_header_bytes : int
        Length of an Avro file's header, and of a schema from a registry. Real ones are 2 to 26 kB.
    max_body_bytes : int
        Length of the record's Avro binary after decompression.
    max_depth : int
        Nesting depth of the data, and of the schema's JSON.
    max_steps : int
        Values and items visited in one walk. A real ZTF alert needs about 2,000.
    max_zero_size_items : int
        Array items that take no bytes at all (null, empty record): only a bomb has many.
    schema_cache_entries : int
        Parsed schemas that are kept.
    """

    max_packet_bytes: int = 16 * MIB
    max_header_bytes: int = 1 * MIB
    max_body_bytes: int = 32 * MIB
    max_depth: int = 64
    max_steps: int = 2_000_000
    max_zero_size_items: int = 65_536
    schema_cache_entries: int = 256


DEFAULT_LIMITS = Limits()
