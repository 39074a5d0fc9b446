"""The benchmark compares ways of doing the same: they must agree on every real alert."""

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fastavro
import numpy as np
import pytest
from stream_vae import assembly
from stream_vae.alert import Packet
from stream_vae.avro.registry import SchemaSource
from stream_vae.metrics import Metrics
from stream_vae.pipeline import enriched
from stream_vae.quality import Quality
from stream_vae.settings import Settings

sys.path.insert(0, str(Path(__file__).parent))

import corpus
from networks import make_release
from way_usual import UsualWay

from flow import decode

NUMBERS = ("latent_mean", "latent_log_var", "real_score", "real_score_std", "reference_distance", "novelty")


def _read(packet: bytes, registry: SchemaSource | None) -> dict[str, Any]:
    if registry is None:
        (record,) = fastavro.reader(io.BytesIO(packet))
        return record
    assert packet[:1] == b"\0"
    schema = json.loads(registry.get(int.from_bytes(packet[1:5], "big")))
    return decode(schema, packet[5:])


@pytest.mark.parametrize(("kind", "cutouts"), [("ztf", 1), ("ztf", 3), ("ztf_wire", 1), ("lsst", 1), ("lsst_wire", 1)])
@pytest.mark.filterwarnings("ignore::astropy.io.fits.verify.VerifyWarning")
def test_the_usual_way_gives_the_record_that_stream_vae_gives(
    real_packets: Callable[[str], list[Path]],
    alerts_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    kind: str,
    cutouts: int,
) -> None:
    real_packets(kind.removesuffix("_wire"))  # skips where there are none
    monkeypatch.setenv("ALERTS_DIR", str(alerts_dir))
    made = corpus.prepare(kind, tmp_path / "corpus")
    make_release(tmp_path / "store", tmp_path / "work", cutouts)
    kafka = {"bootstrap_servers": "none", "input_topics": ["in"], "output_topic": "out", "dead_letter_topic": "dead"}
    settings = Settings(survey=made.survey, kafka=kafka, release={"store": str(tmp_path / "store")}, **made.sections)
    release, registry = assembly.release_of(settings), assembly.registry_of(settings.registry)
    stages = assembly.stages_of(settings, release, registry)
    taken = [Packet(value, "in", 0, offset) for offset, value in enumerate(made.packets)]
    ours = [_read(outcome.messages[0].value, registry) for outcome in enriched(taken, stages, Metrics(made.survey))]
    way = UsualWay(release, assembly.profile_of(settings), registry, "out")
    usual = [_read(value, registry) for value in way.process(list(made.packets))]
    compared = 0
    for one, other in zip(ours, usual, strict=True):
        found, expected = one.pop("stream_vae"), other.pop("stream_vae")
        assert repr(one) == repr(other)  # NaN equals itself so
        if found["quality"] & (Quality.PADDED | Quality.NOT_SQUARE):
            continue  # at the detector's edge the usual way crops around the wrong pixel
        assert (found["latent_mean"] is None) == (expected["latent_mean"] is None)
        for name in NUMBERS:
            if found[name] is not None:
                np.testing.assert_allclose(found[name], expected[name], rtol=1e-3, atol=1e-4, err_msg=name)
                compared += 1
    assert compared > 0.9 * len(NUMBERS) * len(made.packets)
