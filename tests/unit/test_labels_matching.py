"""Labels from the sky: asteroids in real alerts, and tables of positions against a brute-force separation."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy import units
from astropy.coordinates import SkyCoord
from astropy.time import Time
from hypothesis import given, settings
from hypothesis import strategies as st
from stream_vae import cli, surveys
from stream_vae.errors import ConfigError
from stream_vae.labels import read_labels
from stream_vae.labels.alerts import AlertFolder, Facts
from stream_vae.labels.crossmatch import Catalog, CrossMatch, read_catalog
from stream_vae.labels.finding import find_labels
from stream_vae.labels.solar_system import Tolerances, judge
from stream_vae.labels.timescale import seconds_from_utc
from stream_vae.sky.packets import simulate_packets

SILENT = dict.fromkeys(surveys.SolarSystem.model_fields)


def facts(ra: float | None = None, dec: float | None = None, mjd: float | None = None, **told: Any) -> Facts:
    return Facts("a", ra, dec, mjd, SILENT | told)


def catalog(*rows: tuple[float, float, float, str, int], time_scale: str = "utc") -> Catalog:
    ra, dec, mjd, names, labels = zip(*rows, strict=True)
    return Catalog(np.array(ra), np.array(dec), np.array(mjd, float), names, np.array(labels, np.int8), time_scale)


ALWAYS = np.nan


def test_160_of_585_real_ztf_alerts_are_asteroids(alerts_dir: Path) -> None:
    found = find_labels(alerts_dir / "ztf", "ztf", asteroids=Tolerances())
    assert found.counts() == {
        "alerts_read": 585,
        "unreadable_files": 0,
        "asteroids_of_another_brightness": 0,
        "ambiguous_matches": 0,
    }
    assert found.table.counts() == {"solar_system": {1: 160}}
    by_id = {label.alert_id: label for label in found.labels}
    assert by_id["697251921615015001"].comment == "4826 at 0.0 arcsec predicted 16.3 mag, seen 17.6"


def test_a_tighter_magnitude_leaves_the_discrepant_out_and_counts_them(alerts_dir: Path) -> None:
    found = find_labels(alerts_dir / "ztf", "ztf", asteroids=Tolerances(5.0, 0.5))
    assert found.implausible > 0
    assert len(found.labels) + found.implausible == 160


def test_the_linked_detection_among_real_lsst_alerts_is_found(alerts_dir: Path) -> None:
    found = find_labels(alerts_dir / "lsst", "lsst", asteroids=Tolerances())
    assert [(label.alert_id, label.comment) for label in found.labels] == [("169298432645136561", "K13L24L")]


@pytest.mark.parametrize("survey", ["pgir", "winter", "turbo"])
def test_other_surveys_alerts_are_read_too(real_packets: Callable[[str], list[Path]], survey: str) -> None:
    folder = AlertFolder(real_packets(survey)[0].parents[1], survey)
    read = [one for part in folder.read() for one in part]
    assert folder.unreadable == 0
    assert all(one.ra_deg is not None and one.mjd is not None and 50_000 < one.mjd < 70_000 for one in read)
    assert all(one.solar_system["alert_magnitude"] is not None for one in read)


@pytest.mark.parametrize(
    ("told", "real"),
    [
        ({"distance_arcsec": 0.0}, True),
        ({"distance_arcsec": 5.0}, True),
        ({"distance_arcsec": 5.1}, False),
        ({"distance_arcsec": -999.0}, False),
        ({"distance_arcsec": float("nan")}, False),
        ({"distance_arcsec": 1.0, "magnitude": 18.0, "alert_magnitude": 19.9}, True),
        ({"distance_arcsec": 1.0, "magnitude": 18.0, "alert_magnitude": 20.1}, False),
        ({"distance_arcsec": 9.0, "object_id": 7}, False),
        ({"object_id": 7}, True),
        ({"object_id": "7"}, True),
        ({"object_id": 0}, False),
        ({"object_id": None}, False),
        ({"object_id": 7, "magnitude": 20.0, "alert_flux_njy": 36307.8}, True),
        ({"object_id": 7, "magnitude": 20.0, "alert_flux_njy": 3630.8}, False),
        ({"object_id": 7, "magnitude": 20.0, "alert_flux_njy": -36307.8}, False),
    ],
)
def test_an_asteroid_is_near_and_about_as_bright_as_predicted(told: dict[str, Any], real: bool) -> None:
    assert (judge(facts(**told), Tolerances()).label is not None) == real


@settings(max_examples=60)
@given(
    ra=st.one_of(st.floats(0, 360), st.sampled_from([0.0, 1e-5, 359.99999, 360.0])),
    dec=st.one_of(st.floats(-90, 90), st.sampled_from([-90.0, 90.0, 89.9999, -89.9999, 0.0])),
    seed=st.integers(0, 1000),
    radius=st.floats(0.1, 3000.0),
)
def test_matches_are_those_of_a_brute_force_separation(ra: float, dec: float, seed: int, radius: float) -> None:
    rng = np.random.default_rng(seed)
    centre = SkyCoord(ra, dec, unit="deg")
    angle, distance = rng.uniform(0, 360, 40) * units.deg, radius * rng.uniform(0, 2.5, 40) * units.arcsec
    around = centre.directional_offset_by(angle, distance)
    entries = catalog(
        *((r % 360.0, d, ALWAYS, f"{i}", 1) for i, (r, d) in enumerate(zip(around.ra.deg, around.dec.deg, strict=True)))
    )
    apart = centre.separation(SkyCoord(entries.ra_deg, entries.dec_deg, unit="deg")).arcsec
    if np.any(np.abs(apart - radius) < 1e-6):
        return
    found = CrossMatch(entries, radius_arcsec=radius).match([facts(ra, dec)])
    assert len(found) == (apart.min() <= radius)
    if found:
        assert found[0].distance_arcsec == pytest.approx(apart.min(), abs=1e-7)
        assert found[0].others == np.sum(apart <= radius) - 1


def test_time_counts_only_where_an_entry_has_one() -> None:
    entries = catalog((10, 20, 60_000.0, "then", 1), (10, 20.0001, 60_000.0 + 100 / 86400, "later", 0))
    within = CrossMatch(entries, radius_arcsec=1.0, within_s=60.0)
    assert within.match([facts(10, 20, 60_000.0)])[0].name == "then"
    assert within.match([facts(10, 20, 60_000.0 + 90 / 86400)])[0].name == "later"
    assert within.match([facts(10, 20, 60_001.0)]) == []
    assert within.match([facts(10, 20, None)]) == []
    assert CrossMatch(entries, radius_arcsec=1.0).match([facts(10, 20, None)])[0].others == 1
    star = catalog((10, 20, ALWAYS, "star", 1))
    assert CrossMatch(star, radius_arcsec=1.0, within_s=1.0).match([facts(10, 20, 5.0)])[0].name == "star"


def test_time_scales_are_brought_together() -> None:
    utc = Time([56_000.5, 57_000.5, 57_500.5, 60_000.5], format="mjd", scale="utc")
    for scale in ("utc", "tai", "tdb"):
        ahead = seconds_from_utc(getattr(utc, scale).mjd, scale)
        assert ahead == pytest.approx((getattr(utc, scale).mjd - utc.mjd) * 86400, abs=0.005)
    entries = catalog((10, 20, utc.tdb.mjd[3], "", 1), time_scale="tdb")
    matching = CrossMatch(entries, radius_arcsec=1.0, within_s=0.01)
    assert len(matching.match([facts(10, 20, utc.tai.mjd[3])], "tai")) == 1
    assert len(matching.match([facts(10, 20, utc.mjd[3])], "tai")) == 0


def test_the_nearest_of_several_is_taken_and_the_rest_told() -> None:
    entries = catalog((10, 20, ALWAYS, "far", 1), (10, 20.0002, ALWAYS, "near", 0), (10, 20.0002, ALWAYS, "near", 0))
    (found,) = CrossMatch(entries, radius_arcsec=2.0).match([facts(10, 20.0002)])
    assert (found.name, found.label.label, found.others) == ("near", 0, 1)
    assert found.label.comment == "near at 0.00 arcsec; 1 more within 2 arcsec"


def test_an_alert_without_a_position_has_no_match() -> None:
    matching = CrossMatch(catalog((10, 20, ALWAYS, "", 1)), radius_arcsec=2.0)
    assert matching.match([facts(), facts(float("nan"), 20.0), facts(10.0, 91.0)]) == []
    assert matching.match([]) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("ra_deg\n1\n", "has no column dec_deg"),
        ("ra_deg,dec_deg\n", "has no rows"),
        ("ra_deg,dec_deg\n1,2\n361,2\n", "line 3, column ra_deg"),
        ("ra_deg,dec_deg\n1,-90.1\n", "line 2, column dec_deg"),
        ("ra_deg,dec_deg\n1,\n", "line 2, column dec_deg"),
        ("ra_deg,dec_deg,mjd\n1,2,soon\n", "line 2, column mjd"),
        ("ra_deg,dec_deg,mjd\n1,2,2460000.5\n", "line 2, column mjd"),
        ("ra_deg,dec_deg,label\n1,2,3\n", "line 2, column label"),
        ("ra_deg,dec_deg,lable\n1,2,3\n", "Did you mean label"),
    ],
)
def test_a_malformed_catalog_names_line_and_column(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "known.csv").write_text(content)
    with pytest.raises(ConfigError, match=message):
        read_catalog(tmp_path / "known.csv")


def test_a_parquet_catalog_is_read_with_its_types(tmp_path: Path) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    columns = {"ra_deg": [1.5, 2.5], "dec_deg": [-3.0, 4.0], "mjd": [None, 6e4], "label": [0, None]}
    pq.write_table(pa.table(columns), tmp_path / "known.parquet")
    read = read_catalog(tmp_path / "known.parquet")
    assert read.ra_deg.tolist() == [1.5, 2.5]
    assert np.isnan(read.mjd).tolist() == [True, False]
    assert read.labels.tolist() == [0, 1]


@pytest.mark.parametrize("arguments", [{"radius_arcsec": 0.0}, {"radius_arcsec": 1.0, "within_s": float("nan")}])
def test_a_tolerance_that_makes_no_sense_is_refused(arguments: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="makes no sense"):
        CrossMatch(catalog((10, 20, ALWAYS, "", 1)), **arguments)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Simulated ZTF-shaped packets and one file that is none."""
    path = tmp_path_factory.mktemp("alerts")
    for i, packet in enumerate(simulate_packets(12, shape="ztf", seed=3)):
        (path / f"{i:03}.avro").write_bytes(packet.packet)
    (path / "notes.txt").write_text("no alert")
    return path


def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: object) -> Any:
    monkeypatch.setattr("sys.argv", ["stream-vae", "labels", *map(str, arguments), "--json"])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 0
    return json.loads(capsys.readouterr().out)


def test_the_command_line_matches_merges_and_shows(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    alerts = [one for part in AlertFolder(folder, "ztf").read() for one in part]
    rows = [f"{one.ra_deg},{one.dec_deg},{one.mjd},{i},{i % 2}" for i, one in enumerate(alerts[:4])]
    (tmp_path / "known.csv").write_text("\n".join(["ra_deg,dec_deg,mjd,name,label", *rows]))
    known, people, merged = tmp_path / "matched.csv", tmp_path / "people.jsonl", tmp_path / "all.csv"
    told = run(
        capsys, monkeypatch, "match", "--data", folder, "--survey", "ztf", "--catalog", tmp_path / "known.csv",
        "--within-s", "1", "--no-solar-system", "--out", known,
    )  # fmt: skip
    assert (told["alerts_read"], told["unreadable_files"]) == (12, 1)
    assert told["counts"]["crossmatch"] == {"1": 2, "0": 2}
    one = {"alert_id": alerts[0].alert_id, "label": 1, "provenance": "human"}
    people.write_text(json.dumps(one) + "\n")
    conflicts = tmp_path / "conflicts.csv"
    told = run(capsys, monkeypatch, "merge", known, people, "--out", merged, "--conflicts", conflicts)
    expected = {
        "alert_id": alerts[0].alert_id,
        "winner": "real by human",
        "labels": "real by human, bogus by crossmatch",
    }
    assert told["conflicts"] == [expected]
    assert alerts[0].alert_id in conflicts.read_text()
    assert read_labels(merged).resolve()[alerts[0].alert_id].provenance == "human"
    assert run(capsys, monkeypatch, "show", merged)["conflicts"] == []


def test_a_folder_of_something_else_is_refused(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(ConfigError, match="no folder with files"):
        AlertFolder(tmp_path / "absent", "ztf")
    (tmp_path / "notes.txt").write_text("no alert")
    with pytest.raises(ConfigError, match=r"None of 1 files .* is a ztf alert"):
        find_labels(tmp_path, "ztf", asteroids=Tolerances())
    with pytest.raises(ConfigError, match="nothing to label by"):
        find_labels(folder, "ztf")
    with pytest.raises(ConfigError, match=r"no \[solar_system\]"):
        find_labels(folder, "decam", asteroids=Tolerances())
