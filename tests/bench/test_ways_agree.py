"""The benchmark compares ways of doing the same: they must agree on every real alert."""

import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fastavro
import numpy as np
import pytest
from stream_vae import assembly
from stream_vae.alert import Packet
from stream_vae.metrics import Metrics
from stream_vae.pipeline import enriched
from stream_vae.quality import Quality
from stream_vae.settings import Settings

sys.path.insert(0, str(Path(__file__).parent))

from networks import make_release
from way_usual import UsualWay

NUMBERS = ("latent_mean", "latent_log_var", "real_score", "real_score_std", "reference_distance", "novelty")


def _read(packet: bytes) -> dict[str, Any]:
    (record,) = fastavro.reader(io.BytesIO(packet))
    return record


@pytest.mark.parametrize("cutouts", [1, 3])
@pytest.mark.filterwarnings("ignore::astropy.io.fits.verify.VerifyWarning")
def test_the_usual_way_gives_the_record_that_stream_vae_gives(
    real_packets: Callable[[str], list[Path]], tmp_path: Path, cutouts: int
) -> None:
    packets = [path.read_bytes() for path in real_packets("ztf")]
    make_release(tmp_path / "store", tmp_path / "work", cutouts)
    kafka = {"bootstrap_servers": "none", "input_topics": ["in"], "output_topic": "out", "dead_letter_topic": "dead"}
    settings = Settings(survey="ztf", kafka=kafka, release={"store": str(tmp_path / "store")})
    release = assembly.release_of(settings)
    stages = assembly.stages_of(settings, release, None)
    taken = [Packet(value, "in", 0, offset) for offset, value in enumerate(packets)]
    ours = [_read(outcome.messages[0].value) for outcome in enriched(taken, stages, Metrics("ztf"))]
    usual = [_read(value) for value in UsualWay(release, assembly.profile_of(settings)).process(packets)]
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
    assert compared > 0.9 * len(NUMBERS) * len(packets)
