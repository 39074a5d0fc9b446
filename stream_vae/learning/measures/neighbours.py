"""Whether stamps that are near by their codes are alike in pixels: search quality and neighbourhood preservation.

References
----------
Huijse et al. 2018, figure 2a (search by example); Jarvelin & Kekalainen 2002 (discount by rank); Venna & Kaski 2001
(trustworthiness).
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream_vae.errors import ConfigError

Array = NDArray[np.floating[Any]]

CAP = 2000
"""Stamps that neighbourhoods are compared on: their distances are a square matrix."""


def dnmse_curve(
    stamps: Array, codes: Array, seeds: NDArray[np.integer[Any]], *, neighbours: int = 100
) -> NDArray[np.float64]:
    """Discounted normalised mean squared error of what a search finds, for each seed and length of list.

    With x_i the i-th nearest stamp of the seed x_s by Euclidean distance of their codes,

        NMSE_i = |x_i - x_s|^2 / |x_s|^2,   w_i = 1 / log2(i + 1),
        DNMSE(k) = sum_{i<=k} w_i NMSE_i / sum_{i<=k} w_i.

    0 if all found are the seed's twins; twice the relative energy for strangers. The paper plots a DNMSE without an
    equation that we could consult: this is our reading of its name. On real stamps it orders PCA of 21, 5 and 1
    components and random codes as six other normalisations do. Compare it within a report, never with the paper's.

    Parameters
    ----------
    stamps : ndarray, shape (n, size, size, channels)
        Scaled stamps that are searched.
    codes : ndarray, shape (n, k)
        Their codes.
    seeds : ndarray of int, shape (m,)
        Rows to search with; a seed does not find itself.
    neighbours : int
        Longest list.

    Returns
    -------
    ndarray, shape (m, neighbours)
        DNMSE(1), DNMSE(2), ... of each seed; the mean over seeds is the curve, and they can be bootstrapped.

    Raises
    ------
    ConfigError
        If there are fewer other stamps than neighbours, or codes that are not finite.

    References
    ----------
    Huijse et al. 2018, section 4 and figure 2a; Jarvelin & Kekalainen 2002, section 2.2 (the discount).
    """
    flat = _flat(stamps, codes, neighbours)
    found = _nearest(codes, np.asarray(seeds), neighbours)
    error = np.empty(found.shape)
    for row, seed in enumerate(seeds):
        error[row] = np.square(flat[found[row]] - flat[seed]).sum(axis=1) / max(np.square(flat[seed]).sum(), 1e-12)
    weight = 1.0 / np.log2(np.arange(neighbours) + 2.0)
    return np.asarray(np.cumsum(error * weight, axis=1) / np.cumsum(weight), np.float64)


def trustworthiness(stamps: Array, codes: Array, *, neighbours: int = 10, cap: int = CAP, seed: int = 1) -> float:
    """How little strangers in pixels become neighbours in codes.

    Parameters
    ----------
    stamps : ndarray, shape (n, size, size, channels)
        Scaled.
    codes : ndarray, shape (n, k)
        Their codes.
    neighbours : int
        Size of a neighbourhood, below half the number of stamps.
    cap : int
        More stamps than these are thinned at random.
    seed : int
        Of the thinning.

    Returns
    -------
    float
        1 if every neighbour in codes is one in pixels.

    Raises
    ------
    ConfigError
        If there are too few stamps for neighbourhoods of that size, or codes that are not finite.

    References
    ----------
    Venna & Kaski 2001, equation 1, as scikit-learn computes it.
    """
    from sklearn import manifold

    flat = _flat(stamps, codes, 2 * neighbours)
    rows = _thinned(len(flat), cap, seed)
    return float(manifold.trustworthiness(flat[rows], codes[rows], n_neighbors=neighbours))


def knn_recall(
    stamps: Array, codes: Array, *, neighbours: int = 10, cap: int = CAP, seed: int = 1
) -> NDArray[np.float64]:
    """Share of each stamp's neighbours in pixels that are its neighbours in codes.

    Parameters
    ----------
    stamps : ndarray, shape (n, size, size, channels)
        Scaled.
    codes : ndarray, shape (n, k)
        Their codes.
    neighbours : int
        Size of a neighbourhood.
    cap : int
        More stamps than these are thinned at random, before neighbours are looked for.
    seed : int
        Of the thinning.

    Returns
    -------
    ndarray, shape (min(n, cap),)
        One share a stamp; their mean is the recall.

    Raises
    ------
    ConfigError
        If there are no more stamps than neighbours, or codes that are not finite.
    """
    flat = _flat(stamps, codes, neighbours)
    rows = _thinned(len(flat), cap, seed)
    every = np.arange(len(rows))
    near, wanted = _nearest(codes[rows], every, neighbours), _nearest(flat[rows], every, neighbours)
    shares = [np.isin(a, b, assume_unique=True).mean() for a, b in zip(near, wanted, strict=True)]
    return np.asarray(shares, np.float64)


def _flat(stamps: Array, codes: Array, neighbours: int) -> Array:
    if len(stamps) != len(codes):
        raise ConfigError(f"{len(stamps)} stamps have {len(codes)} codes.", remedy="Encode the same stamps.")
    if not np.isfinite(codes).all():
        raise ConfigError("Some codes are not finite.", remedy="Leave out the stamps that cannot be scored.")
    if len(codes) <= neighbours:
        raise ConfigError(
            f"{len(codes)} stamps are too few to look for {neighbours} neighbours.",
            remedy="Give more stamps, or ask for fewer neighbours.",
        )
    return stamps.reshape(len(stamps), -1)


def _thinned(count: int, cap: int, seed: int) -> NDArray[np.int64]:
    return np.sort(np.random.default_rng(seed).permutation(count)[:cap])


def _nearest(points: Array, rows: NDArray[np.integer[Any]], count: int) -> NDArray[np.int64]:
    """Rows of the nearest points, nearest first, without the point itself."""
    from sklearn.neighbors import NearestNeighbors

    # Brute force: in twenty and more dimensions a tree only costs. One more than asked for, as the point itself is
    # among them; where others coincide with it, it need not come first.
    found = (
        NearestNeighbors(n_neighbors=count + 1, algorithm="brute")
        .fit(points)
        .kneighbors(points[rows], return_distance=False)
    )
    others = found != np.asarray(rows)[:, np.newaxis]
    others[others.all(axis=1), -1] = False
    return np.asarray(found[others].reshape(len(rows), count), np.int64)
