"""Between two latent spaces: how well vectors of one do in the other, and a map that carries them over.

A ``mapping.npz`` holds `from_space` and `to_space`; `matrix` (old size, new size) and `offset` (new size,), so that
``old @ matrix + offset`` lies in the new space; `back_matrix` and `back_offset` for the way back; and, measured on
stamps that the map was not fitted on, `recall_mapped` and `recall_new`: what old vectors so mapped, and new ones, find
of the nearest stamps among new vectors.

References
----------
Schoenemann 1966 (orthogonal Procrustes problem, for the residuals); Shen et al. 2020 (queries against an old gallery).
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stream_vae.errors import ConfigError
from stream_vae.learning.compare import NEIGHBOURS, align, nearest, recall, residual

Array = NDArray[np.float32]

MAPPING = "mapping.npz"
_RIDGE = 1e-3


@dataclass(frozen=True)
class Retrieval:
    """How well new codes find what is alike in pixels among old codes."""

    stamps: int
    old_against_old: float
    """Share of the nearest stamps in pixels that are found among the nearest codes."""
    new_against_old: float
    lost: float
    """Share of the first that the second lacks; below zero where new codes find more."""
    residual: float | None
    """Squared distance of new codes from the old ones of the same stamps, in units of the old codes' variance."""
    turned_residual: float | None
    """The same after the best rotation."""


def retrieval(stamps: Array, old: Array, new: Array) -> Retrieval:
    """Measure how well new codes do among old ones.

    Parameters
    ----------
    stamps : ndarray, shape (n, size, size, channels)
        Scaled.
    old, new : ndarray, shape (n, old size) and (n, new size)
        Their codes.

    Returns
    -------
    Retrieval
        Where sizes differ all is lost.
    """
    pixels = stamps.reshape(len(stamps), -1)
    neighbours = min(NEIGHBOURS, len(stamps) - 2)
    truth = nearest(pixels, pixels, neighbours)
    own = recall(nearest(old, old, neighbours), truth)
    if old.shape != new.shape:
        return Retrieval(len(stamps), own, 0.0, 1.0, None, None)
    across = recall(nearest(new, old, neighbours), truth)
    lost = 1.0 - across / own if own > 0 else 1.0
    return Retrieval(len(stamps), own, across, lost, residual(new, old), residual(align(new, old), old))


def fit_mapping(codes: Array, target: Array) -> tuple[Array, Array]:
    """Fit the affine map that brings codes to others of the same stamps.

    Parameters
    ----------
    codes : ndarray, shape (n, size)
        From.
    target : ndarray, shape (n, other size)
        To.

    Returns
    -------
    matrix : ndarray, shape (size, other size)
        Not orthogonal: spaces differ in more than their axes.
    offset : ndarray, shape (other size,)
        Added after it.
    """
    center, goal = codes.mean(axis=0, dtype=np.float64), target.mean(axis=0, dtype=np.float64)
    x, y = codes - center, target - goal
    gram = x.T @ x
    matrix = np.linalg.solve(gram + _RIDGE * np.trace(gram) / len(gram) * np.eye(len(gram)), x.T @ y)
    return matrix.astype(np.float32), (goal - center @ matrix).astype(np.float32)


def carried(codes: Array, matrix: Array, offset: Array) -> Array:
    """Carry vectors over to another space.

    Parameters
    ----------
    codes : ndarray, shape (n, size)
        Vectors of the one.
    matrix, offset : ndarray
        From `fit_mapping` or a ``mapping.npz``.

    Returns
    -------
    ndarray, shape (n, other size)
        In the other.
    """
    moved: Array = codes @ matrix + offset
    return moved


def write_mapping(path: Path, stamps: Array, old: Array, new: Array, *, spaces: tuple[str, str]) -> None:
    """Write how vectors of an old space are carried over to a new one, and back.

    Parameters
    ----------
    path : Path
        The .npz.
    stamps : ndarray, shape (n, size, size, channels)
        Scaled; half of them measure the map that the other half gives.
    old, new : ndarray, shape (n, old size) and (n, new size)
        Their codes.
    spaces : tuple of str
        Names of the old and the new space.

    Raises
    ------
    ConfigError
        If the file cannot be written.
    """
    half = len(stamps) // 2
    trial = carried(old[half:], *fit_mapping(old[:half], new[:half]))
    found = retrieval(stamps[half:], new[half:], trial)
    matrix, offset = fit_mapping(old, new)
    back_matrix, back_offset = fit_mapping(new, old)
    try:
        with path.open("wb") as file:
            np.savez(
                file,
                from_space=np.array(spaces[0]),
                to_space=np.array(spaces[1]),
                matrix=matrix,
                offset=offset,
                back_matrix=back_matrix,
                back_offset=back_offset,
                recall_mapped=np.float32(found.new_against_old),
                recall_new=np.float32(found.old_against_old),
            )
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}.", remedy="Name another file.") from error
