"""Find the candidates most like some that one has: nearest neighbours in latent space, in bounded memory.

The distance is the 2-Wasserstein one between the posteriors q(z|x), Gaussians of independent units:

    d^2 = |m1 - m2|^2 + |s1 - s2|^2

with means m and standard deviations s. So it is the Euclidean distance of both together: zero for equal codes only,
symmetric, in latent units. It was chosen by measurement on the LCO stamps, trained on one image and searched on the
other, both ways, with the CVAE at a KL weight of 0.3 (posteriors much narrower than the codes are spread) and at 1
(as wide as the spread). DNMSE(100) over 315 seeds is in brackets, for weight 0.3 and 1, each on image 2 / image 1:

- Euclidean on the means: [.416 / .418, .471 / .517].
- **Wasserstein**: [.416 / .418, .471 / .514]: 0.0035 +- 0.0003 better once, else equal within the noise.
- Expected squared distance, |m1 - m2|^2 + tr S1 + tr S2: [.416 / .418, .598 / .614]. With wide posteriors it ranks by
  certainty instead of likeness, and 75% of the first 100 are real where 93% were.
- Bhattacharyya, symmetric Kullback-Leibler, Mahalanobis with S1 + S2: [.415 / .419, .500 / .570]. They stretch the
  units of which the model is surest, and stamps differ most in others.
- Mahalanobis with S1 + S2 + 1: [.416 / .418, .463 / .529]: better once, worse once.

So the variance helps a little at most. What would help more is a better code: pixels .356 / .364, PCA-21 .436 / .435.

References
----------
Huijse et al. 2018, section 4 (the search and its DNMSE); Givens & Shortt 1984, proposition 7 (the distance).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream_vae.alert import Codes
from stream_vae.errors import ConfigError
from stream_vae.learning.data.alerts import stamps_from_alerts
from stream_vae.learning.data.source import open_source
from stream_vae.learning.data.stampfile import stamps_from_file
from stream_vae.learning.data.stamps import StampSource
from stream_vae.learning.encode import EVALUATION_SEED
from stream_vae.learning.progress import Reporter, reporter
from stream_vae.model.release import Release
from stream_vae.model.store import ReleaseStore
from stream_vae.quality import describe
from stream_vae.stages.encode import Encoder
from stream_vae.stages.score import Scorer
from stream_vae.stages.stamp import Stamps

Array = NDArray[np.float32]
Rows = NDArray[np.int64]

MOST_SEEDS = 2000
"""A chunk of candidates against so many seeds is a matrix of 33 MB."""


@dataclass(frozen=True)
class Found:
    """Some stamps with what a release says of them, one row each.

    Parameters
    ----------
    row : ndarray of int, shape (n,)
        Which stamp of its source.
    stamps : ndarray, shape (n, size, size, channels)
        Scaled.
    z_mean, z_log_var : ndarray, shape (n, latent_size)
        Their codes.
    real_score, real_score_std : ndarray, shape (n,)
        NaN where the release has no scorer.
    label : ndarray of int8, shape (n,)
        1 real, 0 bogus, -1 unknown.
    distance : ndarray, shape (n,)
        To the nearest seed; 0 for seeds.
    seed : ndarray of int, shape (n,)
        Which seed that is.
    about : tuple of dict
        What the source says of each: ids, a file's name.
    """

    row: Rows
    stamps: Array
    z_mean: Array
    z_log_var: Array
    real_score: Array
    real_score_std: Array
    label: NDArray[np.int8]
    distance: Array
    seed: Rows
    about: tuple[dict[str, str], ...] = ()

    def __len__(self) -> int:
        return len(self.row)

    def take(self, rows: Any) -> "Found":
        """Keep some rows, in the order given.

        Parameters
        ----------
        rows : ndarray
            Indices or flags.

        Returns
        -------
        Found
            Without `about`.
        """
        return replace(self, **{name: getattr(self, name)[rows] for name in _COLUMNS}, about=())


_COLUMNS = tuple(name for name in Found.__dataclass_fields__ if name != "about")


@dataclass(frozen=True)
class Answer:
    """What a search found.

    Parameters
    ----------
    release : str
        Whose latent space it was.
    seeds, neighbours : Found
        What was searched with, and the nearest first.
    searched : int
        How many stamps were compared.
    unscoreable : int
        How many could not be.
    identical : int
        How many were left out because they are a seed, pixel by pixel.
    """

    release: str
    seeds: Found
    neighbours: Found
    searched: int
    unscoreable: int
    identical: int


def find_similar(
    store: ReleaseStore | str,
    release_id: str | None,
    to: Sequence[str],
    data: str,
    *,
    top: int = 20,
    survey: str | None = None,
    simulated_stamps: int = 4000,
    progress: bool = True,
) -> Answer:
    """Find the stamps most like some others.

    Parameters
    ----------
    store : ReleaseStore or str
        Where releases are.
    release_id : str or None
        Which one; None for the current.
    to : sequence of str
        Alert packets, folders of them, .npy or .npz files; rows of a file as ``stamps.npz:3`` or ``stamps.npz:3,7-9``.
    data : str
        Where to search: `sim`, a .npy or .npz file of stamps, or a folder of alert packets.
    top : int
        How many to find.
    survey : str, optional
        Profile of alerts; absent: told from the packets.
    simulated_stamps : int
        How many for `sim`.
    progress : bool
        Show it.

    Returns
    -------
    Answer
        Seeds and neighbours; memory does not grow with the data.

    Raises
    ------
    ConfigError
        If release, seeds or data are not usable; says what to do.
    """
    store = ReleaseStore(store) if isinstance(store, str) else store
    release = store.load(release_id)
    look = _Look(release)
    seeds = _join([_seeds(look, text, release, survey) for text in to])
    if len(seeds) > MOST_SEEDS:
        raise ConfigError(
            f"--to names {len(seeds):,} stamps; at most {MOST_SEEDS:,} can be searched with.",
            remedy="Choose some of them by row: `--to stamps.npz:0-99`.",
        )
    with reporter(show=progress) as report:
        source = open_source(
            data,
            release.card.preprocessing,
            survey=survey,
            simulated_stamps=simulated_stamps,
            seed=EVALUATION_SEED,
            report=report,
        )
        best, searched, identical = _nearest(look, source, seeds, top, report)
    if not searched:
        raise ConfigError(
            f"None of the {source.count} stamps of {source.name} can be scored.",
            remedy="Give stamps with finite pixels that are not all alike.",
        )
    if not len(best):
        raise ConfigError(
            f"All {searched:,} stamps of {source.name} that can be scored are searched with themselves.",
            remedy="Search with some of them (`--to stamps.npz:0-9`), or in other --data.",
        )
    return Answer(release.id, seeds, _described(best, source), searched, source.count - searched, identical)


def wasserstein(codes: Codes, others: Codes) -> tuple[Array, Rows]:
    """Distance to the nearest of some other posteriors.

    Parameters
    ----------
    codes : Codes
        (n, latent size) each.
    others : Codes
        (m, latent size) each, m > 0.

    Returns
    -------
    distance : ndarray, shape (n,)
        2-Wasserstein, in latent units.
    which : ndarray of int, shape (n,)
        The nearest one.
    """
    a, b = (np.concatenate([c.z_mean, np.exp(0.5 * c.z_log_var)], axis=1).astype(np.float64) for c in (codes, others))
    squared = np.square(a).sum(axis=1)[:, np.newaxis] + np.square(b).sum(axis=1) - 2.0 * a @ b.T
    which = squared.argmin(axis=1)
    # The difference itself, for the one that counts: the expansion above loses what is small.
    return np.linalg.norm(a - b[which], axis=1).astype(np.float32), which


class _Look:
    """Stamps to codes and scores."""

    def __init__(self, release: Release) -> None:
        self._encoder, self._scorer = Encoder(release), Scorer(release)

    def chunks(self, source: StampSource) -> Iterator[tuple[Found, NDArray[np.uint32]]]:
        """Look at a source in pieces: the scoreable rows, and the quality of all."""
        at = 0
        for chunk in source.chunks():
            codes = self._encoder.encode(Stamps(chunk.stamps, chunk.quality))[0]
            scores = self._scorer.score(codes)
            known = np.flatnonzero(np.isfinite(codes.z_mean[:, 0]))
            yield (
                Found(
                    row=at + known,
                    stamps=chunk.stamps[known],
                    z_mean=codes.z_mean[known],
                    z_log_var=codes.z_log_var[known],
                    real_score=scores.real_score[known],
                    real_score_std=scores.real_score_std[known],
                    label=chunk.labels[known],
                    distance=np.zeros(len(known), np.float32),
                    seed=np.zeros(len(known), np.int64),
                ),
                chunk.quality,
            )
            at += len(chunk.stamps)


def _nearest(look: _Look, source: StampSource, seeds: Found, top: int, report: Reporter) -> tuple[Found, int, int]:
    """Nearest candidates, how many were compared, and how many of them were seeds."""
    codes = Codes(seeds.z_mean, seeds.z_log_var)
    known = {stamp.tobytes() for stamp in seeds.stamps}
    best, searched, identical, done = seeds.take(slice(0, 0)), 0, 0, 0
    for found, quality in look.chunks(source):
        distance, seed = wasserstein(Codes(found.z_mean, found.z_log_var), codes)
        # A seed is as near as nothing else can be, so only what is near enough to be kept needs the closer look.
        bound = best.distance[-1] if len(best) == top else np.inf
        kept = np.flatnonzero(distance < bound)
        twins = np.array([found.stamps[row].tobytes() in known for row in kept], np.bool_)
        identical += int(twins.sum())
        kept = kept[~twins]
        some = replace(found.take(kept), distance=distance[kept], seed=seed[kept])
        best = _join([best, some])
        best = best.take(np.lexsort((best.row, best.distance))[:top])
        searched += len(found)
        done += len(quality)
        report("search", done, source.count)
    return best, searched, identical


def _seeds(look: _Look, text: str, release: Release, survey: str | None) -> Found:
    path, rows = _parse(text)
    if path.suffix in (".npy", ".npz") and path.is_file():
        source = stamps_from_file(path, release.card.preprocessing)
    else:
        source = stamps_from_alerts(path, survey, release.card.preprocessing)
    beyond = [] if rows is None else [row for row in rows if row >= source.count]
    if beyond:
        raise ConfigError(
            f"--to {text}: there is no row {beyond[0]} in {source.count} stamps.",
            remedy=f"Rows count from 0 to {source.count - 1}.",
        )
    wanted = np.ones(source.count, np.bool_) if rows is None else np.isin(np.arange(source.count), rows)
    if wanted.sum() > MOST_SEEDS:
        raise ConfigError(
            f"--to {text} names {int(wanted.sum()):,} stamps; at most {MOST_SEEDS:,} can be searched with.",
            remedy="Choose some of them by row: `--to stamps.npz:0-99`.",
        )
    parts, quality = [], []
    for found, flags in look.chunks(source):
        parts.append(found.take(wanted[found.row]))
        quality.append(flags)
    seeds = _join(parts)
    lost = np.setdiff1d(np.flatnonzero(wanted), seeds.row)
    if len(lost):
        why = ", ".join(describe(int(np.concatenate(quality)[lost[0]]))) or "its code is not finite"
        raise ConfigError(
            f"--to {text}: stamp {lost[0]} cannot be scored ({why}).",
            remedy="Search with stamps that have finite pixels which are not all alike.",
        )
    return _described(seeds, source)


def _parse(text: str) -> tuple[Path, list[int] | None]:
    """A path, and the rows behind its colon."""
    path = Path(text)
    if path.exists():
        return path, None
    name, colon, rows = text.rpartition(":")
    if not colon or not Path(name).exists():
        raise ConfigError(
            f"--to {text}: there is no such file or folder.",
            remedy="Give an alert packet, a folder of them, or a .npy or .npz file, with rows behind a colon.",
        )
    chosen: list[int] = []
    try:
        for part in rows.split(","):
            first, _, last = part.partition("-")
            chosen += range(int(first), int(last or first) + 1)
    except ValueError:
        chosen = []
    if not chosen:
        raise ConfigError(f"--to {text}: {rows!r} are no rows.", remedy="Such as `:3` or `:3,7-9`, counted from 0.")
    return Path(name), chosen


def _join(parts: Sequence[Found]) -> Found:
    columns = {name: np.concatenate([getattr(part, name) for part in parts]) for name in _COLUMNS}
    return replace(parts[0], **columns, about=tuple(each for part in parts for each in part.about))


def _described(found: Found, source: StampSource) -> Found:
    about = tuple(source.describe(int(row)) if source.describe else {} for row in found.row)
    return replace(found, about=about)
