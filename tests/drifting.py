"""Releases with a reference, and counts against it, for the tests of drift."""

from pathlib import Path
from typing import Any

import numpy as np
from stream_vae.drift import Counts, DriftReference, Tally
from stream_vae.learning.reference import write_reference
from stream_vae.model.release import REFERENCE, ReleaseCard
from stream_vae.model.store import ReleaseStore, write_release

from releases import LATENTS, make_release


def sample(count: int, seed: int, *, shift: float = 0.0, latents: int = LATENTS) -> tuple[np.ndarray, np.ndarray]:
    """Codes and scores of a made-up stream: (n, latents) and (n,)."""
    rng = np.random.default_rng(seed)
    z_mean = rng.normal(shift, 1.0, (count, latents)).astype(np.float32)
    return z_mean, (1 / (1 + np.exp(-z_mean[:, 0]))).astype(np.float32)


def referenced(store: ReleaseStore, folder: Path, *, seed: int = 0, promote: bool = False, **known: Any) -> ReleaseCard:
    """A release of random weights whose reference is what `sample` gives; `known` goes to `write_reference`."""
    bare = store.load(make_release(store, folder / "bare", seed=seed, promote=False).id)
    made = folder / "made"
    made.mkdir()
    for name in bare.card.files:
        (made / name).write_bytes((bare.folder / name).read_bytes())
    z_mean, score = sample(2000, 1)
    stamps = np.random.default_rng(2).uniform(-1, 1, (2000, 21, 21, 1)).astype(np.float32)
    write_reference(
        made / REFERENCE,
        stamps=stamps,
        z_mean=z_mean,
        real_z_mean=z_mean[:100],
        real_z_log_var=z_mean[:100],
        real_score=score,
        seed=0,
        **known,
    )
    fields = {name: getattr(bare.card, name) for name in ("latent_size", "recipe", "data", "metrics", "preprocessing")}
    card = write_release(store, made, name="referenced", **fields)
    if promote:
        store.promote(card.id)
    return card


def counted(reference: DriftReference, count: int, seed: int, *, band: str = "g", **changes: Any) -> Counts:
    """Counts of a window of the made-up stream; `quality`, `errors` and `shift` change it."""
    tally = Tally(reference, ("g", "r"))
    z_mean, score = sample(count, seed, shift=changes.get("shift", 0.0))
    bands = tally.numbers([band] * count)
    quality = changes.get("quality", np.zeros(count, np.uint32))
    tally.add(bands, z_mean, score, quality)
    if "errors" in changes:
        tally.add_errors(bands[: len(changes["errors"])], changes["errors"])
    return tally.counts()
