"""Stamps from a folder of alert packets, through the same decoding and cutting as in serving."""

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from stream_vae import surveys
from stream_vae.alert import Packet
from stream_vae.avro.framing import OCF_MAGIC, FrameReader
from stream_vae.avro.limits import DEFAULT_LIMITS
from stream_vae.errors import ConfigError, RejectedAlertError
from stream_vae.learning.data.files import Files
from stream_vae.learning.data.noise import scaled_noise
from stream_vae.learning.data.stamps import UNKNOWN, Chunk, StampSource
from stream_vae.model.release import Preprocessing
from stream_vae.quality import Quality
from stream_vae.stages.decode import Decoder
from stream_vae.stages.stamp import Stamper, Stamps

if TYPE_CHECKING:
    from stream_vae.labels import LabelTable

CONFLUENT = b"\x00"
"""First byte of the Confluent wire format."""
PACKETS = 256
"""Packets at a time: some 20 MB."""
PROBED = 24
"""Packets that each profile is tried on."""
MAX_CUTOUT_BYTES = 4 << 20


def stamps_from_alerts(
    path: Path,
    survey: str | None,
    preprocessing: Preprocessing,
    *,
    labels: "LabelTable | None" = None,
    noise: bool = False,
) -> StampSource:
    """Read stamps from the packets in a folder.

    Parameters
    ----------
    path : Path
        Every file in it, at any depth, in the order of their names; one packet a file. Or one such file.
    survey : str or None
        The survey's profile; None tells it from the packets.
    preprocessing : Preprocessing
        What to cut and how to scale.
    labels : LabelTable, optional
        Labels by alert id; where it has several of an alert, the most trusted counts.
    noise : bool
        Whether to read noise maps, too.

    Returns
    -------
    StampSource
        Grouped by object, unlabelled where the table has nothing; a packet that cannot be decoded is an unscoreable
        row.

    Raises
    ------
    ConfigError
        If there are no packets, or none that the profile can read.
    """
    files = Files(path)
    if not len(files):
        raise ConfigError(f"The folder {path} is empty.", remedy="Give a folder of alert packets, one a file.")
    probe = files.at(range(0, len(files), max(1, len(files) // PROBED))[:PROBED])
    candidates = [survey] if survey else surveys.names()
    known = {} if labels is None else {name: np.int8(label.label) for name, label in labels.resolve().items()}
    readers = {name: _Reader(surveys.load(name), preprocessing, known, noise=noise) for name in candidates}
    readable = {name: reader.count_scoreable(probe) for name, reader in readers.items()}
    best = max(readable, key=lambda name: readable[name])
    if not any(readable[best]):
        raise ConfigError(
            f"None of {len(probe)} packets tried in {path} could be read as {', '.join(candidates)} alerts: "
            f"{readers[best].why(probe).rstrip('.')}.",
            remedy=_remedy(probe),
        )

    def chunks() -> Iterator[Chunk]:
        for batch in files.batches(PACKETS):
            yield readers[best].read(batch)

    def describe(row: int) -> dict[str, str]:
        (file,) = files.at([row])
        return readers[best].name(file) | {"file": file.name if file == path else str(file.relative_to(path))}

    lineage = {} if labels is None else {"labels": labels.counts()}
    name = f"{path.name} ({best})"
    return StampSource("alerts", name, len(files), chunks, grouped=True, lineage=lineage, describe=describe)


def _remedy(probe: Sequence[Path]) -> str:
    if any(file.read_bytes()[:1] == CONFLUENT for file in probe):
        return (
            "These begin with the Confluent wire format's zero byte: their schema is in a registry, which training "
            "does not ask. Train on what the workers keep of them (`stream-vae reservoir export`), or save the packets "
            "as Avro files with their schema inside."
        )
    if not any(file.read_bytes()[:4] == OCF_MAGIC for file in probe):
        return "Give a folder of alert packets in Avro files, one a file, or of .npy or .npz files of stamps."
    return "Name the survey's profile with --survey, and check that the cutouts are the recipe's."


class _Reader:
    """Files to stamps, for one profile."""

    def __init__(
        self, profile: surveys.Profile, preprocessing: Preprocessing, labels: Mapping[str, np.int8], *, noise: bool
    ) -> None:
        self._decoder = Decoder(FrameReader(), profile, DEFAULT_LIMITS)
        self._stamper = Stamper(preprocessing, profile.cutouts, MAX_CUTOUT_BYTES)
        self._labels, self._noise = labels, noise

    def read(self, files: Sequence[Path]) -> Chunk:
        decoded = self._decoder.decode([_packet(file, row) for row, file in enumerate(files)])
        cut = self._stamper.cut(decoded.alerts)
        rows = np.array([alert.packet.offset for alert in decoded.alerts], np.int64)
        stamps = np.zeros((len(files), *cut.stamps.shape[1:]), np.float32)
        quality = np.full(len(files), np.uint32(Quality.UNREADABLE_CUTOUT))
        stamps[rows], quality[rows] = cut.stamps, cut.quality
        members, labels = [file.name for file in files], np.full(len(files), UNKNOWN, np.int8)
        for row, alert in zip(rows, decoded.alerts, strict=True):
            members[row] = str(alert.field("object_id") or alert.alert_id)
            labels[row] = self._labels.get(str(alert.alert_id), UNKNOWN)
        groups = np.array([_number(member) for member in members], np.int64)
        noise = None
        if self._noise:
            noise = np.full(stamps.shape, np.nan, np.float32)
            raw, _ = self._stamper.cut_raw(decoded.alerts)
            noise[rows] = scaled_noise(raw, cut.stamps, self._stamper.cut_noise(decoded.alerts))
        return Chunk(stamps, quality, labels, groups, noise)

    def name(self, file: Path) -> dict[str, str]:
        """Ids of the alert in a file, as far as they can be read."""
        alerts = self._decoder.decode([_packet(file)]).alerts
        if not alerts:
            return {}
        alert = alerts[0]
        known = alert.field("object_id")
        return {"alert": alert.alert_id} | ({} if known is None else {"object": str(known)})

    def count_scoreable(self, files: Sequence[Path]) -> tuple[int, int, int]:
        """How many packets give a stamp, how many of these a whole one, and how many of the fields are there."""
        try:
            chunk = self.read(files)
        except RejectedAlertError:  # another survey's profile may name what is a record here
            return 0, 0, 0
        whole = chunk.scoreable & ((chunk.quality & np.uint32(Quality.PADDED)) == 0)
        alerts = self._decoder.decode([_packet(file) for file in files]).alerts
        fields = sum(alert.layout.has(name) for alert in alerts for name in surveys.Fields.model_fields)
        return int(chunk.scoreable.sum()), int(whole.sum()), fields

    def why(self, files: Sequence[Path]) -> str:
        """The commonest trouble."""
        decoded = self._decoder.decode([_packet(file) for file in files])
        if decoded.rejected:
            return Counter(rejected.error for rejected in decoded.rejected).most_common(1)[0][0]
        cut: Stamps = self._stamper.cut(decoded.alerts)
        return "their cutouts are missing, blank or mostly NaN" if len(cut.stamps) else "no reason is known"


def _packet(file: Path, row: int = 0) -> Packet:
    return Packet(file.read_bytes(), "file", 0, row)


def _number(text: str) -> int:
    """A stable number for an identifier."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big", signed=True)
