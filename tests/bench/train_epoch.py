"""Time an epoch of training, whole or from a part of it, against what arithmetic and memory alone would take.

    python tests/bench/train_epoch.py --recipes paper survey --seconds 20
    KERAS_BACKEND=jax python tests/bench/train_epoch.py --whole --precisions float32 tf32 --batch-sizes 100 1024

One row a recipe, batch size, precision and way of handing batches over: stamps per second of whole training steps
(batches drawn, turned and fitted, through the Keras loop that `fit_model` runs), and the time of an epoch of 6.35
million stamps at that rate (the training third of Huijse et al. 2018); with --whole one such epoch is run to its end,
from float16 stamps on disk as `train` spools them, after a warm-up that compiles.

Beside it two floors. Arithmetic: the networks' multiplications, forward and twice that backward, over the rate of a
large matrix product at the same precision. Memory: the output of every convolution and dense layer written and read
once forward and once backward in float32, over the rate of a large copy; a compiler that fuses layers moves less,
one that does not moves more. By CPU time too, which other processes on the machine disturb less.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from stream_vae.learning.batches import Batches
from stream_vae.learning.data.stamps import StampSet
from stream_vae.learning.fit import compile_model, model_inputs, new_model
from stream_vae.learning.recipe import Recipe, load_recipe
from stream_vae.learning.together import batches_together
from stream_vae.model.backend import keras

EPOCH = 6_350_000
IN_MEMORY = 20_480
STRETCH = 40
"""Items of `Batches` between two looks at the clock."""


def layers_of(recipe: Recipe) -> Iterator[Any]:
    """Convolutions and dense layers of both networks."""
    model = new_model(recipe, steps_per_epoch=1)
    for network in (model.encoder, model.decoder):
        yield from (layer for layer in network.layers if hasattr(layer, "kernel"))


def flop_a_stamp(recipe: Recipe) -> float:
    """Multiplications and additions of one forward pass, from the shapes of the weights."""
    return sum(
        2.0 * float(np.prod(layer.kernel.shape)) * float(np.prod(layer.output.shape[1:-1] or (1,)))
        for layer in layers_of(recipe)
    )


def bytes_a_stamp(recipe: Recipe) -> float:
    """Of every layer's output, written and read forward and backward."""
    return sum(4.0 * 4.0 * float(np.prod(layer.output.shape[1:])) for layer in layers_of(recipe))


def best_rate(work: Any, amount: float, seconds: float = 2.0) -> np.ndarray:
    """Amount per second of the best call, by wall and by CPU time."""
    work()
    best, until = np.zeros(2), time.monotonic() + seconds
    while time.monotonic() < until:
        began = _clocks()
        work()
        best = np.maximum(best, amount / (_clocks() - began))
    return best


def matrix_rate() -> np.ndarray:
    """Operations a second of large matrix products at the precision that is set."""
    side, products = (8192, 4) if on_device() else (2048, 1)
    random = np.random.default_rng(0)
    kind = keras.config.dtype_policy().compute_dtype
    a, b = (keras.ops.convert_to_tensor(random.normal(size=(side, side)).astype(np.float32)) for _ in range(2))
    a, b = keras.ops.cast(a, kind), keras.ops.cast(b, kind)
    return best_rate(lambda: _wait([keras.ops.matmul(a, b) for _ in range(products)]), products * 2.0 * side**3)


def copy_rate() -> np.ndarray:
    """Bytes a second, read and written, of large copies."""
    count, copies = ((1 << 30), 8) if on_device() else ((1 << 26), 1)
    array = keras.ops.zeros(count // 4) + 1.0
    return best_rate(lambda: _wait([array + 1.0 for _ in range(copies)]), copies * 2.0 * count)


def on_device() -> bool:
    """Whether Keras computes on something other than the CPU."""
    if keras.backend.backend() == "jax":
        import jax

        return str(jax.default_backend()) != "cpu"
    return keras.distribution.list_devices("gpu") != []


def _wait(tensors: list[Any]) -> None:
    for tensor in tensors:
        keras.ops.convert_to_numpy(keras.ops.reshape(tensor, (-1,))[:1])


def _clocks() -> np.ndarray:
    """Wall time, and CPU time over the cores: what the wall time would be were they all ours and all busy."""
    return np.array([time.perf_counter(), time.process_time() / len(os.sched_getaffinity(0))])


@contextmanager
def precision(name: str) -> Iterator[None]:
    """Compute at a precision: `default` is the backend's own, the others are JAX's."""
    if name == "bfloat16":
        keras.config.set_dtype_policy("mixed_bfloat16")
    elif name != "default":
        import jax

        jax.config.update("jax_default_matmul_precision", {"float32": "highest", "tf32": "tensorfloat32"}[name])
    try:
        yield
    finally:
        keras.config.set_dtype_policy("float32")


class Clock(keras.callbacks.Callback):
    """Note when an epoch's first items are through and when it ends."""

    def __init__(self) -> None:
        super().__init__()
        self.took = np.zeros(2)

    def on_epoch_begin(self, *_: Any, **__: Any) -> None:
        self.began = _clocks()

    def on_epoch_end(self, *_: Any, **__: Any) -> None:
        self.took = _clocks() - self.began


def rate(recipe: Recipe, data: StampSet, *, seconds: float | None, together: int) -> np.ndarray:
    """Stamps a second, by wall and by CPU time: of the best stretch, or with no seconds of one whole epoch."""

    def batches_of(some: StampSet) -> Batches:
        return Batches(
            some,
            np.arange(len(some)),
            inputs=model_inputs(recipe),
            batch_size=recipe.fit.batch_size,
            seed=1,
            augment=recipe.data.augment,
            together=together,
        )

    batches = batches_of(data)
    model = new_model(recipe, steps_per_epoch=len(data) // recipe.fit.batch_size)
    compile_model(model, recipe, steps=10**6, together=together)
    clock = Clock()
    options = {"shuffle": False, "verbose": 0, "callbacks": [clock]}
    model.fit(batches, epochs=1, steps_per_epoch=min(2, len(batches)), **options)  # compiles
    if seconds is None:
        model.fit(batches_of(data), epochs=1, **options)
        return len(data) // recipe.fit.batch_size * recipe.fit.batch_size / clock.took
    best, until = np.zeros(2), time.monotonic() + seconds
    items = min(STRETCH, max(1, len(batches) - 1))
    while time.monotonic() < until:
        model.fit(batches, epochs=1, steps_per_epoch=items, **options)
        best = np.maximum(best, items * together * recipe.fit.batch_size / clock.took)
    return best


def stamps_in_memory(count: int) -> StampSet:
    """Noise, which costs what stamps do."""
    stamps = np.random.default_rng(0).normal(0.0, 0.1, (count, 21, 21, 1)).astype(np.float32)
    return StampSet(stamps, np.full(count, -1, np.int8), np.arange(count), {})


def stamps_on_disk(folder: Path, count: int) -> StampSet:
    """The same as float16 in a memory-mapped file, repeated until there are so many."""
    some = stamps_in_memory(IN_MEMORY).stamps.astype(np.float16)
    stamps = np.lib.format.open_memmap(folder / "stamps.npy", "w+", np.float16, (count, 21, 21, 1))
    for i in range(0, count, len(some)):
        stamps[i : i + len(some)] = np.roll(some, i // len(some), axis=0)[: count - i]
    return StampSet(stamps, np.full(count, -1, np.int8), np.arange(count), {})


def report(recipe: Recipe, data: StampSet, arguments: argparse.Namespace, kind: str) -> None:
    """Print the rows of one recipe at one precision."""
    with precision(kind):
        matrix, copy = matrix_rate(), copy_rate()
        flop, moved = 3.0 * flop_a_stamp(recipe), bytes_a_stamp(recipe)
        floors = f"floors {EPOCH * flop / matrix[0]:.1f} s of arithmetic at {matrix[0] / 1e12:.3g} TFLOP/s, "
        floors += f"{EPOCH * moved / copy[0]:.1f} s of memory at {copy[0] / 1e9:.0f} GB/s"
        print(f"{recipe.name}, {kind}: {flop / 3e6:.2f} MFLOP a stamp forward; {floors}", flush=True)
        stored = data.stamps[:1].nbytes
        for together in sorted({1, batches_together(recipe.fit.batch_size, stored)}):
            seconds = None if arguments.whole and together > 1 else arguments.seconds
            found = rate(recipe, data, seconds=seconds, together=together)
            how = "a whole epoch" if seconds is None else "extrapolated"
            cells = f"  batch {recipe.fit.batch_size:5}, {together:4} together: {found[0]:10,.0f} stamps/s"
            cells += f" {EPOCH / found[0]:8.1f} s an epoch ({how})"
            print(f"{cells}; by CPU time {found[1]:10,.0f} stamps/s {EPOCH / found[1]:8.1f} s", flush=True)


def main() -> None:
    """Read the arguments and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", nargs="+", default=["paper", "survey"])
    parser.add_argument("--seconds", type=float, default=15.0, help="for each row")
    parser.add_argument(
        "--precisions", nargs="+", default=["default"], help="default, or float32, tf32, bfloat16 on JAX"
    )
    parser.add_argument("--batch-sizes", nargs="+", type=int, help="instead of the recipe's")
    parser.add_argument("--whole", action="store_true", help="run stacks of batches through a whole epoch")
    parser.add_argument("--stamps", type=int, default=EPOCH, help="of a whole epoch")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="stream-vae-epoch-") as folder:
        whole = stamps_on_disk(Path(folder), arguments.stamps) if arguments.whole else None
        data = stamps_in_memory(IN_MEMORY) if whole is None else whole
        for name in arguments.recipes:
            for kind in arguments.precisions:
                recipe = load_recipe(name)
                for size in arguments.batch_sizes or [recipe.fit.batch_size]:
                    fit = recipe.fit.model_copy(update={"batch_size": size})
                    report(recipe.model_copy(update={"fit": fit}), data, arguments, kind)


if __name__ == "__main__":
    main()
