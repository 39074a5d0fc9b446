"""Judge a release by stamps that it may never have seen: `metrics.json` and `report.html`, without Keras."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream_vae.errors import ConfigError
from stream_vae.learning.data import open_source
from stream_vae.learning.encode import EVALUATION_SEED
from stream_vae.learning.progress import reporter
from stream_vae.learning.report import write_report
from stream_vae.learning.stamps import StampSet, read_stamps
from stream_vae.learning.study import MAX_STUDIED, Study, measure, study_of
from stream_vae.model.reconstruct import Reconstructor
from stream_vae.model.release import REFERENCE, Release
from stream_vae.model.store import ReleaseStore
from stream_vae.stages.encode import Encoder
from stream_vae.stages.score import Scorer

Array = NDArray[np.float32]


def evaluate(
    store: ReleaseStore | str,
    release_id: str | None,
    data: str,
    out: Path,
    *,
    survey: str | None = None,
    simulated_stamps: int = 4000,
    progress: bool = True,
) -> dict[str, Any]:
    """Evaluate a release on stamps and write the report.

    Parameters
    ----------
    store : ReleaseStore or str
        Where releases are.
    release_id : str or None
        Which one; None for the current.
    data : str
        `sim`, a .npy or .npz file of stamps, or a folder of alert packets.
    out : Path
        Folder for `metrics.json` and `report.html`; made if absent.
    survey : str, optional
        Profile of a folder's alerts; absent: told from the packets.
    simulated_stamps : int
        How many for `sim`; they come from another seed than any recipe's.
    progress : bool
        Show it.

    Returns
    -------
    dict
        What `metrics.json` holds.

    Raises
    ------
    ConfigError
        If release, data or output are not usable; says what to do.
    """
    store = ReleaseStore(store) if isinstance(store, str) else store
    release = store.load(release_id)
    _check_out(out)
    with reporter(show=progress) as report:
        source = open_source(
            data,
            release.card.preprocessing,
            survey=survey,
            simulated_stamps=simulated_stamps,
            seed=EVALUATION_SEED,
            report=report,
        )
        stamps = read_stamps(source, max_stamps=MAX_STUDIED, min_stamps=2, seed=1, report=report)
        study = _study(release, stamps)
    metrics = {"release": release.id, "data": stamps.snapshot} | measure(study)
    if stamps.snapshot["sha256"] == release.card.data.get("sha256"):
        metrics["warning"] = "these are the stamps that the release was trained on"
    write_report(out, study, metrics, title=f"Release {release.id} on {stamps.snapshot['name']}")
    return metrics


def _check_out(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--out {out} cannot be made a folder: {error.strerror}.", remedy="Name another.") from error


def _study(release: Release, stamps: StampSet) -> Study:
    encoder, scorer, decoder = Encoder(release, threads=2), Scorer(release), Reconstructor(release)
    parts = [encoder.run(stamps.stamps[i : i + 2048]) for i in range(0, len(stamps.stamps), 2048)]
    z_mean = np.concatenate([part.z_mean for part in parts])
    z_log_var = np.concatenate([part.z_log_var for part in parts])
    scores = [scorer.score(part).real_score for part in parts]
    return study_of(
        stamps.stamps,
        stamps.labels,
        z_mean,
        z_log_var,
        np.concatenate(scores),
        decode=lambda codes: _decode(decoder, codes),
        variance=_variance(release),
        reference=release.folder / REFERENCE,
    )


def _decode(decoder: Reconstructor, codes: Array) -> Array:
    return np.concatenate([decoder.reconstruct(codes[i : i + 2048]) for i in range(0, len(codes), 2048)])


def _variance(release: Release) -> float:
    try:
        return float(release.card.metrics["reconstruction"]["decoder_variance"])
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"The card of {release.id} does not say the decoder's variance.",
            remedy="Evaluate a release that `stream-vae train` made.",
        ) from error
