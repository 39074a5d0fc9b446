"""Labels with where they come from: written, read, matched and merged; conflicts are told, never hidden.

`label` is one label, `table` many of them and their conflicts, `files` reads and writes them as CSV, Parquet and
JSON lines; `solar_system` and `crossmatch` find labels for alerts. Training and reports take the result.
"""

from stream_vae.labels.files import read_labels, write_labels
from stream_vae.labels.label import Label, LabelError, Provenance, parse_record
from stream_vae.labels.table import Conflict, LabelTable

__all__ = [
    "Conflict",
    "Label",
    "LabelError",
    "LabelTable",
    "Provenance",
    "parse_record",
    "read_labels",
    "write_labels",
]
