"""Labels: the record, the table with its conflicts, and the files that hold them."""

import csv
import json
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
from stream_vae.errors import ConfigError
from stream_vae.labels import Label, LabelError, LabelTable, Provenance, parse_record, read_labels, write_labels

WHEN = datetime(2026, 11, 24, 12, 30, tzinfo=UTC)
LABELS = (
    Label("697251921615015001", 1, Provenance.SOLAR_SYSTEM, 0.99, WHEN, "4826"),
    Label("b", 0, Provenance.HUMAN, None, WHEN, 'a "dipole", no doubt'),
    Label("c", -1, Provenance.CROSSMATCH),
)


def label(alert: str, value: int, provenance: str, **more: object) -> Label:
    return Label(alert, value, Provenance(provenance), **more)


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".jsonl"])
def test_a_table_comes_back_from_a_file_as_it_was(tmp_path: Path, suffix: str) -> None:
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    write_labels(tmp_path / f"new/labels{suffix}", LABELS)
    assert read_labels(tmp_path / f"new/labels{suffix}").labels == LABELS
    assert [file.name for file in (tmp_path / "new").iterdir()] == [f"labels{suffix}"]


def test_the_more_trusted_provenance_wins_and_the_conflict_is_told() -> None:
    order = ["human", "injection", "solar_system", "crossmatch", "simulation"]
    for i, better in enumerate(order):
        for worse in order[i + 1 :]:
            table = LabelTable((label("a", 0, worse), label("a", 1, better), label("b", 1, worse)))
            assert table.resolve()["a"] == label("a", 1, better)
            (conflict,) = table.conflicts
            assert conflict.alert_id == "a"
            assert [one.provenance for one in conflict.labels] == [better, worse]
            assert conflict.winner.label == 1


def test_two_people_who_disagree_make_an_unknown_that_is_told() -> None:
    table = LabelTable((label("a", 1, "human"), label("a", 0, "human"), label("a", 1, "solar_system")))
    assert table.resolve()["a"].label == -1
    assert len(table.conflicts[0].labels) == 3


def test_labels_that_agree_are_no_conflict_and_the_most_confident_stands_for_them() -> None:
    sure = label("a", 1, "crossmatch", confidence=0.9)
    table = LabelTable((label("a", 1, "crossmatch", confidence=0.2), sure, label("a", 1, "simulation")))
    assert table.resolve() == {"a": sure}
    assert table.conflicts == ()


def test_who_cannot_tell_gives_way_to_who_can() -> None:
    table = LabelTable((label("a", -1, "human"), label("a", 1, "solar_system"), label("b", -1, "injection")))
    assert table.resolve()["a"].label == 1
    assert table.resolve()["b"].label == -1
    assert table.conflicts == ()


def test_merging_keeps_what_is_said_twice_once() -> None:
    merged = LabelTable.merged([LabelTable(LABELS), LabelTable((*LABELS, label("d", 0, "human")))])
    assert len(merged) == 4
    assert merged.counts() == {"human": {0: 2}, "solar_system": {1: 1}, "crossmatch": {-1: 1}}


@pytest.mark.parametrize(
    ("change", "column"),
    [
        ({"label": "2"}, "label"),
        ({"label": "yes"}, "label"),
        ({"label": True}, "label"),
        ({"alert_id": ""}, "alert_id"),
        ({"alert_id": None}, "alert_id"),
        ({"alert_id": 6.97e17}, "alert_id"),
        ({"alert_id": "6.97252E+17"}, "alert_id"),
        ({"provenance": "rumour"}, "provenance"),
        ({"provenance": None}, "provenance"),
        ({"confidence": "1.5"}, "confidence"),
        ({"confidence": "nan"}, "confidence"),
        ({"confidence": "high"}, "confidence"),
        ({"labelled_at": "yesterday"}, "labelled_at"),
    ],
)
def test_a_wrong_value_is_told_with_its_line_and_column(tmp_path: Path, change: dict, column: str) -> None:
    right = {"alert_id": "a", "label": "1", "provenance": "human", "confidence": "", "labelled_at": ""}
    wrong = right | change
    with pytest.raises(LabelError) as caught:
        parse_record(json.dumps(wrong))
    assert caught.value.column == column
    with (tmp_path / "labels.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, right)
        writer.writeheader()
        writer.writerows([right, wrong])
    if isinstance(change.get("label"), bool):
        return
    with pytest.raises(ConfigError, match=f"line 3, column {column}: "):
        read_labels(tmp_path / "labels.csv")
    (tmp_path / "labels.jsonl").write_text(json.dumps(right) + "\n\n" + json.dumps(wrong) + "\n")
    with pytest.raises(ConfigError, match=f"line 3, column {column}: "):
        read_labels(tmp_path / "labels.jsonl")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "has no column alert_id, label, provenance; its columns are none"),
        (b"alert_id,label\na,1\n", "has no column provenance"),
        (b"alert_id,label,provenance,confidance\n", "Did you mean confidence"),
        (b"alert_id,label,provenance\na,1,human,well, yes\n", "line 2: more values"),
        (b"alert_id,label,provenance\na,1\n", "line 2, column provenance"),
        (b"alert_id,label,provenance\n\xff\xfe,1,human\n", "cannot be read"),
        (b'alert_id,label,provenance\n"a,1,human\n', "cannot be read"),
    ],
)
def test_a_malformed_table_is_refused_with_the_remedy(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "labels.csv").write_bytes(content)
    with pytest.raises(ConfigError, match=message) as caught:
        read_labels(tmp_path / "labels.csv")
    assert caught.value.remedy


def test_what_is_no_parquet_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    (tmp_path / "labels.parquet").write_bytes(b"PAR1 but no more")
    with pytest.raises(ConfigError, match="cannot be read as Parquet"):
        read_labels(tmp_path / "labels.parquet")


def test_without_pyarrow_parquet_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ConfigError, match=r"stream-vae\[parquet\]"):
        write_labels(tmp_path / "labels.parquet", LABELS)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["labels.txt", "labels", "absent.csv", "absent.jsonl"])
def test_a_file_that_is_none_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError):
        read_labels(tmp_path / name)


@pytest.mark.parametrize("line", [b"", b"[1]", b"{", b"[" * 100_000, b"\xff", b'{"alert_id": "a"}'])
def test_a_message_that_is_no_label_raises_the_one_error(line: bytes) -> None:
    with pytest.raises(LabelError):
        parse_record(line)


def test_ids_written_as_numbers_keep_every_digit() -> None:
    read = parse_record(b'{"alert_id": 697251921615015001, "label": "Real", "provenance": "human"}')
    assert (read.alert_id, read.label) == ("697251921615015001", 1)
