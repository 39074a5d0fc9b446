"""Real alerts for the parts, and the stages that a worker would send them through, in this process."""

import tempfile
from pathlib import Path

import networks
from corpus import data_folder
from stream_vae import assembly
from stream_vae.alert import Packet
from stream_vae.pipeline import Stages
from stream_vae.settings import Settings

from alternatives.rounds import Skipped


def stages_for(survey: str, cutouts: int = 1) -> Stages:
    """What a worker has, with a release of the paper's size and random weights."""
    with tempfile.TemporaryDirectory(prefix="stream-vae-alternatives-") as folder:
        store = Path(folder) / "store"
        networks.make_release(store, Path(folder) / "release", cutouts)
        kafka = {"bootstrap_servers": "nowhere:1", "input_topics": ["in"], "output_topic": "out", "group_id": "bench"}
        settings = Settings(
            survey=survey,
            kafka=kafka | {"dead_letter_topic": "dead"},  # type: ignore[arg-type]
            release={"store": str(store)},  # type: ignore[arg-type]
        )
        return assembly.stages_of(settings, assembly.release_of(settings), assembly.registry_of(settings.registry))


def packets_of(survey: str) -> list[Packet]:
    """All real packets of a survey."""
    paths = sorted((data_folder() / survey).rglob("*.avro"))
    if not paths:
        raise Skipped(f"no real {survey} alerts: set ALERTS_DIR")
    return [
        Packet(path.read_bytes(), "in", number % 4, number, b"key", 1_700_000_000_000)
        for number, path in enumerate(paths)
    ]
