"""Avro files as they would come in Confluent's wire format: each record behind its schema's id, in no file.

The ids stand for schemas in a folder, which serves as a registry (`registry.url`). Nothing is encoded again: a record's
bytes are those of its file.
"""

import io
from collections.abc import Iterable, Iterator
from pathlib import Path

import fastavro

MAGIC = b"\0"
HEADER_BYTES = 5


def header(schema_id: int) -> bytes:
    """Give what comes before a record: the magic byte and the big-endian id."""
    return MAGIC + schema_id.to_bytes(HEADER_BYTES - 1, "big")


def from_files(packets: Iterable[bytes], schemas: Path) -> Iterator[bytes]:
    """Take the record out of each Avro file; `schemas` gets `<id>.avsc` of every schema that there is."""
    ids: dict[str, int] = {}
    for packet in packets:
        blocks = fastavro.block_reader(io.BytesIO(packet))
        (block,) = blocks
        assert block.num_records == 1, "an alert packet has one record"
        text = blocks.metadata["avro.schema"]
        if text not in ids:
            ids[text] = len(ids) + 1
            (schemas / f"{ids[text]}.avsc").write_text(text, encoding="utf-8")
        yield header(ids[text]) + block.bytes_.getvalue()
