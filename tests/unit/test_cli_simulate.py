"""``stream-vae simulate``: files that the other commands take, and errors that say what to do."""

import csv
from pathlib import Path

import numpy as np
import pytest
from stream_vae.cli.simulate import simulate
from stream_vae.cutout import read_fits
from stream_vae.errors import ConfigError
from stream_vae.labels import Provenance, read_labels
from stream_vae.learning.data.stampfile import check_file, stamps_from_file
from stream_vae.model.release import Preprocessing
from stream_vae.sky import simulate_stamps


def _run(**options: object) -> None:
    defaults = {
        "out": None,
        "alerts": None,
        "images": None,
        "count": 25,
        "seed": 4,
        "workers": 1,
        "size": 21,
        "all_cutouts": False,
    }
    simulate(
        **(
            defaults
            | {
                "all_cutouts": False,
                "real_fraction": None,
                "fading": None,
                "like": None,
                "form": "candidate",
                "as_json": True,
            }
            | options
        )
    )


def test_the_file_has_what_training_and_reports_read(tmp_path: Path) -> None:
    _run(out=tmp_path / "some.npz")
    preprocessing = Preprocessing(stamp_size=21, cutouts=("difference",))
    assert check_file(tmp_path / "some.npz", preprocessing).noise
    (chunk,) = stamps_from_file(tmp_path / "some.npz", preprocessing, noise=True).chunks()
    expected = simulate_stamps(25, seed=4)
    assert np.array_equal(chunk.labels, expected.labels)
    assert chunk.kinds.tolist() == expected.kinds.tolist()
    assert np.array_equal(chunk.snr, expected.snr)
    assert chunk.noise.shape == chunk.stamps.shape


def test_all_cutouts_are_three_channels(tmp_path: Path) -> None:
    _run(out=tmp_path / "some.npz", all_cutouts=True)
    with np.load(tmp_path / "some.npz") as file:
        assert file["stamps"].shape == file["noise"].shape == (25, 21, 21, 3)


@pytest.mark.parametrize("form", ["candidate", "ztf"])
def test_alerts_have_a_table_of_their_labels(tmp_path: Path, form: str) -> None:
    _run(alerts=tmp_path / "night", form=form, count=7)
    table = read_labels(tmp_path / "night" / "labels.csv").resolve()
    assert {f"{alert_id}.avro" for alert_id in table} == {path.name for path in (tmp_path / "night").glob("*.avro")}
    assert len(table) == 7
    assert {label.provenance for label in table.values()} == {Provenance.SIMULATION}


def test_stamps_can_be_found_again_in_the_images_they_are_cut_from(tmp_path: Path) -> None:
    _run(images=tmp_path / "fields", count=1)
    image, noise = (
        read_fits((tmp_path / "fields" / f"00000-{name}.fits").read_bytes()) for name in ("difference", "noise")
    )
    assert image.shape == noise.shape
    stamps = simulate_stamps(5, seed=4)
    assert set(stamps.groups.tolist()) == {0}
    with (tmp_path / "fields" / "00000-detected.csv").open() as file:
        detected = {(int(line["x"]), int(line["y"])): line for line in csv.DictReader(file)}
    columns = zip(stamps.x.astype(int), stamps.y.astype(int), stamps.labels, stamps.kinds, strict=True)
    for stamp, (x, y, label, kind) in zip(stamps.stamps, columns, strict=True):
        assert np.array_equal(image[y - 10 : y + 11, x - 10 : x + 11], stamp[..., 0], equal_nan=True)
        assert (int(detected[x, y]["label"]), detected[x, y]["kind"]) == (label, kind)
    with (tmp_path / "fields" / "00000-injected.csv").open() as file:
        assert {line["kind"] for line in csv.DictReader(file)} <= {"transient", "variable", "asteroid", "fading"}


def test_fading_sources_can_be_left_out(tmp_path: Path) -> None:
    _run(out=tmp_path / "some.npz", fading=0.0)
    with np.load(tmp_path / "some.npz") as file:
        assert file["positive"].all()
        assert "fading" not in file["kinds"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "--out"),
        ({"out": Path("a.npz"), "alerts": Path("b")}, "--out"),
        ({"out": Path("a.npz"), "size": 20}, "--size 20"),
        ({"out": Path("a.csv")}, "--out a.csv"),
        ({"out": Path("a.npz"), "like": Path("c.npy"), "fading": 0.2}, "--fading"),
        ({"alerts": Path("b"), "like": Path("c.npy")}, "--like"),
        ({"out": Path("a.npz"), "like": Path("absent.npy")}, "--like absent.npy"),
    ],
)
def test_what_does_not_go_together_is_named(options: dict, said: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=said):
        _run(**options)
    assert not list(tmp_path.iterdir())


def test_a_file_to_be_like_must_have_enough_stamps_of_the_size(tmp_path: Path) -> None:
    np.save(tmp_path / "few.npy", np.zeros((3, 21, 21), np.float32))
    np.save(tmp_path / "large.npy", np.zeros((60, 31, 31), np.float32))
    np.savez(tmp_path / "other.npz", images=np.zeros((60, 21, 21), np.float32))
    for name, said in (("few.npy", "at least 50"), ("large.npy", "--size"), ("other.npz", "stamps")):
        with pytest.raises(ConfigError, match=said):
            _run(out=tmp_path / "some.npz", like=tmp_path / name)


def test_a_file_to_be_like_whose_head_promises_too_much_is_refused(tmp_path: Path) -> None:
    head = {"descr": "<f4", "fortran_order": False, "shape": (10**12, 21, 21)}
    with (tmp_path / "huge.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, head)
    with pytest.raises(ConfigError, match="ends before its last element"):
        _run(out=tmp_path / "some.npz", like=tmp_path / "huge.npy")
