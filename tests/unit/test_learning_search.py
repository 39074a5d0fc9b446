"""The search: its distance, its bounded memory, and what it refuses; with a release of random weights."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import stream_vae.cli.similar  # noqa: F401 - registers the command
from stream_vae.alert import Codes
from stream_vae.cli import app
from stream_vae.errors import ConfigError
from stream_vae.learning import search
from stream_vae.learning.search import find_similar, wasserstein
from stream_vae.model.store import ReleaseStore
from typer.testing import CliRunner

from releases import make_release

RNG = np.random.default_rng(5)
STAMPS = RNG.normal(size=(300, 21, 21)).astype(np.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("search")
    make_release(ReleaseStore(str(folder / "store")), folder / "release")
    twins = STAMPS[:3] + RNG.normal(size=(3, 21, 21)).astype(np.float32) * 0.01
    blank = np.zeros((1, 21, 21), np.float32)
    labels = np.array([1] * 3 + [-1] * 301, np.int8)
    np.savez(folder / "night.npz", stamps=np.concatenate([STAMPS, blank, twins]), labels=labels)
    return folder


def search_in(folder: Path, *to: str, **options: int) -> search.Answer:
    named = [f"{folder / 'night.npz'}:{rows}" for rows in to]
    return find_similar(str(folder / "store"), None, named, str(folder / "night.npz"), progress=False, **options)


def test_the_distance_is_zero_for_equal_posteriors_only_and_counts_the_deviations() -> None:
    mean = RNG.normal(size=(4, 3)).astype(np.float32)
    log_var = RNG.normal(size=(4, 3)).astype(np.float32)
    distance, which = wasserstein(Codes(mean, log_var), Codes(mean[::-1], log_var[::-1]))
    np.testing.assert_array_equal(distance, 0.0)
    assert which.tolist() == [3, 2, 1, 0]
    wider, _ = wasserstein(Codes(mean[:1], log_var[:1] + 2 * np.log(2.0)), Codes(mean[:1], log_var[:1]))
    assert wider[0] == pytest.approx(np.linalg.norm(np.exp(0.5 * log_var[0])), rel=1e-5)


def test_the_twin_of_a_seed_comes_first_and_the_seed_itself_not_at_all(folder: Path) -> None:
    found = search_in(folder, "0", "1", top=10)
    assert set(found.neighbours.row[:2].tolist()) == {301, 302}
    assert found.neighbours.seed[:2].tolist() == [int(row) - 301 for row in found.neighbours.row[:2]]
    assert not {0, 1} & set(found.neighbours.row.tolist())
    assert (found.identical, found.unscoreable, found.searched) == (2, 1, 303)
    assert (np.diff(found.neighbours.distance) >= 0).all()


@pytest.mark.parametrize("top", [1, 20, 1000])
def test_the_nearest_over_chunks_are_those_of_a_sort_of_everything(folder: Path, top: int, monkeypatch) -> None:
    whole = search_in(folder, "7", top=top)
    monkeypatch.setattr("stream_vae.learning.data.stampfile.CHUNK", 16)
    pieces = search_in(folder, "7", top=top)
    every = search_in(folder, "7", top=1000)
    np.testing.assert_array_equal(whole.neighbours.row, pieces.neighbours.row)
    np.testing.assert_array_equal(pieces.neighbours.row, every.neighbours.row[:top])
    assert len(pieces.neighbours) == min(top, 302)


def test_no_more_stamps_than_a_chunk_and_the_answer_are_kept(folder: Path, monkeypatch) -> None:
    monkeypatch.setattr("stream_vae.learning.data.stampfile.CHUNK", 16)
    sizes = []
    join = search._join
    monkeypatch.setattr(search, "_join", lambda parts: sizes.append(sum(map(len, parts))) or join(parts))
    search_in(folder, "7", top=5)
    assert max(sizes) <= 16 + 5


@pytest.mark.parametrize(
    ("to", "words"),
    [
        ("night.npz:999", "no row 999 in 304 stamps"),
        ("night.npz:x", "'x' are no rows. Such as"),
        ("night.npz:5-3", "'5-3' are no rows"),
        ("night.npz:300", r"stamp 300 cannot be scored \(blank\)"),
        ("nowhere.npz:1", "no such file or folder"),
    ],
)
def test_seeds_that_cannot_be_searched_with_are_refused_with_what_to_do(folder: Path, to: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        find_similar(str(folder / "store"), None, [str(folder / to)], str(folder / "night.npz"), progress=False)


def test_too_many_seeds_are_refused(folder: Path, monkeypatch) -> None:
    monkeypatch.setattr(search, "MOST_SEEDS", 3)
    with pytest.raises(ConfigError, match=r"names 4 stamps; at most 3.*Choose some of them by row"):
        search_in(folder, "0-3")
    with pytest.raises(ConfigError, match="names 4 stamps; at most 3"):
        search_in(folder, "0-1", "2,3")


def test_data_without_a_scoreable_stamp_are_refused(folder: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "blank.npz", stamps=np.zeros((5, 21, 21), np.float32))
    with pytest.raises(ConfigError, match=r"None of the 5 stamps of blank.npz can be scored"):
        find_similar(
            str(folder / "store"), None, [f"{folder / 'night.npz'}:0"], str(tmp_path / "blank.npz"), progress=False
        )


def test_the_command_writes_table_arrays_and_sheet(folder: Path, tmp_path: Path) -> None:
    night = folder / "night.npz"
    common = ["similar", "--store", str(folder / "store"), "--to", f"{night}:0,1", "--data", str(night), "--top", "5"]
    said = CliRunner().invoke(app, [*common, "--out", str(tmp_path / "a.csv"), "--sheet", str(tmp_path / "a.png")])
    assert said.exit_code == 0, said.output
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    with (tmp_path / "a.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    answer = CliRunner().invoke(app, [*common, "--out", str(tmp_path / "a.npz"), "--json"])
    document = json.loads(answer.stdout)
    with np.load(tmp_path / "a.npz", allow_pickle=False) as arrays:
        assert arrays["stamps"].shape == (5, 21, 21, 1)
        ranked = arrays["row"].tolist()
    assert [int(row["row"]) for row in rows] == ranked == [each["row"] for each in document["neighbours"]]
    assert [each["rank"] for each in document["neighbours"]] == [1, 2, 3, 4, 5]
    assert document["identical"] == 2


@pytest.mark.parametrize(("option", "value"), [("--out", "a.txt"), ("--out", "none/a.npz"), ("--sheet", "none/a.png")])
def test_what_could_not_be_written_is_refused_before_the_search(folder: Path, option: str, value: str) -> None:
    night = str(folder / "night.npz")
    said = CliRunner().invoke(app, ["similar", "--store", "x", "--to", f"{night}:0", "--data", night, option, value])
    assert isinstance(said.exception, ConfigError)
    assert option in str(said.exception)


def test_real_alerts_are_found_by_an_alert_and_named(folder: Path, alerts_dir: Path) -> None:
    alerts = alerts_dir / "ztf" / "kowalski"
    seed = min(alerts.rglob("*.avro"))
    found = find_similar(str(folder / "store"), None, [str(seed)], str(alerts), top=4, survey="ztf", progress=False)
    assert found.seeds.about[0]["file"] == seed.name
    assert found.identical >= 1
    assert all(each["alert"].isdigit() and each["object"].startswith("ZTF") for each in found.neighbours.about)


def test_a_search_for_everything_in_itself_is_refused_and_not_an_empty_answer(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"searched with themselves\. Search with some of them"):
        search_in(folder, "0-299,301-303")
