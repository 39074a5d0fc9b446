import numpy as np
import pytest
from stream_vae.errors import ConfigError
from stream_vae.learning.data import files
from stream_vae.learning.data.files import Files
from stream_vae.learning.data.source import open_source
from stream_vae.learning.data.stamps import read_stamps
from stream_vae.model.release import Preprocessing
from stream_vae.stages.stamp import normalise

PLAIN = Preprocessing()


@pytest.fixture
def raw():
    return np.random.default_rng(1).normal(100.0, 10.0, (90, 21, 21)).astype(np.float32)


def gather(folder, **options):
    return read_stamps(open_source(str(folder), PLAIN, **options), max_stamps=None, min_stamps=16, seed=1, noise=False)


def test_shards_are_one_set_in_the_order_of_their_names(raw, tmp_path):
    for i, name in enumerate(("b.npy", "a.npy", "deep/c.npy")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        np.save(tmp_path / name, raw[30 * i : 30 * i + 30])
    (tmp_path / "README.txt").write_text("what this is")
    data = gather(tmp_path)
    expected = np.concatenate([raw[30:60], raw[:30], raw[60:]])
    assert np.array_equal(data.stamps, normalise(expected[..., np.newaxis], PLAIN)[0])
    assert len(np.unique(data.groups)) == 90
    assert data.snapshot["shards"] == 3


@pytest.mark.parametrize("names", [("night 1", "night 2", "night 3"), (10, 20, 30)])
def test_equal_groups_of_two_shards_are_one_group(names, raw, tmp_path):
    one, two, three = names
    np.savez(tmp_path / "1.npz", stamps=raw[:40], groups=np.array([one, two] * 20), labels=np.zeros(40, int))
    np.savez(tmp_path / "2.npz", stamps=raw[40:80], groups=np.array([two, three] * 20), labels=np.ones(40, int))
    data = gather(tmp_path)
    assert len(np.unique(data.groups)) == 3
    assert data.groups[1] == data.groups[40] != data.groups[0]
    assert (data.snapshot["real"], data.snapshot["bogus"]) == (40, 40)


BROKEN = {
    "cut short": (lambda path, _: path.write_bytes(path.read_bytes()[:-4000]), r"b\.npy: `stamps` ends before"),
    "of another shape": (lambda path, _: np.save(path, np.zeros((9, 31, 31), "f4")), r"b\.npy holds stamps of shape"),
    "of another type": (lambda path, raw: np.save(path, raw.astype("f8")), "type float64"),
    "of one channel too many": (lambda path, _: np.save(path, np.zeros((9, 21, 21, 3))), r"b\.npy: stamps of shape"),
    "of junk": (lambda path, _: path.write_bytes(b"junk"), r"b\.npy cannot be read"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_shard_is_named_before_anything_is_read(case, raw, tmp_path):
    damage, message = BROKEN[case]
    np.save(tmp_path / "a.npy", raw)
    np.save(tmp_path / "b.npy", raw)
    damage(tmp_path / "b.npy", raw)
    with pytest.raises(ConfigError, match=message) as error:
        open_source(str(tmp_path), PLAIN)
    assert error.value.remedy


def test_a_shard_without_groups_among_others_with_groups_is_refused(raw, tmp_path):
    np.savez(tmp_path / "a.npz", stamps=raw, groups=np.zeros(90, int))
    np.savez(tmp_path / "b.npz", stamps=raw)
    with pytest.raises(ConfigError, match="in every shard or in none"):
        open_source(str(tmp_path), PLAIN)


def test_parquet_is_refused_with_what_to_write_instead(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(ConfigError, match=r"numpy\.save"):
        open_source(str(tmp_path), PLAIN)


def test_labels_by_alert_id_are_refused_where_there_are_no_alerts(raw, tmp_path):
    np.save(tmp_path / "a.npy", raw)
    for data in (tmp_path, tmp_path / "a.npy", "sim"):
        with pytest.raises(ConfigError, match="names alerts"):
            open_source(str(data), PLAIN, labels=tmp_path / "labels.csv")


def test_a_folder_of_very_many_files_is_walked_and_not_listed(tmp_path, monkeypatch):
    for name in ("b/2", "b/1", "a/x/1", "c", ".hidden", "a/0"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    listed = Files(tmp_path)
    monkeypatch.setattr(files, "MOST_LISTED", 2)
    walked = Files(tmp_path)
    order = sorted(path for path in tmp_path.rglob("*") if path.is_file() and not path.name.startswith("."))
    assert list(listed) == list(walked) == order
    assert len(listed) == len(walked) == 5
    assert walked.at([1, 3]) == [order[1], order[3]]
    assert [len(batch) for batch in walked.batches(2)] == [2, 2, 1]
