"""Stacks of batches: the same stamps in the same order, turned the same way, and the same model from them."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from stream_vae.learning.batches import Batches, turn
from stream_vae.learning.data.stamps import StampSet
from stream_vae.learning.together import batches_together, turn_each
from stream_vae.model.backend import keras

ON_JAX = Path(__file__).parent / "fit_on_jax.py"


def numbered(count):
    """Stamps that say which they are, and which way up."""
    stamps = np.arange(count * 9, dtype=np.float32).reshape(count, 3, 3, 1)
    return StampSet(stamps, (np.arange(count) % 3 - 1).astype(np.int8), np.arange(count), {}, noise=stamps + 0.5)


def one_by_one(batches):
    return [batches[i][0] for i in range(len(batches))]


def unstacked(batches):
    """The batches of stacks, turned here."""
    for (stack,) in (batches[i] for i in range(len(batches))):
        for i in range(int(stack["steps"])):
            which = stack["turn"][i].astype(np.int64)
            yield {
                name: turn(stack[name][i].astype(np.float32), which) if stack[name].ndim == 5 else stack[name][i]
                for name in ("stamp", "noise", "label")
            }


@pytest.mark.parametrize("together", [2, 3, 7, 100])
def test_stacks_hold_the_same_batches_in_the_same_order(together):
    options = {"inputs": ("stamp", "noise", "label"), "batch_size": 8, "seed": 3, "augment": True}
    single = Batches(numbered(59), np.arange(59), **options)
    stacks = Batches(numbered(59), np.arange(59), together=together, **options)
    for _ in range(2):
        expected, found = one_by_one(single), list(unstacked(stacks))
        assert len(expected) == len(found) == 7
        for one, other in zip(expected, found, strict=True):
            assert all(np.array_equal(one[name], other[name]) for name in one)
        single.on_epoch_end()
        stacks.on_epoch_end()


def test_all_stacks_of_an_epoch_have_one_shape_and_padding_is_no_step():
    stacks = Batches(numbered(59), np.arange(59), batch_size=8, seed=3, augment=False, together=3)
    items = [stacks[i][0] for i in range(len(stacks))]
    assert [item["stamp"].shape for item in items] == [(3, 8, 3, 3, 1)] * 3
    assert [int(item["steps"]) for item in items] == [3, 3, 1]
    assert all((item["turn"] == 0).all() for item in items)


def test_a_stack_can_be_asked_for_again_and_out_of_order():
    stacks = Batches(numbered(59), np.arange(59), batch_size=8, seed=3, augment=True, together=2)
    first, third = stacks[0][0], stacks[2][0]
    assert np.array_equal(stacks[0][0]["stamp"], first["stamp"])
    _ = stacks[1]
    assert np.array_equal(stacks[2][0]["stamp"], third["stamp"])


def test_stamps_on_disk_are_handed_over_as_they_are_stored(tmp_path):
    stamps = np.lib.format.open_memmap(tmp_path / "stamps.npy", "w+", np.float16, (40, 3, 3, 1))
    stamps[:] = np.random.default_rng(0).normal(size=stamps.shape)
    data = StampSet(stamps, np.full(40, -1, np.int8), np.arange(40), {})
    options = {"batch_size": 8, "seed": 1, "augment": True}
    (stack,) = Batches(data, np.arange(40), together=5, **options)[0]
    assert stack["stamp"].dtype == np.float16
    for i, batch in enumerate(one_by_one(Batches(data, np.arange(40), **options))):
        assert np.array_equal(turn(stack["stamp"][i].astype(np.float32), stack["turn"][i].astype(np.int64)), batch)


def test_the_backend_turns_images_as_numpy_does():
    images, which = np.random.default_rng(0).normal(size=(16, 5, 5, 3)).astype(np.float32), np.arange(16) % 8
    assert np.array_equal(keras.ops.convert_to_numpy(turn_each(images, which)), turn(images, which))


def test_where_a_loop_would_be_no_gain_batches_come_one_by_one():
    assert batches_together(64, 1764) == 1


@pytest.mark.timeout(600)  # 25 s of CPU time, most of it compiling
@pytest.mark.skipif(find_spec("jax") is None, reason="JAX is not installed: pip install 'stream-vae[dev]'")
def test_on_jax_a_compiled_loop_over_stacks_fits_the_model_that_keras_fits_and_its_graphs_agree(tmp_path):
    """In a process of its own: Keras takes one backend a process. It also looks for full precision in what is run."""
    environment = os.environ | {"KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, ON_JAX, tmp_path], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    single, stacked = found["losses"]
    assert np.allclose(single, stacked, rtol=1e-3)
    assert single[2] < single[0]
    assert found["rounding"] < 1e-5
    assert found["precision"] == "HIGHEST"
