"""Avro packets: their framing, their schemas, and a walk to the fields that are wanted.

`FrameReader` opens a packet, `FieldPlan` finds fields in its record, `reframe` wraps the
record again with one more field. What a field means to a survey is not known here.

Nothing is imported here: a reader of settings needs none of the compiled code.
"""
