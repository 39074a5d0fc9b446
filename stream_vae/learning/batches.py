"""Batches for fitting: shuffled over the whole set, turned and mirrored, the same for the same seed and epoch.

Every epoch draws its own order and turns from the seed and the epoch's number, so that a resumed run sees what an
uninterrupted one would have seen, however many batches are handed over at a time.
"""

import math
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream_vae.learning.data.stamps import StampSet
from stream_vae.model.backend import keras

Array = NDArray[np.float32]
Inputs = Array | dict[str, Array]

BLOCK = 64
"""Stamps that are read in a row: 56 kB of float16 at 21x21, long enough a read for any disk."""
WINDOW = 512
"""Blocks that are shuffled together, 32,768 stamps: a batch of 128 mixes stamps of about as many places of the set."""


@lru_cache(maxsize=8)
def _symmetries(size: int) -> NDArray[np.int64]:
    """(8, size * size): which pixel comes to lie on each, for each symmetry."""
    pixels = np.arange(size * size).reshape(size, size)
    ways = [np.rot90(image, k) for image in (pixels, pixels[:, ::-1]) for k in range(4)]
    return np.stack([way.ravel() for way in ways])


def turn(stamps: Array, which: NDArray[np.int64]) -> Array:
    """Turn and mirror each stamp its own way: the eight symmetries of a square.

    Parameters
    ----------
    stamps : ndarray, shape (n, size, size, channels)
        All channels of a stamp are turned together.
    which : ndarray of int, shape (n,)
        0 to 3: quarter turns; 4 to 7: the same of the mirrored stamp.

    Returns
    -------
    ndarray, shape (n, size, size, channels)
        A new array.
    """
    n, size, _, channels = stamps.shape
    flat = np.ascontiguousarray(stamps).reshape(n, size * size, channels)
    pixels = _symmetries(size)[which]  # (n, size * size)
    if channels == 1:  # one gather of numbers, not of rows of one number
        return np.take_along_axis(flat[..., 0], pixels, axis=1).reshape(stamps.shape)
    return flat[np.arange(n)[:, np.newaxis], pixels].reshape(stamps.shape)


def orientations(stamps: Array) -> Iterator[Array]:
    """Give the stamps in each of the eight symmetries of a square, one after the other.

    Parameters
    ----------
    stamps : ndarray, shape (n, size, size, channels)
        All channels of a stamp are turned together.

    Yields
    ------
    ndarray, shape (n, size, size, channels)
        Eight times.
    """
    for way in range(8):
        yield turn(stamps, np.full(len(stamps), way))


def inputs_of(data: StampSet, rows: NDArray[Any], names: tuple[str, ...], *, as_stored: bool = False) -> Inputs:
    """Gather what the model takes of some rows.

    Parameters
    ----------
    data : StampSet
        In memory or on disk.
    rows : ndarray of int, shape (n,)
        Which rows.
    names : tuple of str
        Of `stamp`, `noise` and `label`.
    as_stored : bool
        Leave images in the type that they are stored in: on disk float16, half as much to move as float32.

    Returns
    -------
    ndarray or dict of ndarray
        The stamps alone where nothing else is asked for.
    """
    stamps = data.take(rows, as_stored=as_stored)
    if names == ("stamp",):
        return stamps
    inputs = {"stamp": stamps}
    if "noise" in names:
        inputs["noise"] = data.take_noise(rows, as_stored=as_stored)
    if "label" in names:
        inputs["label"] = np.asarray(data.labels[rows], np.float32)
    return inputs


class Batches(keras.utils.PyDataset):
    """Shuffled batches of stamps, turned at random, the same for the same seed.

    The order is random over the whole set in two steps, so that a set on disk is read in runs: blocks of 64
    neighbouring rows come in random order, and the stamps of 512 such blocks are shuffled among themselves.
    A set of fewer than 32,768 stamps is thereby shuffled stamp by stamp. The blocks' borders move from epoch to epoch.

    With `together` an item is a stack of batches for `stream_vae.learning.together`, not yet turned: a dict of
    arrays (together, batch, ...) of the model's inputs in the type that they are stored in, of which `steps` are
    batches and the rest padding, and `turn` (together, batch), which of the symmetries each stamp is due.

    Parameters
    ----------
    data : StampSet
        Normalised stamps, in memory or on disk.
    rows : ndarray of int, shape (n,)
        Which of them, ascending.
    inputs : tuple of str
        What the model takes, see `inputs_of`.
    batch_size : int
        Stamps a batch; a last short batch of each epoch is left out, the shuffle brings its stamps elsewhere.
    seed : int
        Of shuffling and turning.
    augment : bool
        Whether to turn.
    first_epoch : int
        The epoch to begin with, from 0.
    together : int
        Batches an item.
    watch : callable, optional
        Told batch and batches of an epoch as each item is made.
    """

    def __init__(
        self,
        data: StampSet,
        rows: NDArray[Any],
        *,
        inputs: tuple[str, ...] = ("stamp",),
        batch_size: int,
        seed: int,
        augment: bool,
        first_epoch: int = 0,
        together: int = 1,
        watch: Callable[[int, int], None] | None = None,
    ) -> None:
        super().__init__()
        self._data, self._rows, self._inputs = data, rows, inputs
        self._batch_size = min(batch_size, len(rows))
        self._batches = len(rows) // self._batch_size
        self._together = min(together, self._batches)
        self._seed, self._augment = seed, augment
        self._watch = watch
        self._epoch = first_epoch
        self._stream: Iterator[Inputs] = iter(())
        self._next = -1

    def __len__(self) -> int:
        return math.ceil(self._batches / self._together)

    def __getitem__(self, index: int) -> tuple[Inputs]:
        if index != self._next:  # a first item, or a look ahead at the shapes
            self._stream = self._epochs_items(index)
        self._next = index + 1
        item = next(self._stream)
        first = index * self._together
        if self._watch is not None:
            self._watch(min(first + self._together, self._batches), self._batches)
        if self._together > 1:
            return (self._stacked(item, first),)
        return (self._turned(item, self._turns(first)) if self._augment else item,)

    def on_epoch_end(self) -> None:
        """Go on to the next epoch's order."""
        self._epoch += 1
        self._next = -1

    def _epochs_items(self, start: int) -> Iterator[Inputs]:
        """The inputs of this epoch's items from one on, in a row; windows before it are passed over unread."""
        size = self._batch_size * self._together
        end = self._batches * self._batch_size
        at, left = start * size, np.empty(0, np.int64)
        begin = 0  # of this window, in the epoch
        for window in self._windows():
            order = np.concatenate([left, window[max(0, at - begin) :]])
            begin += len(window)
            whole = len(order) // size * size if begin < end else len(order)
            whole = min(whole, end - at)
            near, rows = self._near(order[:whole])
            for i in range(0, whole, size):
                yield inputs_of(near, rows[i : i + size], self._inputs, as_stored=self._together > 1)
            at, left = at + whole, order[whole:]

    def _near(self, order: NDArray[np.int64]) -> tuple[StampSet, NDArray[np.int64]]:
        """Read a window from disk in the disk's order; a set in memory is at hand anyway."""
        if not self._data.on_disk:
            return self._data, order
        ascending = np.sort(order)  # rows are drawn once an epoch: no two are alike
        return self._data.part(ascending), np.searchsorted(ascending, order)

    def _windows(self) -> Iterator[NDArray[np.int64]]:
        """Row numbers of a window at a time, shuffled."""
        random = np.random.default_rng((self._seed, self._epoch))
        shift = int(random.integers(0, BLOCK))
        starts = np.arange(-shift, len(self._rows), BLOCK, dtype=np.int64)
        random.shuffle(starts)
        for at in range(0, len(starts), WINDOW):
            blocks = [self._rows[max(s, 0) : s + BLOCK] for s in starts[at : at + WINDOW]]
            window = np.concatenate(blocks).astype(np.int64)
            random.shuffle(window)
            yield window

    def _turns(self, batch: int) -> NDArray[np.int64]:
        return np.random.default_rng((self._seed, self._epoch, batch)).integers(0, 8, self._batch_size)

    def _turned(self, batch: Inputs, which: NDArray[np.int64]) -> Inputs:
        if not isinstance(batch, dict):
            return turn(batch, which)
        return {name: turn(value, which) if value.ndim == 4 else value for name, value in batch.items()}

    def _stacked(self, item: Inputs, first: int) -> dict[str, Any]:
        """Make (together, batch, ...) of what lies in a row; a short last stack is padded."""
        inputs = item if isinstance(item, dict) else {"stamp": item}
        steps = min(self._together, self._batches - first)
        stack: dict[str, Any] = {}
        for name, value in inputs.items():
            shape = (steps, self._batch_size, *value.shape[1:])
            stack[name] = _padded(value.reshape(shape), self._together)
        turns = [self._turns(first + i) if self._augment else np.zeros(self._batch_size, int) for i in range(steps)]
        stack["turn"] = _padded(np.stack(turns).astype(np.int8), self._together)
        stack["steps"] = np.array(steps, np.int32)
        return stack


def _padded(stack: NDArray[Any], length: int) -> NDArray[Any]:
    """Repeat the first row until the stack is long enough; most are already."""
    if len(stack) == length:
        return stack
    return np.concatenate([stack, np.repeat(stack[:1], length - len(stack), axis=0)])
