"""Two releases on the same stamps: do codes, scores and reconstructions agree? numpy and ONNX Runtime only.

What is old is release A, what is new is release B. Stamps are A's own anchors (``reference.npz``) or any others;
the anchors were among those that A was trained on, so for reconstruction errors give others.

References
----------
Schoenemann 1966 (orthogonal Procrustes problem); Shen et al. 2020 (new queries against an old gallery).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream_vae.errors import ConfigError
from stream_vae.learning.data.source import open_source
from stream_vae.learning.data.stamps import read_stamps
from stream_vae.learning.encode import EVALUATION_SEED
from stream_vae.model.reconstruct import DECODER, Reconstructor
from stream_vae.model.release import REFERENCE, Preprocessing, Release
from stream_vae.stages.encode import Encoder
from stream_vae.stages.score import Scorer

Array = NDArray[np.float32]

NEIGHBOURS = 10
MOST_STAMPS = 2000
"""All pairs of distances are held at once."""
_AT_A_TIME = 2048


@dataclass(frozen=True)
class View:
    """What one release makes of stamps.

    Parameters
    ----------
    z_mean, z_log_var : ndarray, shape (n, latent_size)
        Posteriors.
    real_score : ndarray, shape (n,)
        NaN without a scorer.
    squared_error : ndarray of shape (n,), or None
        Summed over the pixels, of the stamp decoded from its posterior mean; None without a decoder.onnx.
    """

    z_mean: Array
    z_log_var: Array
    real_score: Array
    squared_error: Array | None


@dataclass(frozen=True)
class ScoreAgreement:
    """How alike two releases score."""

    pearson: float | None
    spearman: float | None
    """None where a release gives every stamp the same score."""
    mean_absolute_difference: float


@dataclass(frozen=True)
class Retrieval:
    """Share of the nearest stamps in pixels that are found among the nearest codes (recall), queries first.

    Releases whose spaces agree have ``new_against_old`` about as high as ``old_against_old``.
    """

    neighbours: int
    chance: float
    """Recall of the old codes in a wrong order: what central stamps, near to everything, give to any query."""
    old_against_old: float
    new_against_new: float
    new_against_old: float | None
    """None, as the next two, where the codes differ in length."""
    aligned_against_old: float | None
    """New queries turned by the Procrustes rotation, which is fitted on these very stamps."""
    shared: float | None
    """Share of the old codes' old neighbours that the new code of the same stamp finds too."""


@dataclass(frozen=True)
class Comparison:
    """Release B held against release A."""

    a: str
    b: str
    stamps: int
    stamps_from: str
    same_latent_space: bool
    """What the cards claim."""
    scores: ScoreAgreement | None
    """None if a release has no scorer."""
    squared_error_a: float | None
    squared_error_b: float | None
    """None without a decoder.onnx."""
    procrustes_residual: float | None
    """Share of A's variance that B's codes do not explain after the best rotation; None if lengths differ."""
    unaligned_residual: float | None
    """The same without a rotation: near 0 if codes can be compared as they are."""
    retrieval: Retrieval


def look(release: Release, stamps: Array) -> View:
    """Encode, score and reconstruct stamps.

    Parameters
    ----------
    release : Release
        Verified.
    stamps : ndarray, shape (n, size, size, channels)
        Scaled, all scoreable.

    Returns
    -------
    View
        One row a stamp.

    Raises
    ------
    ConfigError
        If the release's graphs do not fit the stamps.
    """
    encoder, scorer = Encoder(release), Scorer(release)
    decoder = Reconstructor(release) if release.path(DECODER) else None
    z_mean, z_log_var, real_score, error = [], [], [], []
    for start in range(0, len(stamps), _AT_A_TIME):
        some = np.ascontiguousarray(stamps[start : start + _AT_A_TIME])
        codes = encoder.run(some)
        z_mean.append(codes.z_mean)
        z_log_var.append(codes.z_log_var)
        real_score.append(scorer.score(codes).real_score)
        if decoder is not None:
            error.append(np.square(decoder.reconstruct(codes.z_mean) - some).sum(axis=(1, 2, 3)))
    squared_error = np.concatenate(error) if error else None
    return View(np.concatenate(z_mean), np.concatenate(z_log_var), np.concatenate(real_score), squared_error)


def compare(a: Release, b: Release, *, data: str | None = None, survey: str | None = None) -> Comparison:
    """Compare two releases on stamps that both can take.

    Parameters
    ----------
    a, b : Release
        The old one and the new one, verified.
    data : str, optional
        `sim`, a .npy or .npz file of stamps, or a folder of alert packets; absent: A's anchor stamps.
    survey : str, optional
        Profile of a folder's alerts; absent: told from the packets.

    Returns
    -------
    Comparison
        B against A.

    Raises
    ------
    ConfigError
        If they prepare stamps differently, or there are too few stamps.
    """
    stamps, origin = common_stamps(a, b, data, survey)
    old, new = look(a, stamps), look(b, stamps)
    same_length = old.z_mean.shape == new.z_mean.shape
    turned = align(new.z_mean, old.z_mean) if same_length else None
    return Comparison(
        a=a.id,
        b=b.id,
        stamps=len(stamps),
        stamps_from=origin,
        same_latent_space=a.card.latent_space == b.card.latent_space,
        scores=_score_agreement(old.real_score, new.real_score),
        squared_error_a=_mean(old.squared_error),
        squared_error_b=_mean(new.squared_error),
        procrustes_residual=residual(turned, old.z_mean) if turned is not None else None,
        unaligned_residual=residual(new.z_mean, old.z_mean) if same_length else None,
        retrieval=_retrieval(stamps, old.z_mean, new.z_mean, turned),
    )


def common_stamps(a: Release, b: Release, data: str | None = None, survey: str | None = None) -> tuple[Array, str]:
    """Read stamps that two releases can take.

    Parameters
    ----------
    a, b : Release
        Verified.
    data, survey : str, optional
        As for `compare`.

    Returns
    -------
    stamps : ndarray, shape (n, size, size, channels)
        Scaled, at most `MOST_STAMPS`.
    origin : str
        What to call them.

    Raises
    ------
    ConfigError
        If they prepare stamps differently, or there are too few stamps.
    """
    wanted = a.card.preprocessing
    if wanted != b.card.preprocessing:
        raise ConfigError(
            f"{a.id} and {b.id} prepare stamps differently ({wanted} and {b.card.preprocessing}), so there are none "
            "that both can take.",
            remedy="Compare releases of the same cutouts, size and scaling.",
        )
    if data is None:
        stamps, origin = _anchors(a, wanted), f"anchors of {a.id}"
    else:
        source = open_source(data, wanted, survey=survey, simulated_stamps=MOST_STAMPS, seed=EVALUATION_SEED)
        stamps, origin = read_stamps(source, max_stamps=MOST_STAMPS, min_stamps=1, seed=1).stamps, source.name
    if len(stamps) <= NEIGHBOURS + 1:
        raise ConfigError(
            f"{len(stamps)} stamps are too few to compare {NEIGHBOURS} neighbours.", remedy="Give more with --data."
        )
    return stamps, origin


def _anchors(release: Release, preprocessing: Preprocessing) -> Array:
    with np.load(release.folder / REFERENCE, allow_pickle=False) as file:
        if "stamps" not in file.files:
            raise ConfigError(f"{release.id} has no anchor stamps.", remedy="Name stamps with --data.")
        stamps: Array = file["stamps"].astype(np.float32)
    size, channels = preprocessing.stamp_size, len(preprocessing.cutouts)
    if stamps.shape[1:] != (size, size, channels):
        raise ConfigError(f"The anchor stamps of {release.id} do not fit its card.", remedy="Name stamps with --data.")
    return stamps


def _mean(values: Array | None) -> float | None:
    return None if values is None else float(values.mean())


def _score_agreement(old: Array, new: Array) -> ScoreAgreement | None:
    if not (np.isfinite(old).all() and np.isfinite(new).all()):
        return None
    return ScoreAgreement(
        _correlation(old, new), _correlation(_midranks(old), _midranks(new)), float(np.abs(old - new).mean())
    )


def _correlation(x: NDArray[Any], y: NDArray[Any]) -> float | None:
    """Pearson's; None where one of them is constant."""
    x, y = x - x.mean(dtype=np.float64), y - y.mean(dtype=np.float64)
    spread = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / spread if spread > 0 else None


def _midranks(values: NDArray[Any]) -> NDArray[np.float64]:
    """Ranks from 1; equal values share the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks: NDArray[np.float64] = (np.cumsum(counts) - 0.5 * (counts - 1))[inverse]
    return ranks


def align(codes: Array, target: Array) -> Array:
    """Turn (and mirror, if that is better) codes onto others: the orthogonal Procrustes problem.

    Parameters
    ----------
    codes, target : ndarray, shape (n, latent_size)
        Codes of the same stamps.

    Returns
    -------
    ndarray, shape (n, latent_size)
        `codes`, turned about their centre and moved to that of `target`; never stretched.
    """
    center, goal = codes.mean(axis=0), target.mean(axis=0)
    left, _, right = np.linalg.svd((codes - center).astype(np.float64).T @ (target - goal))
    turned: Array = ((codes - center) @ (left @ right) + goal).astype(np.float32)
    return turned


def residual(codes: Array, target: Array) -> float | None:
    """How far codes are from others of the same stamps, in units of the others' variance.

    Parameters
    ----------
    codes, target : ndarray, shape (n, latent_size)
        Codes of the same stamps.

    Returns
    -------
    float or None
        0 if equal; None if `target` is constant.
    """
    variance = float(np.square(target - target.mean(axis=0), dtype=np.float64).sum())
    distance = float(np.square(codes - target, dtype=np.float64).sum())
    return distance / variance if variance > 0 else None


def nearest(queries: NDArray[Any], gallery: NDArray[Any], count: int) -> NDArray[np.int64]:
    """Find the nearest others of each row.

    Parameters
    ----------
    queries, gallery : ndarray, shape (n, length)
        Of the same n stamps; row i never finds row i.
    count : int
        How many.

    Returns
    -------
    ndarray of int, shape (n, count)
        Rows of the gallery, in no order.
    """
    queries, gallery = queries.astype(np.float64), gallery.astype(np.float64)
    distance = np.square(gallery).sum(axis=1) - 2.0 * queries @ gallery.T  # and a constant of each query
    np.fill_diagonal(distance, np.inf)
    return np.argpartition(distance, count - 1, axis=1)[:, :count]


def recall(found: NDArray[np.int64], wanted: NDArray[np.int64]) -> float:
    """Share of the wanted rows that were found.

    Parameters
    ----------
    found, wanted : ndarray of int, shape (n, k)
        From `nearest`.

    Returns
    -------
    float
        Between 0 and 1.
    """
    return float((found[:, :, np.newaxis] == wanted[:, np.newaxis, :]).any(axis=1).mean())


def _shuffled(count: int) -> NDArray[np.int64]:
    return np.random.default_rng(1).permutation(count)


def _retrieval(stamps: Array, old: Array, new: Array, turned: Array | None) -> Retrieval:
    pixels = stamps.reshape(len(stamps), -1)
    truth = nearest(pixels, pixels, NEIGHBOURS)
    among_old = nearest(old, old, NEIGHBOURS)
    across = nearest(new, old, NEIGHBOURS) if turned is not None else None
    return Retrieval(
        neighbours=NEIGHBOURS,
        chance=recall(nearest(old[_shuffled(len(old))], old, NEIGHBOURS), truth),
        old_against_old=recall(among_old, truth),
        new_against_new=recall(nearest(new, new, NEIGHBOURS), truth),
        new_against_old=recall(across, truth) if across is not None else None,
        aligned_against_old=recall(nearest(turned, old, NEIGHBOURS), truth) if turned is not None else None,
        shared=recall(across, among_old) if across is not None else None,
    )
