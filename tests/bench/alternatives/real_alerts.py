"""Real alerts for the parts, and the stages that a worker would send them through, in this process."""

import tempfile
from pathlib import Path

import networks
from corpus import real_alerts
from stream_vae import assembly
from stream_vae.alert import Packet
from stream_vae.pipeline import Stages

from alternatives.rounds import Skipped
from stage_parts import complete_settings


def stages_for(survey: str, cutouts: int = 1) -> Stages:
    """What a worker has, with a release of the paper's size and random weights."""
    with tempfile.TemporaryDirectory(prefix="stream-vae-alternatives-") as folder:
        store = Path(folder) / "store"
        networks.make_release(store, Path(folder) / "release", cutouts)
        settings = complete_settings(survey, release={"store": str(store)})
        return assembly.stages_of(settings, assembly.release_of(settings), assembly.registry_of(settings.registry))


def packets_of(survey: str) -> list[Packet]:
    """All real packets of a survey."""
    paths = real_alerts(survey)
    if not paths:
        raise Skipped(f"no real {survey} alerts: set ALERTS_DIR")
    return [
        Packet(path.read_bytes(), "in", number % 4, number, b"key", 1_700_000_000_000)
        for number, path in enumerate(paths)
    ]
