"""Time the encoder on a GPU (or whatever Keras' JAX backend computes on) by batch size, against its floors.

    KERAS_BACKEND=jax python tests/bench/encoder_device.py --json out.json

For each batch size: stamps a second with the stamps already on the device; with stamps handed over as float32 and as
float16 and the codes brought back, one batch after the other; and the same with the next batch handed over before the
last codes are fetched. Beside them ONNX Runtime on one thread and on all cores of the same machine. Floors: bytes of a
stamp over the measured rate of a large transfer, every layer's output written and read once over the rate of a large
copy, and multiplications over the rate of a large matrix product. Medians of repeated runs.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from stream_vae.backends.onnx import open_session
from stream_vae.learning.export import write_encoder
from stream_vae.learning.fit import new_model
from stream_vae.learning.recipe import load_recipe
from stream_vae.model.backend import keras
from train_epoch import best_rate, copy_rate, matrix_rate

AHEAD = 4
"""Batches under way at a time where they overlap."""


def median_s(work: Callable[[], Any], seconds: float, least: int = 5) -> float:
    """Seconds of a call: the median of as many as fit."""
    work()
    took, until = [], time.monotonic() + seconds
    while time.monotonic() < until or len(took) < least:
        began = time.perf_counter()
        work()
        took.append(time.perf_counter() - began)
    return statistics.median(took)


def compiled(encoder: Any) -> Callable[[Any], Any]:
    """The encoder as one compiled function of stamps in any float type."""
    weights = [[variable.value for variable in group] for group in (encoder.trainable_variables, [])]

    @jax.jit
    def encode(trainable: Any, fixed: Any, stamps: Any) -> Any:
        (z_mean, z_log_var), _ = encoder.stateless_call(trainable, fixed, stamps.astype("float32"))
        return z_mean, z_log_var

    return lambda stamps: encode(*weights, stamps)


def fetched(codes: Any) -> tuple[np.ndarray, ...]:
    return tuple(np.asarray(head) for head in codes)


def overlapping(encode: Callable[[Any], Any], batches: list[np.ndarray]) -> None:
    """Hand over several batches before the first codes are fetched."""
    under_way: list[Any] = []
    for batch in batches:
        under_way.append(encode(jax.device_put(batch)))
        if len(under_way) == AHEAD:
            fetched(under_way.pop(0))
    for codes in under_way:
        fetched(codes)


def transfer_rates() -> tuple[float, float]:
    """Bytes a second to the device and back."""
    array = np.random.default_rng(0).normal(size=1 << 26).astype(np.float32)
    there = jax.device_put(array)
    to = best_rate(lambda: jax.device_put(array).block_until_ready(), array.nbytes)[0]
    back = best_rate(lambda: np.asarray(there + 1.0), array.nbytes)[0]  # a new array each time: copies are kept
    return float(to), float(back)


def floors(encoder: Any) -> dict[str, float]:
    """Stamps a second that each limit alone would allow."""
    layers = [layer for layer in encoder.layers if hasattr(layer, "kernel")]
    sizes = [float(np.prod(layer.output.shape[1:])) for layer in layers]
    flop = sum(
        2.0 * float(np.prod(layer.kernel.shape)) * float(np.prod(layer.output.shape[1:-1] or (1,))) for layer in layers
    )
    pixels = float(np.prod(encoder.input_shape[1:]))
    to, back = transfer_rates()
    codes = sizes[-1] * 4.0 * 2.0
    return {
        "transfer_float32": 1.0 / (4.0 * pixels / to + codes / back),
        "transfer_float16": 1.0 / (2.0 * pixels / to + codes / back),
        "memory": copy_rate()[0] / (4.0 * (pixels + 2.0 * sum(sizes))),
        "arithmetic": matrix_rate()[0] / flop,
        "bytes_a_second_to_device": to,
        "bytes_a_second_back": back,
        "flop_a_stamp": flop,
    }


def main() -> None:
    """Read the arguments and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[16, 64, 256, 1024, 4096, 16384, 65536])
    parser.add_argument("--seconds", type=float, default=1.0, help="for each cell")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    model = new_model(load_recipe("paper"), steps_per_epoch=1)
    encode = compiled(model.encoder)
    limits = floors(model.encoder)
    print(
        f"on {jax.devices()[0].device_kind}; floors, stamps/s:", {k: f"{v:.3g}" for k, v in limits.items()}, flush=True
    )
    columns = ["batch", "resident", "float32", "float16", "float16 ahead", "ONNX, 1 thread", "ONNX, all cores"]
    print(" | ".join(f"{name:>15}" for name in columns), flush=True)
    rows = []
    with tempfile.TemporaryDirectory(prefix="stream-vae-bench-") as name:
        write_encoder(model, Path(name) / "encoder.onnx")
        sessions = [open_session(Path(name) / "encoder.onnx", threads) for threads in (1, os.cpu_count() or 1)]
        for size in arguments.batch_sizes:
            stamps = np.random.default_rng(1).normal(0.0, 0.1, (size, 21, 21, 1)).astype(np.float32)
            there, half = jax.device_put(stamps), stamps.astype(np.float16)
            worst = np.abs(fetched(encode(stamps))[0] - sessions[0].run(["z_mean"], {"stamp": stamps})[0]).max()
            seconds = [
                median_s(lambda there=there: jax.block_until_ready(encode(there)), arguments.seconds),
                median_s(lambda stamps=stamps: fetched(encode(jax.device_put(stamps))), arguments.seconds),
                median_s(lambda half=half: fetched(encode(jax.device_put(half))), arguments.seconds),
                median_s(lambda half=half: overlapping(encode, [half] * 32), arguments.seconds) / 32,
                *(
                    median_s(lambda s=s, x=stamps: s.run(None, {"stamp": x}), arguments.seconds, least=3)
                    for s in sessions
                ),
            ]
            rates = [size / each for each in seconds]
            print(
                " | ".join(f"{cell:15,.0f}" for cell in (size, *rates)), f"| worst difference {worst:.1e}", flush=True
            )
            rows.append(dict(zip(columns, (size, *rates), strict=True)) | {"worst_difference": float(worst)})
    if arguments.json is not None:
        found = {"device": jax.devices()[0].device_kind, "keras": keras.__version__, "jax": jax.__version__}
        arguments.json.write_text(json.dumps(found | {"floors": limits, "rows": rows}, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
