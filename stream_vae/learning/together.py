"""Many batches a call, where the backend can compile a loop over them.

A GPU fits a batch of 64 stamps in less time than Python needs to hand it over. On JAX a stack of batches therefore
goes to the device in one piece, in the type that it is stored in, and one compiled loop turns the stamps and takes the
steps. What is computed is what Keras' own loop would: the same batches in the same order, and the same draws.
"""

from typing import Any

from stream_vae.model.autoencoder import Autoencoder
from stream_vae.model.backend import keras
from stream_vae.model.losses import Tensor

STACK_BYTES = 16 << 20
"""Of a stack of batches as it goes to the device: some ten milliseconds of work there, and little memory here."""


def batches_together(batch_size: int, stamp_bytes: int) -> int:
    """Choose how many batches make a stack.

    Parameters
    ----------
    batch_size : int
        Stamps a batch.
    stamp_bytes : int
        Of a stamp as it is stored.

    Returns
    -------
    int
        1 where that is no gain: on backends that know no such loop, and on a CPU, where XLA's loops use one core.
    """
    if keras.backend.backend() != "jax":
        return 1
    import jax

    if jax.default_backend() == "cpu":
        return 1
    return max(1, STACK_BYTES // (batch_size * stamp_bytes))


def turn_each(images: Tensor, which: Tensor) -> Tensor:
    """Turn and mirror each image its own way; on any backend what `batches.turn` does with numpy.

    Parameters
    ----------
    images : tensor, shape (n, size, size, channels)
        All channels of an image are turned together.
    which : tensor of int, shape (n,)
        0 to 3: quarter turns; 4 to 7: the same of the mirrored image.

    Returns
    -------
    tensor, shape (n, size, size, channels)
        Turned.
    """
    ops = keras.ops
    which = ops.reshape(ops.cast(which, "int32"), (-1, 1, 1, 1))
    images = ops.where(which >= 4, ops.flip(images, axis=2), images)
    images = ops.where(which % 4 >= 2, ops.flip(images, axis=(1, 2)), images)
    return ops.where(which % 2 == 1, ops.flip(ops.transpose(images, (0, 2, 1, 3)), axis=1), images)


def take_stacks(model: Autoencoder) -> None:
    """Let a compiled model's `fit` take stacks of batches: the items of `Batches` with `together`.

    Parameters
    ----------
    model : Autoencoder
        Compiled, on JAX.
    """
    import jax

    one_step = model.train_step

    def train_step(state: Any, data: tuple[dict[str, Tensor]]) -> tuple[dict[str, float], Any]:
        (stack,) = data
        structure = jax.tree.structure(state)

        def step(i: Tensor, values: list[Tensor]) -> list[Tensor]:
            _, after = one_step(jax.tree.unflatten(structure, values), (_batch(stack, i),))
            return list(jax.tree.leaves(after))

        values = jax.lax.fori_loop(0, stack["steps"], step, jax.tree.leaves(state))
        # Keras wants a value for each name, and takes the epoch's means from the metrics, which are in the state.
        return dict.fromkeys(("loss", *model.parts), 0.0), jax.tree.unflatten(structure, values)

    model.train_step = train_step


def _batch(stack: dict[str, Tensor], i: Tensor) -> Any:
    """The i-th batch as the model takes it: float32, turned, stamps alone where there is nothing else."""
    turns = stack["turn"][i]
    batch = {
        name: turn_each(keras.ops.cast(values[i], "float32"), turns) if values.ndim == 5 else values[i]
        for name, values in stack.items()
        if name not in {"turn", "steps"}
    }
    return batch if len(batch) > 1 else batch["stamp"]
