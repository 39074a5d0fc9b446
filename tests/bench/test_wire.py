"""Packets of the wire hold what the files hold that they are made of."""

import io
import json
import sys
from pathlib import Path

import fastavro
import pytest
from stream_vae.sky.packets import simulate_packets

sys.path.insert(0, str(Path(__file__).parent))

import wire

from flow import decode, decode_file


@pytest.mark.parametrize("codec", ["null", "deflate"])
def test_a_packet_of_the_wire_holds_the_record_of_its_file_whatever_its_codec(tmp_path, codec):
    (simulated,) = simulate_packets(1, shape="candidate", seed=1)
    record = decode_file(simulated.packet)
    schema = fastavro.reader(io.BytesIO(simulated.packet)).writer_schema
    out = io.BytesIO()
    fastavro.writer(out, schema, [record], codec)
    (packet,) = wire.from_files([out.getvalue()], tmp_path)
    assert packet[:5] == wire.header(1) == b"\0\0\0\0\1"
    assert repr(decode(json.loads((tmp_path / "1.avsc").read_text()), packet[5:])) == repr(record)


def test_each_schema_has_one_id(tmp_path):
    packets = [each.packet for shape in ("ztf", "candidate") for each in simulate_packets(2, shape=shape, seed=1)]
    assert [packet[4] for packet in wire.from_files(packets, tmp_path)] == [1, 1, 2, 2]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1.avsc", "2.avsc"]
