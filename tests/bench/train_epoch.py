"""Time an epoch of training from a part of it, against what the arithmetic alone would take on this machine.

    python tests/bench/train_epoch.py --recipes paper survey --seconds 20

One row a recipe and way of compiling: stamps per second of whole training steps (batches drawn, turned and fitted),
the time of an epoch of 6.35 million stamps at that rate (the training third of Huijse et al. 2018), and the floor: the
network's multiplications forward and backward over the rate of a float32 matrix product of Keras' backend.
Beside it the same by CPU time, which other processes on the machine disturb less: stamps a CPU second times the cores.
"""

import argparse
import os
import time

import numpy as np
from stream_vae.learning.batches import Batches
from stream_vae.learning.fit import model_inputs, new_model, optimizer_of
from stream_vae.learning.recipe import Recipe, load_recipe
from stream_vae.learning.stamps import StampSet
from stream_vae.model.backend import keras

EPOCH = 6_350_000
STEPS = 40
"""Batches between two looks at the clock."""


def flop_a_stamp(recipe: Recipe) -> float:
    """Multiplications and additions of one forward pass, from the shapes of the weights."""
    total = 0.0
    model = new_model(recipe, steps_per_epoch=1)
    for network in (model.encoder, model.decoder):
        for layer in network.layers:
            if hasattr(layer, "kernel"):
                outputs = layer.output.shape[1:-1] or (1,)
                total += 2.0 * float(np.prod(layer.kernel.shape)) * float(np.prod(outputs))
    return total


def gemm_rate(seconds: float = 3.0) -> np.ndarray:
    """Float32 operations a second of a large matrix product, by wall and by CPU time."""
    side = 2048
    random = np.random.default_rng(0)
    a, b = (keras.ops.convert_to_tensor(random.normal(size=(side, side)).astype(np.float32)) for _ in range(2))
    best, until = np.zeros(2), time.monotonic() + seconds
    while time.monotonic() < until:
        began = _clocks()
        keras.ops.convert_to_numpy(keras.ops.matmul(a, b)[:1, :1])
        best = np.maximum(best, 2.0 * side**3 / (_clocks() - began))
    return best


def _clocks() -> np.ndarray:
    """Wall time, and CPU time over the cores: what the wall time would be were they all ours and all busy."""
    return np.array([time.perf_counter(), time.process_time() / len(os.sched_getaffinity(0))])


def stamps_per_second(recipe: Recipe, data: StampSet, *, seconds: float, compiled: bool, together: int) -> np.ndarray:
    """Rate, by wall and by CPU time, of the best of several stretches: a disturbed stretch says nothing."""
    batches = Batches(
        data,
        np.arange(len(data)),
        inputs=model_inputs(recipe),
        batch_size=recipe.fit.batch_size,
        seed=1,
        augment=recipe.data.augment,
    )
    model = new_model(recipe, steps_per_epoch=len(batches))
    model.compile(optimizer=optimizer_of(recipe, steps=10_000), jit_compile=compiled, steps_per_execution=together)
    model.fit(batches, epochs=1, steps_per_epoch=together, shuffle=False, verbose=0)  # compiles
    best, until = np.zeros(2), time.monotonic() + seconds
    while time.monotonic() < until:
        began = _clocks()
        model.fit(batches, epochs=1, steps_per_epoch=STEPS, shuffle=False, verbose=0)
        best = np.maximum(best, STEPS * recipe.fit.batch_size / (_clocks() - began))
    return best


def batches_per_second(recipe: Recipe, data: StampSet) -> float:
    """Stamps a CPU second of drawing and turning alone."""
    batches = Batches(data, np.arange(len(data)), batch_size=recipe.fit.batch_size, seed=1, augment=recipe.data.augment)
    began = time.process_time()
    for i in range(len(batches)):
        batches[i]
    return len(batches) * recipe.fit.batch_size / (time.process_time() - began)


def main() -> None:
    """Read the arguments and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", nargs="+", default=["paper", "survey"])
    parser.add_argument("--seconds", type=float, default=15.0, help="for each row")
    arguments = parser.parse_args()
    stamps = np.random.default_rng(0).normal(0.0, 0.1, (20_480, 21, 21, 1)).astype(np.float32)
    data = StampSet(stamps, np.full(len(stamps), -1, np.int8), np.arange(len(stamps)), {})
    peak = gemm_rate()
    print(f"float32 matrix product: {peak[0] / 1e9:.0f} GFLOP/s, by CPU time {peak[1] / 1e9:.0f}")
    print(f"{'recipe':8} {'batch':>5} {'XLA':>4} {'steps a call':>12} {'stamps/s':>9} {'epoch':>8}", end="")
    print(f" {'by CPU: stamps/s':>17} {'epoch':>8} {'floor':>8}")
    for name in arguments.recipes:
        recipe = load_recipe(name)
        floor = EPOCH * 3.0 * flop_a_stamp(recipe) / peak[1]  # backward: twice the forward pass
        print(f"{name:8} {flop_a_stamp(recipe) / 1e6:.2f} MFLOP a stamp; drawing and turning alone: ", end="")
        print(f"{batches_per_second(recipe, data):,.0f} stamps/s")
        for compiled, together in ((False, 1), (True, 1), (False, 10), (True, 10)):
            rate = stamps_per_second(recipe, data, seconds=arguments.seconds, compiled=compiled, together=together)
            cells = f"{name:8} {recipe.fit.batch_size:5} {'yes' if compiled else 'no':>4} {together:12}"
            wall, cpu = (f"{EPOCH / one / 60:6.1f} m" for one in rate)
            print(f"{cells} {rate[0]:9.0f} {wall} {rate[1]:17.0f} {cpu} {floor / 60:6.1f} m", flush=True)


if __name__ == "__main__":
    main()
