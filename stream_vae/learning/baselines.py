"""What the CVAE has to beat: PCA, a sparse dictionary and the raw pixels, over mini-batches of any number of stamps.

The upper reference, a network that is trained on labels, is in `stream_vae.learning.supervised`.

References
----------
Ross, Lim, Lin & Yang 2008 (incremental PCA); Mairal, Bach, Ponce & Sapiro 2009 (online dictionary learning,
algorithm 1: the paper's SDL).
"""

import itertools
from collections.abc import Iterable, Iterator
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from stream_vae.errors import ConfigError
from stream_vae.learning.representation import BATCH, Array

COMPONENTS = 21
"""As many as the paper's latent code has units."""
PENALTY = 0.2
"""l1 penalty of the dictionary's codes. Of 0.05 to 0.5, tried on two halves of one real image, the AUC at 100 labels
levels off here, where a quarter of the code is not zero; the squared error rises with it all along."""
STEP = 256
"""Stamps that the dictionary moves on by; PCA takes four times as many."""
CENTRED_ON = 8192
"""Stamps whose mean is taken off before the dictionary is learned."""


class Batches:
    """Shuffled batches of some rows of an array, which may be memory-mapped; can be gone through again.

    Parameters
    ----------
    stamps : ndarray, shape (n, size, size, channels)
        Scaled.
    rows : ndarray of int, optional
        Which of them; absent: all.
    size : int
        Stamps a batch.
    seed : int
        Of the order, which is the same each time.
    """

    def __init__(
        self, stamps: Array, rows: NDArray[np.integer[Any]] | None = None, *, size: int = BATCH, seed: int = 1
    ) -> None:
        self._stamps = stamps
        self._order = np.random.default_rng(seed).permutation(np.arange(len(stamps)) if rows is None else rows)
        self._size = size

    def __iter__(self) -> Iterator[Array]:
        for i in range(0, len(self._order), self._size):
            # Sorted: a memory-mapped file is read forwards.
            yield np.asarray(self._stamps[np.sort(self._order[i : i + self._size])], np.float32)


class Linear:
    """Codes and stamps that a matrix of components leads between: `stamp = mean + code @ components`.

    Parameters
    ----------
    name : str
        What reports call it.
    estimator : object
        A fitted scikit-learn transformer.
    components : ndarray, shape (k, pixels)
        Component images.
    mean : ndarray, shape (pixels,)
        What is taken off first.
    shape : tuple of int
        (size, size, channels) of a stamp.
    """

    variance: float | None = None

    def __init__(self, name: str, estimator: Any, components: Array, mean: Array, shape: tuple[int, ...]) -> None:
        self.name = name
        self.components = components.astype(np.float32)
        self.mean = mean.astype(np.float32)
        self._estimator = estimator
        self._shape = shape

    def encode(self, stamps: Array) -> tuple[Array, Array | None]:
        """Find the codes of stamps.

        Parameters
        ----------
        stamps : ndarray, shape (n, size, size, channels)
            Scaled.

        Returns
        -------
        codes : ndarray, shape (n, k)
            Coefficients of the components.
        none : None
            They have no variance.
        """
        _check_shape(stamps, self._shape)
        flat = stamps.reshape(len(stamps), self.mean.size)
        parts = [self._codes(flat[i : i + BATCH]) for i in range(0, len(flat), BATCH)]
        empty = np.empty((0, len(self.components)), np.float32)
        return np.concatenate(parts or [empty]), None

    def _codes(self, flat: Array) -> Array:
        return np.asarray(self._estimator.transform(flat), np.float32)

    def decode(self, codes: Array) -> Array | None:
        """Reconstruct stamps.

        Parameters
        ----------
        codes : ndarray, shape (n, k)
            Coefficients.

        Returns
        -------
        ndarray, shape (n, size, size, channels)
            Stamps.
        """
        return cast("Array", (codes @ self.components + self.mean).reshape(len(codes), *self._shape))


class _Dictionary(Linear):
    """A dictionary is learned and used without the mean, which scikit-learn does not know of."""

    def _codes(self, flat: Array) -> Array:
        return np.asarray(self._estimator.transform(_centred(flat, self.mean)), np.float32)


class RawPixels:
    """Each stamp is its own code."""

    name = "raw pixels"
    variance: float | None = None

    def encode(self, stamps: Array) -> tuple[Array, Array | None]:
        """Lay the pixels in a row.

        Parameters
        ----------
        stamps : ndarray, shape (n, size, size, channels)
            Scaled.

        Returns
        -------
        codes : ndarray, shape (n, pixels)
            The pixels.
        none : None
            They have no variance.
        """
        return stamps.reshape(len(stamps), -1), None

    def decode(self, codes: Array) -> Array | None:  # noqa: ARG002 - the protocol's
        """Give nothing: it would be the stamp itself, which is no reconstruction.

        Parameters
        ----------
        codes : ndarray, shape (n, pixels)
            Pixels.

        Returns
        -------
        None
            Always.
        """
        return None


def raw_pixels() -> RawPixels:
    """Give the representation that leaves stamps as they are.

    Returns
    -------
    RawPixels
        With as many numbers as pixels.
    """
    return RawPixels()


def fit_pca(batches: Iterable[Array], components: int = COMPONENTS) -> Linear:
    """Fit principal components, a batch at a time.

    Parameters
    ----------
    batches : iterable of ndarray, each (m, size, size, channels)
        Scaled stamps; gone through once, so an iterator will do.
    components : int
        How many.

    Returns
    -------
    Linear
        Named `PCA-21`, orthonormal components by falling variance.

    Raises
    ------
    ConfigError
        If there are fewer stamps than components, or pixels that are not finite.
    """
    from sklearn.decomposition import IncrementalPCA

    pca = IncrementalPCA(components)
    shape: tuple[int, ...] = ()
    for batch in _joined(batches, 4 * STEP, least=components):
        shape = batch.shape[1:]
        pca.partial_fit(batch.reshape(len(batch), -1))
    return Linear(f"PCA-{components}", pca, pca.components_, pca.mean_, shape)


def fit_dictionary(
    batches: Iterable[Array],
    components: int = COMPONENTS,
    *,
    penalty: float = PENALTY,
    passes: int = 1,
    seed: int = 1,
) -> Linear:
    """Learn a dictionary whose atoms describe stamps sparsely, a batch at a time.

    Minimises 0.5 |x - m - c D|^2 + penalty |c|_1 over codes c and atoms D of at most unit length, with m the mean of
    the first stamps; the same penalty makes the codes of new stamps.

    Parameters
    ----------
    batches : iterable of ndarray, each (m, size, size, channels)
        Scaled stamps, in an order that says nothing.
    components : int
        How many atoms.
    penalty : float
        Of the codes' absolute values: larger is sparser.
    passes : int
        How often to go through the batches; more than once needs a list or `Batches`, not an iterator.
    seed : int
        Of scikit-learn's random state.

    Returns
    -------
    Linear
        Named `SDL-21`.

    Raises
    ------
    ConfigError
        If there are fewer stamps than atoms, pixels that are not finite, or a second pass through an iterator.

    References
    ----------
    Mairal et al. 2009, equations 4 and 5 and algorithm 1.
    """
    from sklearn.decomposition import MiniBatchDictionaryLearning

    if passes > 1 and iter(batches) is batches:
        raise ConfigError(
            f"{passes} passes through an iterator cannot be made: it is empty after the first.",
            remedy="Give a list of batches or `baselines.Batches`, or ask for one pass.",
        )
    # Coordinate descent: a path of least angles finds the same codes in thirty times the time.
    learner = MiniBatchDictionaryLearning(
        components,
        alpha=penalty,
        fit_algorithm="cd",
        transform_algorithm="lasso_cd",
        transform_alpha=penalty,
        random_state=seed,
    )
    mean: Array | None = None
    shape: tuple[int, ...] = ()
    for _ in range(passes):
        steps = _joined(batches, STEP, least=components)
        if mean is None:
            first = list(itertools.islice(steps, CENTRED_ON // STEP))
            shape = first[0].shape[1:]
            mean = np.concatenate(first).mean(axis=0, dtype=np.float64).ravel().astype(np.float32)
            steps = itertools.chain(first, steps)
        for batch in steps:
            learner.partial_fit(_centred(batch.reshape(len(batch), -1), mean))
    return _Dictionary(f"SDL-{components}", learner, learner.components_, cast("Array", mean), shape)


def _centred(flat: Array, mean: Array) -> NDArray[np.float64]:
    """In double precision: in single, coordinate descent never reaches its tolerance and takes eight times as long."""
    return flat.astype(np.float64) - mean


def _joined(batches: Iterable[Array], size: int, *, least: int) -> Iterator[Array]:
    """Cut batches anew into pieces of `size`; the last has up to twice as many, so that none is too small."""
    held: Array | None = None
    for batch in batches:
        if not np.isfinite(batch).all():
            raise ConfigError(
                "Some pixels of the stamps are not finite.",
                remedy="Scale the stamps first: stream_vae.stages.stamp.normalise fills what is masked.",
            )
        held = batch if held is None else np.concatenate([held, batch])
        while len(held) >= 2 * size:
            yield held[:size]
            held = held[size:]
    if held is None or len(held) < least:
        raise ConfigError(
            f"{0 if held is None else len(held)} stamps are too few for {least} components.",
            remedy="Give at least as many stamps as components, or ask for fewer components.",
        )
    yield held


def _check_shape(stamps: Array, shape: tuple[int, ...]) -> None:
    if stamps.shape[1:] != shape:
        raise ConfigError(
            f"Stamps of {stamps.shape[1:]} do not fit components that were fitted on {shape}.",
            remedy="Cut both with the same size and channels.",
        )
