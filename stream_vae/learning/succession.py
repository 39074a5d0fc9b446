"""From release to release: may their codes be compared, and is the next one as good?

A latent space is what its first release made it. Every later one of the same space is measured against the one before
it, on held-out stamps, and against the first, on the anchor stamps that it left (`space_stamps` and `space_z_mean` of
``reference.npz``, handed on from release to release): many small steps are not to add up to a large one. If new codes
find their nearest neighbours among old codes as well as old codes do, the space stays. If not, it gets a new name, and
the release a ``mapping.npz`` by which old vectors can be carried over.

References
----------
Shen et al. 2020 (new queries against an old gallery, section 3.2); Schoenemann 1966 (orthogonal Procrustes problem).
"""

import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream_vae.errors import ConfigError
from stream_vae.learning.compare import NEIGHBOURS, align, look, nearest, recall, residual
from stream_vae.learning.gates import FrozenSet, Verdict, judge
from stream_vae.model.release import REFERENCE, Release
from stream_vae.model.store import ReleaseStore

log = logging.getLogger(__name__)

Array = NDArray[np.float32]
Encode = Callable[[Array], Array]
"""Stamps to posterior means."""

MAPPING = "mapping.npz"
MOST_LOST = 0.02
"""Share of the neighbours that may be lost in the comparison: what a space may give way before it is another one."""
MOST_STAMPS = 2000
"""All pairs of distances are held at once."""
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


@dataclass(frozen=True)
class Continuity:
    """Whether a release's codes may be compared with those before."""

    same: bool
    reason: str
    before: Retrieval
    """Against the release before."""
    first: Retrieval | None
    """Against the first release of the space; None where the one before does not know it."""

    def document(self) -> dict[str, Any]:
        """Give plain values, for a release's card.

        Returns
        -------
        dict
            By name.
        """
        return asdict(self)


@dataclass(frozen=True)
class Succession:
    """What a challenger is measured against.

    Parameters
    ----------
    incumbent : Release
        Verified.
    sets : tuple of FrozenSet
        What both are judged on.
    """

    incumbent: Release
    sets: tuple[FrozenSet, ...]
    first: Release | None = None
    """Of the incumbent's latent space, where it is still in the store."""

    @property
    def natural(self) -> Array:
        """Held-out stamps of the survey, at most `MOST_STAMPS`."""
        stamps = np.concatenate([each.stamps for each in self.sets if each.natural])
        return stamps[np.random.default_rng(1).permutation(len(stamps))[:MOST_STAMPS]]

    def continuity(self, encode: Encode) -> Continuity:
        """Measure whether the space stays.

        Parameters
        ----------
        encode : callable
            The challenger's.

        Returns
        -------
        Continuity
            Against the incumbent and against the first of its space.
        """
        stamps = self.natural
        before = retrieval(stamps, look(self.incumbent, stamps).z_mean, encode(stamps))
        space = space_of(self.incumbent)
        first = None if space is None else retrieval(space[0], space[1], encode(space[0]))
        worst = max(each.lost for each in (before, first) if each is not None)
        same = worst <= MOST_LOST
        reason = f"{100 * worst:.1f}% of the neighbours lost, {'at most' if same else 'over'} {100 * MOST_LOST:.0f}%"
        return Continuity(same, reason, before, first)

    def judge(self, challenger: Release) -> Verdict:
        """Hold a challenger against the incumbent.

        Parameters
        ----------
        challenger : Release
            Its files may still lie in a folder of their own.

        Returns
        -------
        Verdict
            See `stream_vae.learning.gates`.
        """
        return judge(challenger, self.incumbent, self.sets)

    def write_mapping(self, path: Path, encode: Encode, *, space: str) -> None:
        """Write how vectors of the old space are carried over to the new one, and back.

        Parameters
        ----------
        path : Path
            The .npz: `from_space`, `to_space`; `matrix` (old size, new size) and `offset` (new size,), so that
            ``old @ matrix + offset`` is in the new space; `back_matrix` and `back_offset` for the way back;
            `recall_mapped`, `recall_new`: what old vectors so mapped, and new ones, find among new codes.
        encode : callable
            The challenger's.
        space : str
            The new space's name.
        """
        stamps = self.natural
        old, new = look(self.incumbent, stamps).z_mean, encode(stamps)
        half = len(stamps) // 2
        trial = carried(old[half:], *fit_mapping(old[:half], new[:half]))
        found = retrieval(stamps[half:], new[half:], trial)
        matrix, offset = fit_mapping(old, new)
        back_matrix, back_offset = fit_mapping(new, old)
        np.savez(
            path,
            from_space=np.array(self.incumbent.card.latent_space),
            to_space=np.array(space),
            matrix=matrix,
            offset=offset,
            back_matrix=back_matrix,
            back_offset=back_offset,
            recall_mapped=np.float32(found.new_against_old),
            recall_new=np.float32(found.old_against_old),
        )


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


def space_of(release: Release) -> tuple[Array, Array] | None:
    """Read what the first release of a space left behind.

    Parameters
    ----------
    release : Release
        Any of that space.

    Returns
    -------
    tuple or None
        Anchor stamps (n, size, size, channels) and their first codes (n, latent_size); None where an older release
        has none.
    """
    with np.load(release.folder / REFERENCE, allow_pickle=False) as file:
        for stamps, codes in (("space_stamps", "space_z_mean"), ("stamps", "stamps_z_mean")):
            if stamps in file.files and codes in file.files:
                return file[stamps].astype(np.float32), file[codes].astype(np.float32)
    return None


def first_of_space(store: ReleaseStore, release: Release) -> Release | None:
    """Find the release that a latent space began with.

    Parameters
    ----------
    store : ReleaseStore
        Where to look.
    release : Release
        Any of that space.

    Returns
    -------
    Release or None
        None if it is no longer there, or damaged.
    """
    same = [card for card in store.cards() if card.latent_space == release.card.latent_space]
    if not same:
        return None
    if same[0].id == release.id:
        return release
    try:
        return store.load(same[0].id)
    except ConfigError as error:
        log.warning("the first release of %s cannot be a teacher: %s", release.card.latent_space, error)
        return None
