"""Tables in files: CSV, Parquet (with pyarrow) and JSON lines, row by row, with errors that name row and column."""

import csv
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from stream_vae.errors import ConfigError
from stream_vae.labels.label import COLUMNS, REQUIRED, Label, LabelError, parse_record
from stream_vae.labels.table import LabelTable

SUFFIXES = (".csv", ".parquet", ".jsonl")
_ROWS = 10_000
"""Rows of a Parquet file at a time."""

Row = tuple[str, Mapping[str, Any]]
"""What to call it in errors (`line 7`), and its values by column."""


def read_labels(path: Path | str) -> LabelTable:
    """Read a label table.

    Parameters
    ----------
    path : Path or str
        .csv or .parquet with the columns `alert_id`, `label`, `provenance` and perhaps `confidence`, `labelled_at`,
        `comment`; or .jsonl with one object of these a line. Other columns are ignored.

    Returns
    -------
    LabelTable
        All rows in their order; `LabelTable.resolve` gives one label an alert.

    Raises
    ------
    ConfigError
        If there is no such file, a column is missing, or a value is wrong: with its line and column.
    """
    path = Path(path)
    if path.suffix == ".jsonl":
        return LabelTable(tuple(_checked(path, f"line {at}", parse_record, text) for at, text in _lines(path)))
    _check_suffix(path, SUFFIXES)
    rows = read_rows(path, required=REQUIRED, optional=COLUMNS[len(REQUIRED) :])
    return LabelTable(tuple(_checked(path, where, Label.of, values) for where, values in rows))


def write_labels(path: Path | str, labels: LabelTable | Sequence[Label]) -> None:
    """Write a label table; a file of that name is replaced, whole or not at all.

    Parameters
    ----------
    path : Path or str
        Its suffix says how: .csv, .parquet or .jsonl.
    labels : LabelTable or sequence of Label
        What to write.

    Raises
    ------
    ConfigError
        If the suffix is another, pyarrow is missing, or the file cannot be written.
    """
    path = Path(path)
    records = [label.record() for label in labels]
    write_rows(path, COLUMNS, records)


def read_rows(path: Path, *, required: Sequence[str], optional: Sequence[str] = ()) -> Iterator[Row]:
    """Read a table row by row.

    Parameters
    ----------
    path : Path
        .csv (UTF-8, a header line, commas) or .parquet.
    required : sequence of str
        Columns that it must have.
    optional : sequence of str
        Columns that it may have; a column that looks like a misspelt one of these is refused.

    Yields
    ------
    tuple of str and mapping
        The row's name and its values; text in CSV, typed in Parquet.

    Raises
    ------
    ConfigError
        If it cannot be read or lacks a column.
    """
    _check_suffix(path, (".csv", ".parquet"))
    if not path.is_file():
        raise ConfigError(f"There is no file {path}.", remedy="Name a table that exists.")
    reading = _csv_rows if path.suffix == ".csv" else _parquet_rows
    rows = reading(path, required, optional)
    while True:
        try:
            row = next(rows, None)
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise ConfigError(f"{path} cannot be read: {error}.", remedy="Save it again, text as UTF-8.") from error
        if row is None:
            return
        yield row


def write_rows(path: Path, columns: Sequence[str], records: Sequence[Mapping[str, Any]]) -> None:
    """Write a table; a file of that name is replaced, whole or not at all.

    Parameters
    ----------
    path : Path
        .csv, .parquet or .jsonl.
    columns : sequence of str
        Their order.
    records : sequence of mapping
        The rows.

    Raises
    ------
    ConfigError
        If the suffix is another, pyarrow is missing, or the file cannot be written.
    """
    _check_suffix(path, SUFFIXES)
    with _replacing(path) as scratch:
        if path.suffix == ".parquet":
            _write_parquet(scratch, columns, records)
        elif path.suffix == ".csv":
            with scratch.open("w", encoding="utf-8", newline="") as file:
                writer = csv.DictWriter(file, columns, extrasaction="ignore", lineterminator="\n")
                writer.writeheader()
                writer.writerows(records)
        else:
            with scratch.open("w", encoding="utf-8") as file:
                file.writelines(json.dumps(dict(record), ensure_ascii=False) + "\n" for record in records)


def _checked(path: Path, where: str, read: Callable[[Any], Label], given: Any) -> Label:
    try:
        return read(given)
    except LabelError as error:
        column = f", column {error.column}" if error.column else ""
        raise ConfigError(f"{path}, {where}{column}: {error}.", remedy="Correct it, or leave the row out.") from error


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, line
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}.", remedy="Give a file of JSON lines in UTF-8.") from error


def _csv_rows(path: Path, required: Sequence[str], optional: Sequence[str]) -> Iterator[Row]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, restkey="", strict=True)
        reader.fieldnames = [name.strip() for name in reader.fieldnames or ()]
        _check_columns(path, reader.fieldnames, required, optional)
        for values in reader:
            if "" in values:
                raise ConfigError(
                    f"{path}, line {reader.line_num}: more values than the {len(reader.fieldnames)} columns.",
                    remedy="Put text that holds commas in double quotes.",
                )
            yield f"line {reader.line_num}", values


def _parquet_rows(path: Path, required: Sequence[str], optional: Sequence[str]) -> Iterator[Row]:
    pa, pq = _pyarrow()
    try:
        file = pq.ParquetFile(path)
        names = file.schema_arrow.names
        _check_columns(path, names, required, optional)
        wanted = [name for name in names if name in {*required, *optional}]
        at = 0
        for batch in file.iter_batches(_ROWS, columns=wanted):
            for values in batch.to_pylist():
                at += 1
                yield f"row {at}", values
    except (pa.ArrowException, OSError) as error:
        raise ConfigError(f"{path} cannot be read as Parquet: {error}.", remedy="Save it again.") from error


def _write_parquet(path: Path, columns: Sequence[str], records: Sequence[Mapping[str, Any]]) -> None:
    pa, pq = _pyarrow()
    types = {"label": pa.int8(), "confidence": pa.float64()}
    schema = pa.schema([(name, types.get(name, pa.string())) for name in columns])
    pq.write_table(pa.Table.from_pylist([dict(record) for record in records], schema), path)


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ModuleNotFoundError as error:
        raise ConfigError(
            "Parquet needs pyarrow.", remedy="Install it: pip install 'stream-vae[parquet]', or use .csv."
        ) from error
    return pa, pq


def _check_columns(path: Path, names: Sequence[str], required: Sequence[str], optional: Sequence[str]) -> None:
    missing = [name for name in required if name not in names]
    if missing:
        raise ConfigError(
            f"{path} has no column {', '.join(missing)}; its columns are {', '.join(names) or 'none'}.",
            remedy=f"Name them in the header: {', '.join(required)}.",
        )
    for name in names:
        near = get_close_matches(name, optional, n=1, cutoff=0.8)
        if near and name not in {*required, *optional} and near[0] not in names:
            raise ConfigError(f"{path} has a column {name}.", remedy=f"Did you mean {near[0]}? Rename it.")


def _check_suffix(path: Path, known: Sequence[str]) -> None:
    if path.suffix not in known:
        raise ConfigError(f"{path}: a table's name ends in {', '.join(known)}.", remedy="Give such a table.")


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".stream-vae-", dir=path.parent) as folder:
            scratch = Path(folder) / path.name
            yield scratch
            scratch.replace(path)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}.", remedy="Name another file.") from error
