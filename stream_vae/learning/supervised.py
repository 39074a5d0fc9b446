"""The upper reference: the CVAE's encoder and a hidden layer, trained end to end on all the labels there are.

What a representation without labels is compared with; a network like this is what surveys run today.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream_vae.errors import ConfigError
from stream_vae.learning.batches import turn
from stream_vae.learning.classifier import class_weights
from stream_vae.learning.measures.scores import check_scores
from stream_vae.learning.progress import Reporter, silent
from stream_vae.learning.representation import BATCH, Array
from stream_vae.model.backend import keras
from stream_vae.model.networks import encoder_network

Flags = NDArray[np.bool_]
Rows = NDArray[np.integer[Any]]


@dataclass(frozen=True)
class Supervised:
    """A fitted classifier of stamps.

    Parameters
    ----------
    network : keras.Model
        Stamps (n, size, size, channels) to logits (n, 1).
    best_epoch : int
        Which epoch's weights it has, from 1.
    history : dict of lists
        What Keras logged, one value an epoch.
    """

    network: Any
    best_epoch: int
    history: dict[str, list[float]]
    name: str = "supervised CNN"

    def score(self, stamps: Array) -> NDArray[np.float64]:
        """Score stamps.

        Parameters
        ----------
        stamps : ndarray, shape (n, size, size, channels)
            Scaled.

        Returns
        -------
        ndarray, shape (n,)
            Probability of being real if both classes were as frequent; not calibrated.
        """
        parts = [self.network(stamps[i : i + BATCH], training=False) for i in range(0, max(1, len(stamps)), BATCH)]
        logits = np.concatenate([np.asarray(keras.ops.convert_to_numpy(part), np.float64)[:, 0] for part in parts])
        return np.asarray(0.5 * (1.0 + np.tanh(0.5 * logits)), np.float64)


_PIECE = 4096  # stamps looked at together: they may lie on disk


class _Labelled(keras.utils.PyDataset):
    """Shuffled batches with labels and weights, each stamp turned its own way."""

    def __init__(self, stamps: Array, real: Flags, rows: Rows, *, batch_size: int, seed: int) -> None:
        super().__init__()
        self._stamps, self._real, self._rows = stamps, real, rows
        self._weights = class_weights(real[rows]).astype(np.float32)
        self._batch_size = min(batch_size, len(rows))
        self._random = np.random.default_rng(seed)
        self._order = self._random.permutation(len(rows))

    def __len__(self) -> int:
        return len(self._rows) // self._batch_size

    def __getitem__(self, index: int) -> tuple[Array, Array, Array]:
        chosen = self._order[index * self._batch_size : (index + 1) * self._batch_size]
        rows = self._rows[chosen]
        stamps = turn(np.asarray(self._stamps[rows], np.float32), self._random.integers(0, 8, len(rows)))
        return stamps, self._real[rows].astype(np.float32)[:, np.newaxis], self._weights[chosen]

    def on_epoch_end(self) -> None:
        """Shuffle anew."""
        self._order = self._random.permutation(len(self._rows))


def fit_supervised(
    stamps: Array,
    real: Flags,
    train_rows: Rows,
    validation_rows: Rows,
    *,
    filters: int = 32,
    features: int = 21,
    hidden: int = 64,
    learning_rate: float = 1e-3,
    batch_size: int = 64,
    epochs: int = 60,
    patience: int = 12,
    seed: int = 1,
    report: Reporter = silent,
) -> Supervised:
    """Train on labels, in the eight symmetries of a stamp; stop when the validation loss no longer falls.

    Parameters
    ----------
    stamps : ndarray, shape (n, size, size, channels)
        Scaled; may be memory-mapped.
    real : ndarray of bool, shape (n,)
        Truth.
    train_rows, validation_rows : ndarray of int
        Rows to train on and to stop on, both with both classes.
    filters : int
        Filters of each convolution, as in the CVAE.
    features : int
        Linear units behind the convolutions, as many as the CVAE's code has.
    hidden : int
        ReLU units of the hidden layer.
    learning_rate : float
        Of NAdam.
    batch_size : int
        Stamps a step.
    epochs, patience : int
        At most so many, and so many without a better validation loss.
    seed : int
        Of weights, shuffling and turning.
    report : Reporter
        Told after each epoch.

    Returns
    -------
    Supervised
        The best epoch's.

    Raises
    ------
    ConfigError
        If a part has one class only, or pixels are not finite.
    """
    for rows in (train_rows, validation_rows):
        check_scores(np.zeros(len(rows)), real[rows])
        # Looked at here, for the loss does not always tell: on some processors a ReLU makes 0 of NaN.
        if not all(np.isfinite(stamps[rows[i : i + _PIECE]]).all() for i in range(0, len(rows), _PIECE)):
            raise ConfigError("Pixels of labelled stamps are not finite.", remedy="Scale the stamps first.")
    keras.utils.set_random_seed(seed)
    network = _network(stamps.shape[1], stamps.shape[3], filters=filters, features=features, hidden=hidden)
    network.compile(
        optimizer=keras.optimizers.Nadam(learning_rate), loss=keras.losses.BinaryCrossentropy(from_logits=True)
    )
    batches = _Labelled(stamps, real, train_rows, batch_size=batch_size, seed=seed)
    truth = real[validation_rows]
    unseen = np.asarray(stamps[validation_rows], np.float32)
    stop = keras.callbacks.EarlyStopping("val_loss", mode="min", patience=patience, restore_best_weights=True)
    tell = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: report("fit supervised CNN", epoch + 1, epochs, f"loss {logs['val_loss']:.3f}")
    )
    history = network.fit(
        batches,
        validation_data=(unseen, truth.astype(np.float32)[:, np.newaxis], class_weights(truth).astype(np.float32)),
        validation_batch_size=512,
        epochs=epochs,
        shuffle=False,  # the batches shuffle themselves, from their own seed
        verbose=0,
        callbacks=[stop, tell],
    ).history
    values = {name: [float(value) for value in column] for name, column in history.items()}
    if not np.isfinite(values["val_loss"]).any():
        raise ConfigError(
            "The supervised network's loss is not finite.",
            remedy="Lower the learning rate.",
        )
    report("fit supervised CNN", epochs, epochs)
    return Supervised(network, int(np.nanargmin(values["val_loss"])) + 1, values)


def _network(stamp_size: int, channels: int, *, filters: int, features: int, hidden: int) -> Any:
    encoder = encoder_network(stamp_size, channels, features, filters)
    x = keras.layers.Dense(hidden, activation="relu", name="hidden")(encoder.outputs[0])
    return keras.Model(encoder.inputs[0], keras.layers.Dense(1, name="logit")(x), name="supervised")
