"""How the usual way reads a packet and writes it again: as an Avro file, or in Confluent's wire format."""

import io
import json
from collections.abc import Callable
from typing import Any, NamedTuple

import fastavro
import wire
from stream_vae import schemas
from stream_vae.avro.registry import SchemaSource
from stream_vae.avro.schema import append_field, to_json

FIELD = {"name": "stream_vae", "type": ["null", schemas.load("enrichment", "1.0")], "default": None}


class Alert(NamedTuple):
    """A record, and what encodes it with the enrichment in it."""

    record: dict[str, Any]
    write: Callable[[dict[str, Any]], bytes]


class Files:
    """Avro files, each with its schema; those for writing are parsed once."""

    def __init__(self) -> None:
        self._written: dict[str, Any] = {}

    def read(self, packet: bytes) -> Alert:
        reader = fastavro.reader(io.BytesIO(packet))
        text = reader.metadata["avro.schema"]
        return Alert(next(reader), lambda record: self._write(text, record))

    def _write(self, text: str, record: dict[str, Any]) -> bytes:
        schema = self._written.get(text)
        if schema is None:
            schema = self._written[text] = fastavro.parse_schema(append_field(json.loads(text), FIELD))
        out = io.BytesIO()
        fastavro.writer(out, schema, [record])
        return out.getvalue()


class _Schemas(NamedTuple):
    """What is parsed once an id."""

    read: Any
    written: Any
    header: bytes
    """Of what is written: with the id under which its schema was registered."""


class Wire:
    """Records behind the ids of their schemas, in a registry."""

    def __init__(self, registry: SchemaSource, subject: str) -> None:
        self._registry = registry
        self._subject = subject
        self._known: dict[bytes, _Schemas] = {}

    def read(self, packet: bytes) -> Alert:
        key = packet[: wire.HEADER_BYTES]
        known = self._known.get(key)
        if known is None:
            known = self._known[key] = self._look_up(int.from_bytes(key[1:], "big"))
        stream = io.BytesIO(packet)
        stream.seek(wire.HEADER_BYTES)
        return Alert(fastavro.schemaless_reader(stream, known.read, None), lambda record: self._write(known, record))

    def _look_up(self, schema_id: int) -> _Schemas:
        schema = json.loads(self._registry.get(schema_id))
        enriched = append_field(schema, FIELD)
        header = wire.header(self._registry.register(self._subject, to_json(enriched)))
        return _Schemas(fastavro.parse_schema(schema), fastavro.parse_schema(enriched), header)

    @staticmethod
    def _write(known: _Schemas, record: dict[str, Any]) -> bytes:
        out = io.BytesIO()
        out.write(known.header)
        fastavro.schemaless_writer(out, known.written, record)
        return out.getvalue()
