import io
import zipfile

import numpy as np
import pytest
from stream_vae.errors import ConfigError
from stream_vae.learning.data import stampfile
from stream_vae.learning.data.source import open_source, simulated
from stream_vae.learning.data.stamps import read_stamps
from stream_vae.model.release import Preprocessing
from stream_vae.quality import Quality
from stream_vae.stages.stamp import normalise

PLAIN = Preprocessing()


@pytest.fixture
def raw():
    return np.random.default_rng(1).normal(100.0, 10.0, (50, 21, 21)).astype(np.float32)


def save(tmp_path, name="stamps.npz", **arrays):
    path = tmp_path / name
    np.savez(path, **arrays)
    return str(path)


def gather(data, preprocessing=PLAIN, *, max_stamps=1000, min_stamps=16, **options):
    source = open_source(data, preprocessing, **options)
    return read_stamps(source, max_stamps=max_stamps, min_stamps=min_stamps, seed=1)


def test_stamps_are_prepared_as_in_serving(raw, tmp_path):
    data = gather(save(tmp_path, stamps=raw))
    assert np.array_equal(data.stamps, normalise(raw[..., np.newaxis], PLAIN)[0])


def test_the_same_stamps_are_read_from_every_kind_of_file(raw, tmp_path):
    np.save(tmp_path / "a.npy", raw)
    np.savez_compressed(tmp_path / "c.npz", stamps=raw)
    files = [
        str(tmp_path / "a.npy"),
        str(tmp_path / "c.npz"),
        save(tmp_path, "f.npz", stamps=np.asfortranarray(raw)),
        save(tmp_path, "x.npz", stamps=raw[..., np.newaxis]),
        save(tmp_path, "big_endian.npz", stamps=raw.astype(">f4")),
    ]
    expected = gather(save(tmp_path, stamps=raw)).stamps
    for file in files:
        assert np.array_equal(gather(file).stamps, expected), file


def test_a_large_file_is_read_in_pieces_and_in_order(raw, tmp_path, monkeypatch):
    monkeypatch.setattr(stampfile, "CHUNK", 7)
    source = open_source(save(tmp_path, stamps=raw, labels=np.arange(50) % 3 - 1), PLAIN)
    chunks = list(source.chunks())
    assert [len(chunk.stamps) for chunk in chunks] == [7] * 7 + [1]
    assert np.concatenate([chunk.labels for chunk in chunks]).tolist() == [i % 3 - 1 for i in range(50)]
    assert np.array_equal(np.concatenate([c.stamps for c in chunks]), normalise(raw[..., np.newaxis], PLAIN)[0])


def test_a_source_can_be_read_twice(raw, tmp_path):
    source = open_source(save(tmp_path, stamps=raw), PLAIN)
    first, second = (np.concatenate([chunk.stamps for chunk in source.chunks()]) for _ in range(2))
    assert np.array_equal(first, second)


def test_larger_stamps_are_cropped_round_their_centre(tmp_path):
    large = np.random.default_rng(2).normal(size=(20, 63, 63)).astype(np.float32)
    cropped = gather(save(tmp_path, stamps=large)).stamps
    assert np.array_equal(cropped, normalise(large[:, 21:42, 21:42, np.newaxis], PLAIN)[0])


def test_integers_are_stamps_too(tmp_path):
    counts = np.random.default_rng(3).integers(0, 60_000, (20, 21, 21)).astype(np.uint16)
    assert len(gather(save(tmp_path, stamps=counts)).stamps) == 20


def test_three_channels_are_taken_where_the_recipe_wants_three(tmp_path):
    three = Preprocessing(cutouts=("difference", "science", "template"))
    stamps = np.random.default_rng(4).normal(size=(20, 21, 21, 3))
    assert gather(save(tmp_path, stamps=stamps), three).stamps.shape == (20, 21, 21, 3)


def test_unscoreable_stamps_keep_their_row_in_the_source_and_are_left_out_of_training(raw, tmp_path):
    raw[3] = np.nan
    raw[5] = 7.0
    raw[6, 0, 0] = np.nan  # one masked pixel does no harm
    path = save(tmp_path, stamps=raw, labels=np.arange(50) % 2)
    (chunk,) = open_source(path, PLAIN).chunks()
    assert np.flatnonzero(~chunk.scoreable).tolist() == [3, 5]
    assert chunk.quality[6] == Quality.MASKED_PIXELS
    data = gather(path)
    assert len(data.stamps) == 48
    assert data.labels.tolist() == [i % 2 for i in range(50) if i not in (3, 5)]
    assert (data.snapshot["stamps"], data.snapshot["used"]) == (50, 48)


def test_too_many_stamps_are_thinned_at_random_and_the_same_way_every_time(raw, tmp_path):
    path = save(tmp_path, stamps=raw, groups=np.arange(50))
    first, again = gather(path, max_stamps=20), gather(path, max_stamps=20)
    assert len(first.stamps) == 20
    assert first.groups.tolist() == again.groups.tolist() == sorted(first.groups)
    assert first.groups.max() > 25


def test_the_snapshot_says_what_the_stamps_were(raw, tmp_path):
    labels = np.array([1] * 10 + [0] * 30 + [-1] * 10)
    snapshot = gather(save(tmp_path, "night.npz", stamps=raw, labels=labels, groups=np.arange(50) // 10)).snapshot
    assert {key: snapshot[key] for key in ("kind", "name", "real", "bogus", "unlabelled", "groups")} == {
        "kind": "file",
        "name": "night.npz",
        "real": 10,
        "bogus": 30,
        "unlabelled": 10,
        "groups": 5,
    }
    assert snapshot["sha256"] != gather(save(tmp_path, stamps=raw[::-1])).snapshot["sha256"]


def test_stamps_without_groups_are_each_their_own(raw, tmp_path):
    data = gather(save(tmp_path, stamps=raw))
    assert len(np.unique(data.groups)) == 50
    assert data.snapshot["groups"] is None


def test_groups_may_be_names(raw, tmp_path):
    groups = gather(save(tmp_path, stamps=raw, groups=np.array(["night 1", "night 2"] * 25))).groups
    assert groups.tolist() == [0, 1] * 25


def test_simulated_stamps_have_labels_groups_and_the_channels_asked_for():
    source = simulated(120, Preprocessing(cutouts=("science", "difference")), seed=3)
    data = read_stamps(source, max_stamps=1000, min_stamps=16, seed=1)
    assert data.stamps.shape[1:] == (21, 21, 2)
    assert set(data.labels) == {0, 1}
    one = read_stamps(simulated(120, PLAIN, seed=3), max_stamps=1000, min_stamps=16, seed=1)
    assert one.stamps.shape[-1] == 1
    assert any(np.array_equal(one.stamps[0, ..., 0], stamp[..., 1]) for stamp in data.stamps)


BAD_ARRAYS = {
    "stamps smaller than the recipe's": (
        lambda raw: {"stamps": raw[:, :15, :15]},
        r"shape \(50, 15, 15\); \(n, 21, 21\) or \(n, 21, 21, 1\)",
    ),
    "stamps that are not square": (lambda raw: {"stamps": raw[:, :, :-1]}, "Cut square stamps"),
    "one stamp without an axis of stamps": (lambda raw: {"stamps": raw[0]}, "shape"),
    "three channels for one": (lambda raw: {"stamps": np.repeat(raw[..., None], 3, -1)}, "set preprocessing.cutouts"),
    "text for stamps": (lambda raw: {"stamps": np.full(raw.shape, "a")}, "float32"),
    "complex numbers": (lambda raw: {"stamps": raw.astype(complex)}, "float32"),
    "no array of that name": (lambda raw: {"images": raw}, r"no array `stamps`, only images"),
    "fewer labels than stamps": (lambda raw: {"stamps": raw, "labels": np.zeros(49, int)}, "one label a stamp"),
    "labels of other values": (lambda raw: {"stamps": raw, "labels": np.arange(50)}, "1 real, 0 bogus, -1 unknown"),
    "labels as text": (lambda raw: {"stamps": raw, "labels": np.full(50, "real")}, "1 real, 0 bogus, -1 unknown"),
    "more groups than stamps": (lambda raw: {"stamps": raw, "groups": np.zeros(51, int)}, "one group a stamp"),
    "only NaN": (lambda raw: {"stamps": raw * np.nan}, "0 of 50 stamps can be used"),
    "only blank stamps": (lambda raw: {"stamps": raw * 0}, "0 of 50 stamps can be used"),
    "too few stamps": (lambda raw: {"stamps": raw[:10]}, "Give at least 16 stamps"),
    "no stamps at all": (lambda raw: {"stamps": raw[:0]}, r"stamps\.npz holds no stamps"),
    "groups of NaN": (lambda raw: {"stamps": raw, "groups": np.full(50, np.nan)}, "50 of 50 groups are NaN"),
    "labels of NaN": (lambda raw: {"stamps": raw, "labels": np.full(50, np.nan)}, r"labels are \[nan"),
    "noise as text": (lambda raw: {"stamps": raw, "noise": np.full(raw.shape, "a")}, "one number a pixel"),
}


@pytest.mark.parametrize("case", BAD_ARRAYS)
def test_arrays_that_are_no_training_stamps_are_refused_with_what_to_do(case, raw, tmp_path):
    make, message = BAD_ARRAYS[case]
    with pytest.raises(ConfigError, match=message) as error:
        gather(save(tmp_path, **make(raw)))
    assert error.value.remedy


def test_pickled_objects_are_refused_unread(tmp_path):
    for name in ("stamps.npy", "stamps.npz"):
        objects = np.array([{"a": 1}, None], dtype=object)
        (np.save if name.endswith("npy") else lambda path, array: np.savez(path, stamps=array))(
            tmp_path / name, objects
        )
        with pytest.raises(ConfigError, match=r"of type object"):
            gather(str(tmp_path / name))
    objects = np.array([{"a": 1}] * 50, dtype=object)
    with pytest.raises(ConfigError, match="`labels` is of type object"):
        gather(save(tmp_path, stamps=np.zeros((50, 21, 21)), labels=objects))


@pytest.mark.parametrize("name", ["stamps.npy", "stamps.npz"])
def test_a_file_of_junk_is_refused(name, tmp_path):
    (tmp_path / name).write_bytes(b"not numpy at all")
    with pytest.raises(ConfigError, match="cannot be read as a numpy file"):
        gather(str(tmp_path / name))


def test_a_file_cut_short_is_refused(raw, tmp_path):
    whole = tmp_path / "stamps.npy"
    np.save(whole, raw)
    whole.write_bytes(whole.read_bytes()[:-4000])
    with pytest.raises(ConfigError, match="ends before its last element"):
        gather(str(whole))


def test_an_archive_whose_array_is_cut_short_is_refused(raw, tmp_path):
    np.save(tmp_path / "whole.npy", raw)
    with zipfile.ZipFile(tmp_path / "short.npz", "w") as archive:
        archive.writestr("stamps.npy", (tmp_path / "whole.npy").read_bytes()[:-4000])
    with pytest.raises(ConfigError, match="ends before its last element"):
        gather(str(tmp_path / "short.npz"))


@pytest.mark.parametrize("name", ["stamps", "labels"])
@pytest.mark.parametrize("by_columns", [False, True])
@pytest.mark.parametrize(("shape", "message"), [((10**12, 21, 21), "ends before"), ((-5, 21, 21), "its shape is")])
def test_a_head_that_promises_what_the_file_has_not_is_refused(name, by_columns, shape, message, raw, tmp_path):
    head = io.BytesIO()
    shape = shape if name == "stamps" else shape[:1]
    np.lib.format.write_array_header_1_0(head, {"descr": "<f4", "fortran_order": by_columns, "shape": shape})
    path = tmp_path / "stamps.npz"
    if name == "labels":
        np.savez(path, stamps=raw)
    with zipfile.ZipFile(path, "a" if name == "labels" else "w") as archive:
        archive.writestr(f"{name}.npy", head.getvalue() + bytes(1000))
    with pytest.raises(ConfigError, match=message) as error:
        gather(str(path))
    assert error.value.remedy
    if name == "stamps":
        (tmp_path / "stamps.npy").write_bytes(head.getvalue() + bytes(1000))
        with pytest.raises(ConfigError, match=message):
            gather(str(tmp_path / "stamps.npy"))


def test_an_archive_of_something_else_has_no_stamps(tmp_path):
    with zipfile.ZipFile(tmp_path / "stamps.npz", "w") as archive:
        archive.writestr("stamps", b"not an array")
    with pytest.raises(ConfigError, match="no array `stamps`, only nothing"):
        gather(str(tmp_path / "stamps.npz"))


def test_that_all_of_too_few_stamps_are_good_is_not_said_otherwise(raw, tmp_path):
    with pytest.raises(ConfigError, match=r"10 of 10 stamps can be used\. Give"):
        gather(save(tmp_path, stamps=raw[:10]))


def test_an_archive_with_damaged_content_is_refused(raw, tmp_path):
    path = tmp_path / "damaged.npz"
    np.savez_compressed(path, stamps=raw)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="damaged"):
        gather(str(path))


def test_a_path_that_is_nowhere_is_refused_with_what_may_be_given(tmp_path):
    with pytest.raises(ConfigError, match=r"Give `sim`, a \.npy or \.npz file of stamps, or a folder"):
        gather(str(tmp_path / "nothing.npz"))


def test_a_file_of_another_kind_is_refused(tmp_path):
    (tmp_path / "stamps.fits").write_bytes(b"SIMPLE  =")
    with pytest.raises(ConfigError, match=r"neither \.npy nor \.npz"):
        gather(str(tmp_path / "stamps.fits"))


def test_simulated_stamps_cannot_have_an_even_side():
    with pytest.raises(ConfigError, match="odd number"):
        simulated(100, Preprocessing(stamp_size=30), seed=1)


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="is empty"):
        gather(str(tmp_path))


def test_a_folder_without_alerts_is_refused_with_the_reason(tmp_path):
    (tmp_path / "a.avro").write_bytes(b"no alert")
    with pytest.raises(ConfigError, match="None of 1 packets tried") as error:
        gather(str(tmp_path))
    assert "Avro files, one a file, or of .npy or .npz files" in error.value.remedy


@pytest.mark.parametrize("survey", ["ztf", "lsst", "pgir", "turbo", "decam"])
def test_the_survey_of_a_folder_of_real_alerts_is_told_from_its_packets(survey, alerts_dir):
    source = open_source(str(alerts_dir / survey), PLAIN)
    assert source.name == f"{survey} ({survey})"


def test_real_alerts_become_stamps_grouped_by_object(alerts_dir):
    data = gather(str(alerts_dir / "ztf" / "kowalski"), min_stamps=8)
    assert len(data.stamps) == data.snapshot["stamps"] == 36
    assert set(data.labels) == {-1}
    assert np.abs(data.stamps).max() <= 1.0


def test_a_packet_that_is_no_alert_takes_its_row_and_no_more(alerts_dir, tmp_path):
    packets = sorted((alerts_dir / "ztf" / "kowalski").glob("*.avro"))[:4]
    for i, packet in enumerate(packets):
        (tmp_path / f"{i}.avro").write_bytes(packet.read_bytes() if i != 2 else b"Obj\x01 but no more")
    (chunk,) = open_source(str(tmp_path), PLAIN, survey="ztf").chunks()
    assert chunk.scoreable.tolist() == [True, True, False, True]


def test_lsst_noise_maps_are_as_large_as_the_scatter_of_their_pixels(alerts_dir):
    source = open_source(str(alerts_dir / "lsst"), PLAIN, noise=True)
    data = read_stamps(source, max_stamps=None, min_stamps=8, seed=1, noise=True)
    border = np.ones((21, 21), bool)
    border[3:-3, 3:-3] = False  # away from the candidate
    pixels, noise = data.stamps[:, border, 0], data.noise[:, border, 0]
    scatter = 1.4826 * np.median(np.abs(pixels - np.median(pixels, axis=1, keepdims=True)), axis=1)
    assert np.median(scatter / np.nanmedian(noise, axis=1)) == pytest.approx(1.0, abs=0.2)


def test_ztf_alerts_have_no_noise_maps(alerts_dir):
    source = open_source(str(alerts_dir / "ztf" / "kowalski"), PLAIN, noise=True)
    (chunk,) = source.chunks()
    assert np.isnan(chunk.noise).all()


def test_noise_is_divided_by_what_its_stamp_was_divided_by(raw, tmp_path):
    raw[4, 0, 0] = np.nan
    noise = np.random.default_rng(8).uniform(1.0, 2.0, raw.shape).astype(np.float32)
    noise[4, 1, 1], noise[4, 1, 2] = 0.0, np.inf
    source = open_source(save(tmp_path, stamps=raw, noise=noise), PLAIN, noise=True)
    (chunk,) = source.chunks()
    scale = np.nanmax(np.abs(raw - np.nanmedian(raw, axis=(1, 2), keepdims=True)), axis=(1, 2))
    assert chunk.noise[0, ..., 0] == pytest.approx(noise[0] / scale[0], rel=1e-4)
    assert np.argwhere(np.isnan(chunk.noise[4, ..., 0])).tolist() == [[0, 0], [1, 1], [1, 2]]


def test_noise_kinds_and_ratios_of_the_wrong_shape_are_refused(raw, tmp_path):
    for name, column in (("noise", raw[:, :-1]), ("kinds", np.array(["a"])), ("snr", np.array(["a"] * 50))):
        with pytest.raises(ConfigError, match=name) as error:
            open_source(save(tmp_path, stamps=raw, **{name: column}), PLAIN)
        assert error.value.remedy


def test_labels_come_to_alerts_by_their_ids(alerts_dir, tmp_path):
    folder = alerts_dir / "ztf" / "kowalski"
    source = open_source(str(folder), PLAIN)
    ids = [source.describe(row)["alert"] for row in range(3)]
    table = tmp_path / "labels.csv"
    table.write_text(f"alert_id,label,provenance\n{ids[0]},1,human\n{ids[2]},0,human\nno such alert,1,human\n")
    data = gather(str(folder), min_stamps=8, labels=table)
    assert data.labels[:4].tolist() == [1, -1, 0, -1]
    assert data.snapshot["labels"] == {"human": {1: 2, 0: 1}}


def test_labels_of_other_alerts_are_refused_and_not_passed_over(alerts_dir, tmp_path):
    table = tmp_path / "labels.csv"
    table.write_text("alert_id,label,provenance\nZTF18abcdefg,1,human\nb,0,human\nc,-1,human\n")
    with pytest.raises(ConfigError, match=r"None of the 2 labels names an alert.*not of its object"):
        gather(str(alerts_dir / "ztf" / "kowalski"), min_stamps=8, labels=table)


def test_confluent_packets_are_refused_with_what_to_do_about_their_schema(alerts_dir):
    with pytest.raises(ConfigError, match=r"schema is in a registry.*reservoir export"):
        open_source(str(alerts_dir / "lsst_wire"), PLAIN)


def test_simulated_stamps_bring_noise_kinds_and_ratios():
    data = read_stamps(simulated(80, PLAIN, seed=3), max_stamps=None, min_stamps=16, seed=1, noise=True)
    assert data.noise.shape == data.stamps.shape
    assert len(set(data.kinds)) > 1
    assert data.snr.min() > 0


def test_a_long_simulation_comes_in_pieces_whose_images_are_different(monkeypatch):
    from stream_vae.learning.data import source as module

    monkeypatch.setattr(module, "PIECE", 60)
    source = simulated(100, PLAIN, seed=3)
    chunks = list(source.chunks())
    assert [len(chunk.stamps) for chunk in chunks] == [60, 40]
    assert not set(chunks[0].groups) & set(chunks[1].groups)
    assert np.array_equal(next(source.chunks()).stamps, chunks[0].stamps)
