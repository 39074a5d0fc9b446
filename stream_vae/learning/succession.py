"""From release to release: whether their codes may be compared, and whether the next one is as good.

A latent space is what its first release made it. Every later one of the same space is measured against the one before
it, on held-out stamps, and against the first, on the anchor stamps that it left (`space_stamps` and `space_z_mean` of
``reference.npz``, handed on from release to release): many small steps are not to add up to a large one. If new codes
find their nearest neighbours among old codes as well as old codes do, the space stays. If not, it gets a new name, and
the release a ``mapping.npz`` by which old vectors can be carried over.

References
----------
Shen et al. 2020 (new queries against an old gallery, section 3.2).
"""

import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream_vae.errors import ConfigError
from stream_vae.learning.compare import look
from stream_vae.learning.gates import FrozenSet, Verdict, judge
from stream_vae.learning.mapping import Retrieval, retrieval, write_mapping
from stream_vae.model.release import REFERENCE, Release
from stream_vae.model.store import ReleaseStore

log = logging.getLogger(__name__)

Array = NDArray[np.float32]
Encode = Callable[[Array], Array]
"""Stamps to posterior means."""

MOST_LOST = 0.02
"""Share of the neighbours that may be lost in the comparison: what a space may give way before it is another one."""
MOST_STAMPS = 2000
"""All pairs of distances are held at once."""


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
        # The largest alone: the others are parts of it, and a stamp that is there twice would be its own neighbour.
        stamps = max((each.stamps for each in self.sets if each.natural), key=len)
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
            The .npz, see `stream_vae.learning.mapping`.
        encode : callable
            The challenger's.
        space : str
            The new space's name.
        """
        stamps = self.natural
        old = look(self.incumbent, stamps).z_mean
        write_mapping(path, stamps, old, encode(stamps), spaces=(self.incumbent.card.latent_space, space))


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
