"""Is the stream still what a release was trained on? Histograms of a window against its reference.

A `Tally` counts alerts into the deciles of the release's own reference, a `Counts` is what it has counted (of several
workers, they add up), and `drift` compares. Two figures for each distribution:

- the population stability index, sum of (a - e) ln(a / e) over bins with shares a of the window and e of the
  reference. Of n and m independent draws from one distribution it is not 0 but (bins - 1) (1/n + 1/m) on average;
  that is subtracted.
- the Kolmogorov-Smirnov distance *between the bins' edges*, so a lower bound of the real one.

Alerts are no independent draws: those of one image share its seeing. What a normal night gives is measured
(`training/drift_false_alarms.py`), and the limits are set by it.

References
----------
Yurdakul & Naranjo 2020, Statistical properties of the population stability index (its bias and its distribution).
Burda, Grosse & Salakhutdinov 2016, Importance weighted autoencoders, section 5 (units that are active).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from stream_vae.alert import FloatArray
from stream_vae.errors import ConfigError
from stream_vae.model.reconstruct import DECODER, Reconstructor
from stream_vae.model.release import REFERENCE, Release
from stream_vae.quality import UNSCOREABLE, Quality

FigureName = Literal["latent", "latent_mean", "real_score", "squared_error", "masked", "unscoreable"]
FIGURES: tuple[FigureName, ...] = get_args(FigureName)
ALL, OTHER = "all", "other"
"""Names that stand beside the survey's bands: the whole window, and the bands that nobody told us of."""
BINS = 10
LEAST_REFERENCE = 200
"""Of a band in the reference, before the band is compared with itself; and of reconstructions, before they count."""
_MOST_BANDS = 16
_PART_OF_LIMIT: dict[FigureName, float] = {
    "latent": 1.0,
    "latent_mean": 0.3,
    "real_score": 1.0,
    "squared_error": 0.4,
    "masked": 0.25,
    "unscoreable": 0.25,
}
"""Of the limit, as on ordinary nights some figures vary less than the worst of all units does."""
_ACTIVE = 0.01
"""Variance of a unit's mean over the reference below which it says nothing of the stamp, whatever it does."""

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Limits:
    """When a figure is an alarm.

    Parameters
    ----------
    psi : float
        Of the population stability index, its bias subtracted, of a latent unit and of scores; a fixed part of it for
        the other figures.
    least_alerts : int
        In a window, or of a band in it, before anything is said.
    """

    psi: float = 0.4
    least_alerts: int = 1000


@dataclass(frozen=True)
class Figure:
    """How far a window lies from the reference in one respect.

    Parameters
    ----------
    name : str
        ``latent`` is the worst unit, ``latent_mean`` the mean over the units.
    band : str
        A band, ``all`` or ``other``.
    psi : float
        Population stability index, its bias subtracted; not below 0.
    ks : float
        Kolmogorov-Smirnov distance between the bins' edges: a lower bound.
    alarm : bool
        Whether it is over the limit.
    unit : int, optional
        The worst latent unit.
    """

    name: FigureName
    band: str
    psi: float
    ks: float
    alarm: bool
    unit: int | None = None


@dataclass(frozen=True)
class Counts:
    """What was counted of alerts, by band; those of several workers add up.

    Parameters
    ----------
    bands : tuple of str
        Their names, b of them.
    alerts, masked, unscoreable : ndarray, shape (b,)
        How many alerts; of these, with masked pixels, and without a code.
    latents : ndarray, shape (b, latent_size, bins)
        Of each unit's mean, in the reference's deciles.
    real_score, squared_error : ndarray, shape (b, bins)
        Of scores and of a sample's reconstructions, likewise.
    """

    bands: tuple[str, ...]
    alerts: Ints
    masked: Ints
    unscoreable: Ints
    latents: Ints
    real_score: Ints
    squared_error: Ints

    def __add__(self, other: "Counts") -> "Counts":
        """Join with what another worker counted of the same release."""
        bands = tuple(dict.fromkeys((*self.bands, *other.bands)))
        joined = {}
        for name in _ARRAYS:
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine.shape[1:] != theirs.shape[1:]:
                raise ValueError(f"counts of {name} in {theirs.shape[1:]} bins do not add to {mine.shape[1:]}")
            total = np.zeros((len(bands), *mine.shape[1:]), np.int64)
            for counts, array in ((self, mine), (other, theirs)):
                np.add.at(total, [bands.index(band) for band in counts.bands], array)
            joined[name] = total
        return Counts(bands, **joined)

    @property
    def total(self) -> int:
        """Alerts of all bands."""
        return int(self.alerts.sum())

    def to_plain(self) -> dict[str, Any]:
        """Write for another process.

        Returns
        -------
        dict
            Lists, strings and integers.
        """
        return {"bands": list(self.bands), **{name: getattr(self, name).tolist() for name in _ARRAYS}}

    @classmethod
    def from_plain(cls, document: Mapping[str, Any]) -> "Counts":
        """Read what `to_plain` wrote.

        Parameters
        ----------
        document : Mapping
            From outside: nothing in it is taken for granted.

        Returns
        -------
        Counts
            The same.

        Raises
        ------
        ValueError
            If it is none.
        """
        try:
            bands = tuple(str(band) for band in document["bands"])
            arrays = {name: np.asarray(document[name]) for name in _ARRAYS}
        except (KeyError, TypeError) as error:
            raise ValueError(f"these are no counts: {error!r}") from error
        for name, array in arrays.items():
            dimensions = {"latents": 3, "real_score": 2, "squared_error": 2}.get(name, 1)
            if (
                array.dtype.kind not in "iu"
                or array.ndim != dimensions
                or len(array) != len(bands)
                or (array < 0).any()
            ):
                raise ValueError(f"these are no counts: {name} is {array.dtype} of shape {array.shape}")
        if len(bands) > _MOST_BANDS + 1:
            raise ValueError(f"these are no counts: {len(bands)} bands")
        return cls(bands, **{name: array.astype(np.int64) for name, array in arrays.items()})


_ARRAYS = tuple(field.name for field in fields(Counts) if field.name != "bands")


@dataclass(frozen=True)
class DriftReference:
    """What a release takes for normal.

    Parameters
    ----------
    latent_edges : ndarray, shape (latent_size, bins - 1)
        Inner edges of each unit's bins; none where the release has no sample.
    score_edges, error_edges : ndarray, shape (bins - 1,)
        Of scores and squared errors, likewise.
    latents : dict of str to ndarray, shape (latent_size, bins)
        Counts of the reference: of all, and of each band that has enough.
    real_score : dict of str to ndarray, shape (bins,)
        Likewise.
    squared_error : ndarray, shape (bins,)
        Of all.
    active : ndarray of bool, shape (latent_size,)
        Units that say something.
    shares : dict of str to tuple of float
        How many of the alerts that training drew from were ``masked`` and ``unscoreable``, and of how many; a figure
        that is absent is not judged.
    """

    latent_edges: Floats
    score_edges: Floats
    error_edges: Floats
    latents: Mapping[str, Ints]
    real_score: Mapping[str, Ints]
    squared_error: Ints
    active: NDArray[np.bool_]
    shares: Mapping[str, tuple[float, float]]

    @classmethod
    def of(cls, release: Release) -> "DriftReference":
        """Read a release's.

        Parameters
        ----------
        release : Release
            Verified. One that was made without a sample is never judged; one without the squared error of its
            reconstructions has that of its anchor stamps, which it was trained on.

        Returns
        -------
        DriftReference
            Of its `reference.npz`.

        Raises
        ------
        ConfigError
            If that does not fit its latent size.
        """
        size = release.card.latent_size
        try:
            with (release.folder / REFERENCE).open("rb") as file, np.load(file, allow_pickle=False) as found:
                held = {name: found[name] for name in found.files if name in _KEYS}
        except (ValueError, OSError, BadZipFile) as error:
            raise ConfigError(f"{REFERENCE} of {release.id} cannot be read: {error}.") from error
        z_mean = held.get("z_mean", np.zeros((0, size)))
        score = held.get("real_score", np.zeros(0))
        bands = held.get("bands", np.full(len(z_mean), ""))
        if z_mean.shape[1:] != (size,) or len(score) not in (0, len(z_mean)) or len(bands) != len(z_mean):
            raise ConfigError(f"{REFERENCE} of {release.id} has a sample that does not fit {size} latents.")
        return cls.from_sample(z_mean, score, bands, _squared_error(release, held), _shares(held))

    @classmethod
    def from_sample(
        cls,
        z_mean: NDArray[np.floating[Any]],
        real_score: NDArray[np.floating[Any]],
        bands: NDArray[np.str_],
        squared_error: NDArray[np.floating[Any]],
        shares: Mapping[str, tuple[float, float]],
    ) -> "DriftReference":
        """Make one from a sample.

        Parameters
        ----------
        z_mean : ndarray, shape (m, latent_size)
            Codes.
        real_score : ndarray, shape (m,)
            Scores; NaN or none of them where the release has no scorer.
        bands : ndarray of str, shape (m,)
            Empty where unknown.
        squared_error : ndarray, shape (k,)
            Of reconstructions of other stamps.
        shares : Mapping
            As `DriftReference` has them.

        Returns
        -------
        DriftReference
            With deciles for bins.
        """
        latent_edges = _deciles(z_mean.astype(np.float64))
        scores = real_score[np.isfinite(real_score)].astype(np.float64)
        score_edges, error_edges = _deciles(scores[:, None])[0], _deciles(squared_error.astype(np.float64)[:, None])[0]
        names, sizes = np.unique(bands, return_counts=True)
        known = [str(name) for name, count in zip(names, sizes, strict=True) if name and count >= LEAST_REFERENCE]
        rows = {ALL: np.ones(len(z_mean), np.bool_)} | {name: bands == name for name in known[:_MOST_BANDS]}
        return cls(
            latent_edges,
            score_edges,
            error_edges,
            {name: _binned(z_mean[some], latent_edges) for name, some in rows.items()},
            {name: _binned(real_score[some][:, None], score_edges[None])[0] for name, some in rows.items()}
            if len(real_score)
            else {ALL: np.zeros(len(score_edges) + 1, np.int64)},
            _binned(squared_error[:, None], error_edges[None])[0],
            np.var(z_mean, axis=0) > _ACTIVE if len(z_mean) else np.zeros(z_mean.shape[1], np.bool_),
            dict(shares),
        )

    @property
    def bands(self) -> tuple[str, ...]:
        """The bands that are compared with themselves."""
        return tuple(name for name in self.latents if name != ALL)


_KEYS = {
    "z_mean",
    "real_score",
    "bands",
    "squared_error",
    "shares",
    "shares_of",
    "stamps",
    "stamps_z_mean",
}


def _squared_error(release: Release, held: Mapping[str, NDArray[Any]]) -> NDArray[np.floating[Any]]:
    """Of the held-out sample, else of the anchors, if there is something to decode with."""
    if "squared_error" in held:
        return held["squared_error"].reshape(-1)
    if "stamps" not in held or "stamps_z_mean" not in held or release.path(DECODER) is None:
        return np.zeros(0)
    return summed_square(held["stamps"].astype(np.float32), Reconstructor(release).reconstruct(held["stamps_z_mean"]))


def summed_square(stamps: FloatArray, reconstruction: FloatArray) -> FloatArray:
    """Squared error of reconstructions, as `stream_vae.learning` has it.

    Parameters
    ----------
    stamps, reconstruction : ndarray, shape (n, size, size, channels)
        Scaled stamps and what the decoder makes of their codes.

    Returns
    -------
    ndarray, shape (n,)
        Summed over pixels and channels.
    """
    left: FloatArray = (stamps - reconstruction).reshape(len(stamps), -1)
    total: FloatArray = np.einsum("ij,ij->i", left, left)
    return total


def _shares(held: Mapping[str, NDArray[Any]]) -> dict[str, tuple[float, float]]:
    if "shares" not in held or "shares_of" not in held:
        return {}
    of = float(held["shares_of"])
    pairs = zip(("masked", "unscoreable"), held["shares"].astype(float).tolist(), strict=True)
    return {name: (share * of, of) for name, share in pairs if np.isfinite(share)}


class Tally:
    """Counts alerts into a release's bins; not safe for several threads.

    Parameters
    ----------
    reference : DriftReference
        Of the release.
    bands : sequence of str
        Those of the survey; what is in none of these or of the reference's counts as `OTHER`.
    """

    def __init__(self, reference: DriftReference, bands: Sequence[str]) -> None:
        self.bands = (*list(dict.fromkeys((*reference.bands, *bands)))[:_MOST_BANDS], OTHER)
        self._index = {band: number for number, band in enumerate(self.bands)}
        self._latent_edges = np.ascontiguousarray(reference.latent_edges.T, np.float32)[:, None, :]
        self._score_edges = reference.score_edges.astype(np.float32)
        self._error_edges = reference.error_edges.astype(np.float32)
        self.clear()

    def clear(self, *, errors: bool = True) -> None:
        """Begin anew.

        Parameters
        ----------
        errors : bool
            Forget the squared errors, too, which are few.
        """
        count, units, bins = len(self.bands), self._latent_edges.shape[2], len(self._latent_edges) + 1
        self._plain = np.zeros((3, count), np.int64)
        self._latents = np.zeros(count * units * bins, np.int64)
        self._scores = np.zeros((count, len(self._score_edges) + 1), np.int64)
        if errors:
            self._errors = np.zeros((count, len(self._error_edges) + 1), np.int64)

    def numbers(self, bands: Sequence[str | None]) -> NDArray[np.intp]:
        """Number the bands of alerts.

        Parameters
        ----------
        bands : sequence of str or None
            One an alert; None where it does not say.

        Returns
        -------
        ndarray of int, shape (n,)
            For `add`.
        """
        index, other = self._index, len(self.bands) - 1
        return np.array([other if band is None else index.get(band, other) for band in bands], np.intp)

    def add(
        self, bands: NDArray[np.intp], z_mean: FloatArray, real_score: FloatArray, quality: NDArray[np.uint32]
    ) -> None:
        """Count a batch.

        Parameters
        ----------
        bands : ndarray, shape (n,)
            From `numbers`.
        z_mean : ndarray, shape (n, latent_size)
            NaN where an alert has no code.
        real_score : ndarray, shape (n,)
            NaN where it has no score.
        quality : ndarray, shape (n,)
            `Quality` bits.
        """
        count = len(self.bands)
        for row, flags in enumerate((None, Quality.MASKED_PIXELS, UNSCOREABLE)):
            some = bands if flags is None else bands[(quality & np.uint32(flags)) != 0]
            self._plain[row] += np.bincount(some, minlength=count)
        coded = np.isfinite(z_mean[:, 0])
        codes, of = (z_mean, bands) if coded.all() else (z_mean[coded], bands[coded])
        units, bins = codes.shape[1], len(self._latent_edges) + 1
        places = (codes > self._latent_edges).sum(axis=0)
        places += np.arange(units) * bins
        places += (of * (units * bins))[:, None]
        self._latents += np.bincount(places.ravel(), minlength=len(self._latents))
        _count(self._scores, bands, real_score, self._score_edges)

    def add_errors(self, bands: NDArray[np.intp], squared_error: FloatArray) -> None:
        """Count squared errors of a sample.

        Parameters
        ----------
        bands : ndarray, shape (k,)
            From `numbers`.
        squared_error : ndarray, shape (k,)
            From `summed_square`.
        """
        _count(self._errors, bands, squared_error, self._error_edges)

    @property
    def alerts(self) -> int:
        """How many were counted."""
        return int(self._plain[0].sum())

    @property
    def errors(self) -> int:
        """How many squared errors."""
        return int(self._errors.sum())

    def counts(self) -> Counts:
        """Give what was counted.

        Returns
        -------
        Counts
            A copy.
        """
        count, units, bins = len(self.bands), self._latent_edges.shape[2], len(self._latent_edges) + 1
        alerts, masked, unscoreable = self._plain.copy()
        latents = self._latents.reshape(count, units, bins).copy()
        return Counts(self.bands, alerts, masked, unscoreable, latents, self._scores.copy(), self._errors.copy())


def drift(reference: DriftReference, counts: Counts, limits: Limits) -> tuple[Figure, ...]:
    """Compare a window with the reference.

    Parameters
    ----------
    reference : DriftReference
        Of the release that scored.
    counts : Counts
        What it scored.
    limits : Limits
        When to alarm.

    Returns
    -------
    tuple of Figure
        Of all alerts and of each band with enough of them; none of what the reference does not know. All alerts
        are held against the reference *in the window's own mix of bands*: another mix is no drift.
    """
    parts = {ALL: np.ones(len(counts.bands), np.bool_)}
    parts |= {band: np.array([each == band for each in counts.bands]) for band in counts.bands}
    found: list[Figure] = []
    for band, rows in parts.items():
        if counts.alerts[rows].sum() >= limits.least_alerts:
            found += _figures(reference, counts, rows, band, limits)
    return tuple(found)


def _figures(
    reference: DriftReference, counts: Counts, rows: NDArray[np.bool_], band: str, limits: Limits
) -> list[Figure]:
    found: list[Figure] = []

    def say(name: FigureName, psi: float, ks: float, unit: int | None = None) -> None:
        found.append(Figure(name, band, psi, ks, psi > limits.psi * _PART_OF_LIMIT[name], unit))

    coded = int(counts.latents[rows, 0].sum())
    if coded >= limits.least_alerts and reference.latents[ALL][0].sum() >= LEAST_REFERENCE and reference.active.any():
        expected, size = _mixture(reference.latents, counts, counts.latents[:, 0], rows)
        psi, ks = _compare(counts.latents[rows].sum(axis=0), expected, size)
        psi, ks = np.where(reference.active, psi, 0.0), np.where(reference.active, ks, 0.0)
        worst, active = int(np.argmax(psi)), int(reference.active.sum())
        say("latent", float(psi[worst]), float(ks[worst]), worst)
        say("latent_mean", float(psi.sum() / active), float(ks.sum() / active))
    scored = int(counts.real_score[rows].sum())
    if scored >= limits.least_alerts and reference.real_score[ALL].sum() >= LEAST_REFERENCE:
        expected, size = _mixture(reference.real_score, counts, counts.real_score, rows)
        psi, ks = _compare(counts.real_score[rows].sum(axis=0), expected, size)
        say("real_score", float(psi), float(ks))
    errors = counts.squared_error[rows].sum(axis=0)
    if band == ALL and min(errors.sum(), reference.squared_error.sum()) >= LEAST_REFERENCE:
        psi, ks = _compare(errors, _share(reference.squared_error), float(reference.squared_error.sum()))
        say("squared_error", float(psi), float(ks))
    for name, flagged in (("masked", counts.masked), ("unscoreable", counts.unscoreable)):
        if name in reference.shares:
            some, of = reference.shares[name]
            number, all_of_them = int(flagged[rows].sum()), int(counts.alerts[rows].sum())
            psi, ks = _compare(np.array([number, all_of_them - number]), _share(np.array([some, of - some])), of)
            say(name, float(psi), float(ks))  # type: ignore[arg-type]
    return found


def _mixture(
    reference: Mapping[str, Ints], counts: Counts, histograms: Ints, rows: NDArray[np.bool_]
) -> tuple[Floats, float]:
    """Shares of the reference in a window's mix of bands, and of how many alerts of the reference they are made."""
    weights = histograms.sum(axis=-1) * rows
    expected = np.zeros_like(_share(reference[ALL]))
    inverse = 0.0
    for band, weight in zip(counts.bands, (weights / weights.sum()).tolist(), strict=True):
        if weight:
            own = reference.get(band, reference[ALL])
            expected += weight * _share(own)
            inverse += weight**2 / float(own.sum() / max(1, int(np.prod(own.shape[:-1]))))
    return expected, 1.0 / inverse


def _share(counts: NDArray[Any]) -> Floats:
    """Shares of bins along the last axis; an empty one gets the half of an alert, so that its logarithm exists."""
    filled = counts + 0.5
    share: Floats = filled / filled.sum(axis=-1, keepdims=True)
    return share


def _compare(counts: Ints, expected: Floats, size: float) -> tuple[Floats, Floats]:
    """Population stability index without its bias, and KS distance between the edges, along the last axis."""
    share = _share(counts)
    n = counts.sum(axis=-1)
    bias = (counts.shape[-1] - 1) * (1.0 / np.maximum(n, 1) + 1.0 / size)
    psi = ((share - expected) * np.log(share / expected)).sum(axis=-1)
    ks = np.abs(np.cumsum(share - expected, axis=-1)).max(axis=-1)
    return np.maximum(psi - bias, 0.0), ks


def _deciles(values: Floats) -> Floats:
    """Inner edges, (columns, bins - 1); none where there is nothing to take them from."""
    if not len(values):
        return np.zeros((values.shape[1], 0))
    return np.quantile(values, np.linspace(0, 1, BINS + 1)[1:-1], axis=0).T


def _binned(values: NDArray[Any], edges: Floats) -> Ints:
    """Count columns into their bins, (columns, bins)."""
    rows = [
        np.bincount(np.searchsorted(edge, column[np.isfinite(column)]), minlength=edges.shape[1] + 1)
        for column, edge in zip(values.T, edges, strict=True)
    ]
    return np.array(rows, np.int64)


def _count(into: Ints, bands: NDArray[np.intp], values: FloatArray, edges: FloatArray) -> None:
    known = np.isfinite(values)
    places = bands[known] * into.shape[1] + np.searchsorted(edges, values[known])
    into += np.bincount(places, minlength=into.size).reshape(into.shape)


def write_shares(shares: Mapping[str, float] | None, of: int) -> dict[str, Any]:
    """Write shares of quality flags as `reference.npz` holds them.

    Parameters
    ----------
    shares : Mapping or None
        Of ``masked`` and ``unscoreable``; what is absent is unknown.
    of : int
        Alerts that they are shares of.

    Returns
    -------
    dict
        Arrays by name; none where nothing is known.
    """
    if not shares:
        return {}
    values = [shares.get(name, np.nan) for name in ("masked", "unscoreable")]
    return {"shares": np.array(values), "shares_of": np.array(of)}
