"""The wrapping of a packet: an Avro file, Confluent's wire format, or a bare record.

`FrameReader.open` finds the writer schema and the record's bytes in a packet; `reframe`
puts the same bytes and one appended field back into the same wrapping. Neither decodes
the record: that is `stream_vae.avro.walker`, and only for the fields that are asked for.

In an Avro file one third of a ZTF packet is the schema, the same from alert to alert, so
headers that were seen lately are recognised by one comparison of memory.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from stream_vae.avro.binary import read_bytes, read_long, write_bytes, write_long
from stream_vae.avro.codec import Codec, compress, decompress
from stream_vae.avro.limits import DEFAULT_LIMITS, Limits
from stream_vae.avro.schema import LruCache, WriterSchema, append_field, to_json
from stream_vae.errors import ConfigError, Reason, RejectedAlertError

if TYPE_CHECKING:
    from stream_vae.avro.registry import SchemaSource
    from stream_vae.native import Addresses

OCF_MAGIC = b"Obj\x01"
CONFLUENT_MAGIC = b"\x00"
_CONFLUENT_HEADER_BYTES = 5  # the magic and a big-endian id
_SYNC_BYTES = 16
_MAX_METADATA_ENTRIES = 1024
_RECENT_HEADERS = 8  # a topic's partitions carry a handful of schemas at a time
_ONE = write_long(1)
Pieces = tuple[bytes | memoryview, ...]
"""A packet before it is joined."""


class Framing(StrEnum):
    """How a packet says what schema its record has."""

    OCF = "ocf"
    """An Avro object container file: the schema is inside."""
    CONFLUENT = "confluent"
    """A zero byte and the schema's id in a registry."""
    SCHEMALESS = "schemaless"
    """Not at all: the schema is configured."""


@dataclass(frozen=True, slots=True, eq=False)
class OcfHeader:
    """The part of an Avro file before its sync marker.

    Parameters
    ----------
    prefix : bytes
        Magic and metadata as they came.
    writer : WriterSchema
        The schema in it.
    codec : Codec
        Of its blocks.
    metadata : tuple of (bytes, bytes)
        All entries in their order; the schema's text is left blank.
    """

    prefix: bytes
    writer: WriterSchema
    codec: Codec
    metadata: tuple[tuple[bytes, bytes], ...]


class Frame(NamedTuple):
    """An opened packet.

    Parameters
    ----------
    writer : WriterSchema
        What the record was written with.
    body : bytes or memoryview
        The record's Avro binary, decompressed; a view of the packet where nothing is compressed.
    framing : Framing
        The wrapping.
    codec : Codec
        Of an Avro file's block.
    sync : bytes
        An Avro file's marker, 16 bytes; empty otherwise.
    schema_id : int or None
        The registry's id, for Confluent's wire format.
    header : OcfHeader or None
        For an Avro file.
    address : int
        Where the body lies in memory; 0 where it was not asked for.
    """

    writer: WriterSchema
    body: bytes | memoryview
    framing: Framing
    codec: Codec = Codec.NULL
    sync: bytes = b""
    schema_id: int | None = None
    header: OcfHeader | None = None
    address: int = 0


class FrameReader:
    """Opens packets; keeps the schemas that it has seen.

    Parameters
    ----------
    framing : Framing or None
        What to expect; None tells an Avro file from Confluent's format by the first bytes.
    schemas : SchemaSource or None
        Where the schemas behind ids are; without it no Confluent packet can be opened.
    schema : Mapping or None
        The writer schema for `Framing.SCHEMALESS`.
    limits : Limits
        Bounds on what comes in.

    Raises
    ------
    ConfigError
        If the framing needs a schema or a source of schemas that is not given.
    RejectedAlertError
        If the given schema is bad.
    """

    def __init__(
        self,
        *,
        framing: Framing | None = None,
        schemas: "SchemaSource | None" = None,
        schema: Mapping[str, Any] | None = None,
        limits: Limits = DEFAULT_LIMITS,
    ) -> None:
        if framing is Framing.SCHEMALESS and schema is None:
            raise ConfigError("schemaless packets need a schema.", remedy="Give the survey's profile its .avsc file.")
        if framing is Framing.CONFLUENT and schemas is None:
            raise ConfigError("Confluent packets need a registry.", remedy="Set [registry] url.")
        self._framing = framing
        self._schemas = schemas
        self._schemaless = None if schema is None else WriterSchema.parse(to_json(schema), limits)
        self._limits = limits
        self._recent: list[OcfHeader] = []
        self._by_text: LruCache[bytes, WriterSchema] = LruCache(limits.schema_cache_entries)
        self._by_id: LruCache[int, WriterSchema] = LruCache(limits.schema_cache_entries)

    def open(self, packet: bytes) -> Frame:
        """Find the writer schema and the record in a packet.

        Parameters
        ----------
        packet : bytes
            The value of one Kafka message.

        Returns
        -------
        Frame
            Its record is not looked into yet.

        Raises
        ------
        RejectedAlertError
            If the packet is not what was expected; the reason says in which way.
        RetriableError
            If the registry cannot be reached.
        """
        if not packet:
            raise RejectedAlertError("an empty message", reason=Reason.EMPTY)
        if len(packet) > self._limits.max_packet_bytes:
            raise RejectedAlertError(f"a message of {len(packet)} bytes", reason=Reason.TOO_LARGE)
        framing = self._framing or _tell_framing(packet)
        if framing is Framing.OCF:
            return self._open_ocf(packet)
        if framing is Framing.CONFLUENT:
            return self._open_confluent(packet)
        assert self._schemaless is not None
        return Frame(self._schemaless, packet, Framing.SCHEMALESS)

    def open_each(self, packets: Sequence[bytes]) -> "list[Frame | RejectedAlertError]":
        """Open the packets of a batch, with the address of each record.

        Avro files whose header was seen lately are opened by one compiled call; all others one by one.

        Parameters
        ----------
        packets : sequence of bytes
            Values of Kafka messages; the caller keeps them.

        Returns
        -------
        list of Frame or RejectedAlertError
            One a packet, as `open` gives or raises it.

        Raises
        ------
        RetriableError
            If the registry cannot be reached.
        """
        # Here, as what only looks at packets need not wait for numba.
        from stream_vae.native import addresses

        where = addresses(packets)
        none: list[Frame | None] = [None] * len(packets)
        opened = self._open_known(packets, where) if self._framing in (None, Framing.OCF) else none
        rows = zip(opened, packets, where.tolist(), strict=True)
        return [frame or self._open_one(packet, place) for frame, packet, place in rows]

    def _open_one(self, packet: bytes, place: int) -> "Frame | RejectedAlertError":
        try:
            frame = self.open(packet)
        except RejectedAlertError as error:
            return error
        if frame.framing is Framing.CONFLUENT:
            return frame._replace(address=place + _CONFLUENT_HEADER_BYTES)
        from stream_vae.native import address

        return frame._replace(address=address(frame.body))

    def _open_known(self, packets: Sequence[bytes], where: "Addresses") -> list[Frame | None]:
        import numpy as np

        from stream_vae.avro.kernel import find_blocks
        from stream_vae.native import addresses

        known = [header for header in self._recent if header.codec is Codec.NULL]
        if not known:
            return [None] * len(packets)
        sizes = np.fromiter(map(len, packets), np.int64, len(packets))
        prefixes = [header.prefix for header in known]
        which, blocks = np.empty(len(packets), np.int64), np.empty((len(packets), 2), np.int64)
        find_blocks(where, sizes, addresses(prefixes), np.array([*map(len, prefixes)], np.int64), which, blocks)
        which[
            (sizes > self._limits.max_packet_bytes) | (blocks[:, 1] - blocks[:, 0] > self._limits.max_body_bytes)
        ] = -1
        frames: list[Frame | None] = []
        rows = zip(packets, where.tolist(), which.tolist(), blocks.tolist(), strict=True)
        for packet, base, number, (start, stop) in rows:
            if number < 0:
                frames.append(None)
                continue
            header = known[number]
            at = len(header.prefix)
            body, sync = memoryview(packet)[start:stop], packet[at : at + _SYNC_BYTES]
            frames.append(Frame(header.writer, body, Framing.OCF, Codec.NULL, sync, None, header, base + start))
        return frames

    def _open_ocf(self, packet: bytes) -> Frame:
        for header in self._recent:
            if packet.startswith(header.prefix):
                break
        else:
            header = self._new_header(packet)
        if header is not self._recent[0]:
            self._recent.remove(header)
            self._recent.insert(0, header)
        at = len(header.prefix)
        sync = packet[at : at + _SYNC_BYTES]
        start, stop = _only_block(packet, at + _SYNC_BYTES, sync)
        block = memoryview(packet)[start:stop]
        body = decompress(header.codec, block, self._limits.max_body_bytes)
        return Frame(header.writer, body, Framing.OCF, header.codec, sync, None, header)

    def _new_header(self, packet: bytes) -> OcfHeader:
        metadata, end = _read_metadata(packet, self._limits)
        text = metadata.get(b"avro.schema")
        if text is None:
            raise RejectedAlertError("an Avro file without a schema", reason=Reason.SCHEMA)
        name = metadata.get(b"avro.codec", b"null")
        try:
            codec = Codec(name.decode("latin-1"))
        except ValueError:
            raise RejectedAlertError(f"an Avro file with codec {name[:32]!r}", reason=Reason.CODEC) from None
        writer = self._by_text.get(text) or self._by_text.put(text, WriterSchema.parse(text, self._limits))
        rest = tuple((key, b"" if key == b"avro.schema" else value) for key, value in metadata.items())
        header = OcfHeader(packet[:end], writer, codec, rest)
        self._recent.insert(0, header)
        del self._recent[_RECENT_HEADERS:]
        return header

    def _open_confluent(self, packet: bytes) -> Frame:
        if packet[:1] != CONFLUENT_MAGIC:
            raise RejectedAlertError(f"no Confluent packet: it begins with {packet[:5]!r}", reason=Reason.FRAMING)
        if len(packet) < _CONFLUENT_HEADER_BYTES:
            raise RejectedAlertError("the message ends in its schema id", reason=Reason.TRUNCATED)
        schema_id = int.from_bytes(packet[1:_CONFLUENT_HEADER_BYTES], "big")
        writer = self._by_id.get(schema_id) or self._fetch(schema_id)
        body = memoryview(packet)[_CONFLUENT_HEADER_BYTES:]
        return Frame(writer, body, Framing.CONFLUENT, Codec.NULL, b"", schema_id, None)

    def _fetch(self, schema_id: int) -> WriterSchema:
        if self._schemas is None:
            raise RejectedAlertError(
                f"schema id {schema_id} cannot be looked up: no registry is configured.",
                reason=Reason.FRAMING,
                remedy="Set [registry] url.",
            )
        return self._by_id.put(schema_id, WriterSchema.parse(self._schemas.get(schema_id), self._limits))


@dataclass(frozen=True, eq=False)
class OutputSchema:
    """What a packet carries on its way out.

    Parameters
    ----------
    schema : dict
        As an object.
    json : str
        The same as text.
    schema_id : int or None
        The registry's id of it; needed for Confluent's wire format.
    """

    schema: dict[str, Any]
    json: str
    schema_id: int | None = None
    _headers: LruCache[tuple[tuple[bytes, bytes], ...], bytes] = field(
        default_factory=lambda: LruCache(_RECENT_HEADERS), repr=False
    )

    @classmethod
    def of(cls, schema: Mapping[str, Any], *, registry: "SchemaSource | None" = None, subject: str = "") -> Self:
        """Prepare a schema for output.

        Parameters
        ----------
        schema : Mapping
            Of the outgoing records.
        registry : SchemaSource or None
            Where to register it; needed for Confluent's wire format only.
        subject : str
            Under which name: the output topic's and "-value", by Confluent's custom.

        Returns
        -------
        OutputSchema
            With its id if there is a registry.

        Raises
        ------
        RetriableError
            If the registry cannot be reached.
        ConfigError
            If the registry refuses the schema as incompatible.
        """
        text = to_json(schema)
        return cls(dict(schema), text, None if registry is None else registry.register(subject, text))

    @classmethod
    def appending(
        cls,
        frame: Frame,
        appended: Mapping[str, Any],
        *,
        registry: "SchemaSource | None" = None,
        subject: str = "",
    ) -> Self:
        """Prepare the schema of a packet with one field appended.

        Parameters
        ----------
        frame : Frame
            The packet. What is returned serves every packet with the same writer and framing.
        appended : Mapping
            The Avro field: name, type, default.
        registry : SchemaSource or None
            Asked only if the packet is in Confluent's wire format.
        subject : str
            As for `of`.

        Returns
        -------
        OutputSchema
            For `reframe`.

        Raises
        ------
        RejectedAlertError
            With reason SCHEMA if the packet's schema has a field or type of that name already.
        RetriableError
            If the registry cannot be reached.
        ConfigError
            If the registry refuses the schema as incompatible.
        """
        schema = append_field(frame.writer.parsed, appended)
        asked = registry if frame.framing is Framing.CONFLUENT else None
        return cls.of(schema, registry=asked, subject=subject)

    def ocf_prefix(self, metadata: tuple[tuple[bytes, bytes], ...]) -> bytes:
        """Write an Avro file's header up to its sync marker.

        Parameters
        ----------
        metadata : tuple of (bytes, bytes)
            As in `OcfHeader`: the schema's text is put where it is left blank.

        Returns
        -------
        bytes
            Magic and metadata.
        """
        return self._headers.get(metadata) or self._headers.put(metadata, self._write_prefix(metadata))

    def _write_prefix(self, metadata: tuple[tuple[bytes, bytes], ...]) -> bytes:
        entries = {**dict(metadata), b"avro.schema": self.json.encode()}
        pairs = b"".join(write_bytes(key) + write_bytes(value) for key, value in entries.items())
        return OCF_MAGIC + write_long(len(entries)) + pairs + b"\x00"


def reframe(frame: Frame, appended: bytes, out: OutputSchema) -> Pieces:
    """Wrap a packet's record again, with the bytes of one more field behind it.

    Parameters
    ----------
    frame : Frame
        The packet as it was opened.
    appended : bytes
        Avro encoding of the field that `out` has more than `frame.writer`.
    out : OutputSchema
        The schema of the result; with an id if the framing is Confluent's.

    Returns
    -------
    tuple of bytes or memoryview
        Joined, a packet of the same framing, codec, metadata and sync marker.
    """
    return _wrap(frame, (frame.body, appended), out)


def replace_body(frame: Frame, body: bytes, out: OutputSchema) -> Pieces:
    """Wrap another record the way a packet is wrapped.

    Parameters
    ----------
    frame : Frame
        The packet whose framing, codec, metadata and sync marker are taken over.
    body : bytes
        The record's Avro binary.
    out : OutputSchema
        The record's schema; with an id if the framing is Confluent's.

    Returns
    -------
    tuple of bytes or memoryview
        Joined, a packet.
    """
    return _wrap(frame, (body,), out)


def _wrap(frame: Frame, parts: Pieces, out: OutputSchema) -> Pieces:
    if frame.header is not None:
        if frame.codec is not Codec.NULL:
            parts = (compress(frame.codec, b"".join(parts)),)
        size = write_long(sum(map(len, parts)))
        prefix = out.ocf_prefix(frame.header.metadata)
        return (prefix, frame.sync, _ONE, size, *parts, frame.sync)
    if frame.framing is Framing.CONFLUENT:
        if out.schema_id is None:
            raise ConfigError("the output schema has no id.", remedy="Confluent packets need [registry] url.")
        return (CONFLUENT_MAGIC, out.schema_id.to_bytes(4, "big"), *parts)
    return parts


def _tell_framing(packet: bytes) -> Framing:
    if packet.startswith(OCF_MAGIC):
        return Framing.OCF
    if packet.startswith(CONFLUENT_MAGIC):
        return Framing.CONFLUENT
    if OCF_MAGIC.startswith(packet):
        raise RejectedAlertError("the message ends in its first four bytes", reason=Reason.TRUNCATED)
    raise RejectedAlertError(
        f"neither an Avro file nor Confluent's format: it begins with {packet[:5]!r}", reason=Reason.FRAMING
    )


def _read_metadata(packet: bytes, limits: Limits) -> tuple[dict[bytes, bytes], int]:
    """Read an Avro file's header up to its sync marker: a map of bytes, in blocks as any Avro map."""
    if not packet.startswith(OCF_MAGIC):
        raise RejectedAlertError(f"no Avro file: it begins with {packet[:5]!r}", reason=Reason.FRAMING)
    head = packet[: limits.max_header_bytes]
    try:
        return _read_map(head, len(OCF_MAGIC))
    except RejectedAlertError as error:
        if error.reason is Reason.TRUNCATED and len(head) < len(packet):
            raise RejectedAlertError(
                f"the Avro file's header is longer than {limits.max_header_bytes} bytes", reason=Reason.TOO_LARGE
            ) from error
        raise


def _read_map(head: bytes, at: int) -> tuple[dict[bytes, bytes], int]:
    entries: dict[bytes, bytes] = {}
    read = 0
    while True:
        count, at = read_long(head, at)
        if count == 0:
            return entries, at
        if count < 0:
            count = -count
            _, at = read_long(head, at)  # the block's size in bytes, for readers who skip it
        read += count
        if read > _MAX_METADATA_ENTRIES:
            raise RejectedAlertError(f"an Avro file with {read} metadata entries", reason=Reason.TOO_LARGE)
        for _ in range(count):
            key, at = read_bytes(head, at)
            entries[key], at = read_bytes(head, at)


def _only_block(packet: bytes, at: int, sync: bytes) -> tuple[int, int]:
    """Find the one block of an Avro file, which must hold one record.

    The block's header is read in every message, never taken from the one before.
    """
    if at > len(packet):
        raise RejectedAlertError("the Avro file ends in its sync marker", reason=Reason.TRUNCATED)
    if at == len(packet):
        raise RejectedAlertError("an Avro file without a record", reason=Reason.MULTIPLE_RECORDS)
    count, size_at = read_long(packet, at)
    size, start = read_long(packet, size_at)
    stop = start + size
    if count < 0 or size < 0:
        raise RejectedAlertError(f"an Avro block of {count} records, {size} bytes", reason=Reason.MALFORMED)
    if count != 1:
        raise RejectedAlertError(f"an Avro block of {count} records", reason=Reason.MULTIPLE_RECORDS)
    if stop + _SYNC_BYTES > len(packet):
        raise RejectedAlertError(f"an Avro block of {size} bytes runs beyond the message", reason=Reason.TRUNCATED)
    if packet[stop : stop + _SYNC_BYTES] != sync:
        raise RejectedAlertError("an Avro block does not end with the sync marker", reason=Reason.FRAMING)
    if stop + _SYNC_BYTES < len(packet):
        raise _more_behind(packet, stop + _SYNC_BYTES, sync)
    return start, stop


def _more_behind(packet: bytes, at: int, sync: bytes) -> RejectedAlertError:
    """Tell a second block from junk."""
    if packet.endswith(sync) and len(packet) - at > _SYNC_BYTES:
        return RejectedAlertError("an Avro file of several blocks", reason=Reason.MULTIPLE_RECORDS)
    return RejectedAlertError(f"{len(packet) - at} bytes behind the Avro block", reason=Reason.TRAILING_BYTES)
