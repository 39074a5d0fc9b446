import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from stream_vae.errors import ConfigError
from stream_vae.learning.batches import Batches
from stream_vae.learning.data import split, spool
from stream_vae.learning.data.source import open_source
from stream_vae.learning.data.split import split_by_hash
from stream_vae.learning.data.stamps import StampSet, Thinning, read_stamps
from stream_vae.model.release import Preprocessing

PLAIN = Preprocessing()


@pytest.fixture
def raw():
    return np.random.default_rng(1).normal(100.0, 10.0, (300, 21, 21)).astype(np.float32)


@pytest.fixture
def small_memory(monkeypatch):
    monkeypatch.setattr(spool, "IN_MEMORY_BYTES", 100_000)


@pytest.fixture
def place(tmp_path):
    (tmp_path / "spool").mkdir()
    return tmp_path / "spool"


def gather(path, folder=None, **options):
    source = open_source(str(path), PLAIN, noise=options.get("noise", False))
    return read_stamps(source, max_stamps=None, min_stamps=16, seed=1, spool=folder, **options)


def save(tmp_path, **arrays):
    np.savez(tmp_path / "stamps.npz", **arrays)
    return tmp_path / "stamps.npz"


def on_disk(stamps, tmp_path):
    stamps.astype(np.float16).tofile(tmp_path / "x.raw")
    mapped = np.memmap(tmp_path / "x.raw", np.float16, "r").reshape(stamps.shape)
    return StampSet(mapped, np.zeros(len(stamps), np.int8), np.arange(len(stamps)), {})


def test_a_set_too_large_for_memory_is_the_same_set_on_disk(raw, tmp_path, small_memory, place):
    raw[7] = np.nan
    columns = {"labels": np.arange(300) % 3 - 1, "groups": np.arange(300) // 10, "snr": np.arange(300.0)}
    path = save(
        tmp_path, stamps=raw, noise=np.full_like(raw, 2.0), kinds=np.array(["dipole", "moving"] * 150), **columns
    )
    memory, disk = gather(path, noise=True), gather(path, place, noise=True)
    assert disk.on_disk
    assert not memory.on_disk
    assert disk.snapshot == memory.snapshot
    assert len(disk) == 299
    for name in ("labels", "groups", "kinds", "snr"):
        assert np.array_equal(getattr(disk, name), getattr(memory, name))
    rows = np.array([250, 3, 4])
    assert disk.take(rows).dtype == np.float32
    assert disk.take(rows) == pytest.approx(memory.take(rows), abs=2.5e-4)
    assert disk.take_noise(rows) == pytest.approx(memory.take_noise(rows), rel=1e-3)


def test_a_set_that_fits_stays_in_memory_and_leaves_no_file(raw, tmp_path, place):
    assert not gather(save(tmp_path, stamps=raw), place).on_disk
    assert not list(place.iterdir())


def test_too_little_disk_is_found_before_the_work_and_named(raw, tmp_path, small_memory, place, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(ConfigError, match=r"300 stamps need 0\.0 GB of disk.*--scratch DIR"):
        gather(save(tmp_path, stamps=raw), place)


def test_a_disk_that_fills_up_meanwhile_is_an_error_with_a_remedy(raw, tmp_path, small_memory, place):
    source = open_source(str(save(tmp_path, stamps=raw)), PLAIN)
    place.rmdir()
    columns = spool.DiskColumns(place)
    (chunk,) = source.chunks()
    with pytest.raises(ConfigError, match="cannot be written to"):
        columns.add("stamps", chunk.stamps)


def test_an_epoch_from_disk_shows_every_stamp_once_mixed_over_the_whole_set(tmp_path, monkeypatch):
    from stream_vae.learning import batches as module

    monkeypatch.setattr(module, "BLOCK", 4)
    monkeypatch.setattr(module, "WINDOW", 8)
    data = on_disk(np.arange(512, dtype=np.float32).reshape(512, 1, 1, 1), tmp_path)
    rows = np.arange(1, 512, 2)
    batches = Batches(data, rows, batch_size=10, seed=1, augment=True)
    first = np.concatenate([batches[i][0].ravel() for i in range(len(batches))])
    batches.on_epoch_end()
    second = np.concatenate([batches[i][0].ravel() for i in range(len(batches))])
    assert len(first) == 250
    assert len(set(first)) == 250
    assert set(first) <= set(rows)
    assert not np.array_equal(first, second)
    reach = [np.ptp(first[i : i + 10]) for i in range(0, 250, 10)]
    assert np.median(reach) > 250  # a batch spans half the set and more


def test_a_later_epoch_is_the_same_whether_or_not_the_earlier_ones_were_seen(tmp_path):
    data = on_disk(np.random.default_rng(0).normal(size=(64, 5, 5, 1)).astype(np.float32), tmp_path)
    options = {"batch_size": 16, "seed": 1, "augment": True}
    seen, resumed = Batches(data, np.arange(64), **options), Batches(data, np.arange(64), first_epoch=1, **options)
    for i in range(4):
        seen[i]
    seen.on_epoch_end()
    assert all(np.array_equal(seen[i][0], resumed[i][0]) for i in range(4))


def test_noise_is_turned_with_its_stamp_and_labels_stay(tmp_path):
    stamps = np.random.default_rng(0).normal(size=(32, 5, 5, 1)).astype(np.float32)
    labels = (np.arange(32) % 3 - 1).astype(np.int8)
    data = StampSet(stamps, labels, np.arange(32), {}, noise=2 * stamps)
    batches = Batches(data, np.arange(32), inputs=("stamp", "noise", "label"), batch_size=16, seed=1, augment=True)
    (batch,) = batches[0]
    assert np.array_equal(batch["noise"], 2 * batch["stamp"])
    for stamp, label in zip(batch["stamp"], batch["label"], strict=True):
        (row,) = [i for i in range(32) if np.isclose(stamps[i].sum(), stamp.sum(), atol=1e-5)]
        assert labels[row] == label


def test_a_split_by_hash_keeps_groups_whole_and_the_shares_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(split, "_PIECE", 1000)
    groups = np.repeat(np.arange(2000), 5)
    labels = (np.arange(10_000) % 2).astype(np.int8)
    options = {"validation_fraction": 0.15, "test_fraction": 0.2, "folder": tmp_path}
    parts = split_by_hash(groups, labels, seed=1, **options)
    rows = [np.array(part) for part in (parts.train, parts.validation, parts.test)]
    assert sorted(np.concatenate(rows)) == list(range(10_000))
    assert [len(part) / 10_000 for part in rows] == pytest.approx([0.65, 0.15, 0.2], abs=0.03)
    assert not set(groups[rows[0]]) & set(groups[rows[1]])
    assert not set(groups[rows[0]]) & set(groups[rows[2]])
    again, other = (split_by_hash(groups, labels, seed=seed, **options) for seed in (1, 2))
    assert np.array_equal(again.train, rows[0])
    assert not np.array_equal(other.train, rows[0])


def test_few_groups_are_parted_by_size_where_a_hash_would_leave_a_part_empty(tmp_path):
    groups, labels = np.repeat([7, 8, 9], 100), (np.arange(300) % 2).astype(np.int8)
    parts = split_by_hash(groups, labels, validation_fraction=0.15, test_fraction=0.15, seed=1, folder=tmp_path)
    assert [len(part) for part in (parts.train, parts.validation, parts.test)] == [100, 100, 100]


def test_thinning_chooses_just_so_many_from_anywhere():
    chosen = np.zeros(100)
    for seed in range(200):
        thinning = Thinning(100, 10, np.random.default_rng(seed))
        mask = np.concatenate([thinning.next(30), thinning.next(70)])
        assert mask.sum() == 10
        chosen += mask
    assert chosen.min() > 5
    assert Thinning(5, None, np.random.default_rng(1)).next(5).all()


def test_simulated_stamps_that_are_added_stand_at_the_end_and_are_not_counted_as_data(
    raw, tmp_path, small_memory, place
):
    path = save(tmp_path, stamps=raw)
    added = open_source("sim", PLAIN, simulated_stamps=64, seed=5)
    for folder in (None, place):
        data = gather(path, folder, added=added)
        assert (len(data), data.added) == (364, 64)
        assert data.snapshot["used"] == 300
        assert set(data.labels[:300]) == {-1}
        assert set(data.labels[300:]) == {0, 1}


def test_noise_that_is_asked_for_and_not_there_is_refused(raw, tmp_path):
    with pytest.raises(ConfigError, match=r"no noise maps.*array `noise`"):
        gather(save(tmp_path, stamps=raw), noise=True)


def test_columns_of_another_length_are_refused():
    stamps = np.zeros((4, 5, 5, 1), np.float32)
    with pytest.raises(ConfigError, match="3 labels for 4 stamps"):
        StampSet(stamps, np.zeros(3, np.int8), np.arange(4), {})
    with pytest.raises(ConfigError, match="Noise of shape"):
        StampSet(stamps, np.zeros(4, np.int8), np.arange(4), {}, noise=stamps[..., 0])


def test_what_an_earlier_run_left_in_the_folder_does_not_come_back(raw, tmp_path, small_memory, place):
    assert len(gather(save(tmp_path, stamps=raw[:200]), place)) == 200
    assert len(gather(save(tmp_path, stamps=raw), place)) == 300
