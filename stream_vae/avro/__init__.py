"""Avro packets: their framing, their schemas, and a walk to the fields that are wanted.

`FrameReader` opens a packet, `FieldPlan` finds fields in its record, `reframe` wraps the
record again with one more field. What a field means to a survey is not known here.
"""

from stream_vae.avro.codec import Codec
from stream_vae.avro.framing import Frame, FrameReader, Framing, OutputSchema, reframe, replace_body
from stream_vae.avro.limits import DEFAULT_LIMITS, Limits
from stream_vae.avro.registry import FolderRegistry, HttpRegistry, SchemaSource, open_registry
from stream_vae.avro.schema import WriterSchema, append_field, mend
from stream_vae.avro.walker import FieldPlan, warm_up

__all__ = [
    "DEFAULT_LIMITS",
    "Codec",
    "FieldPlan",
    "FolderRegistry",
    "Frame",
    "FrameReader",
    "Framing",
    "HttpRegistry",
    "Limits",
    "OutputSchema",
    "SchemaSource",
    "WriterSchema",
    "append_field",
    "mend",
    "open_registry",
    "reframe",
    "replace_body",
    "warm_up",
]
