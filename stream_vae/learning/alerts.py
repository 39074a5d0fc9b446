"""Stamps from a folder of alert packets, through the same decoding and cutting as in serving."""

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from stream_vae import surveys
from stream_vae.alert import Packet
from stream_vae.avro.framing import FrameReader
from stream_vae.avro.limits import DEFAULT_LIMITS
from stream_vae.errors import ConfigError, RejectedAlertError
from stream_vae.learning.stamps import UNKNOWN, Chunk, StampSource
from stream_vae.model.release import Preprocessing
from stream_vae.quality import Quality
from stream_vae.stages.decode import Decoder
from stream_vae.stages.stamp import Stamper, Stamps

PACKETS = 256
"""Packets at a time: some 20 MB."""
PROBED = 24
"""Packets that each profile is tried on."""
MAX_CUTOUT_BYTES = 4 << 20


def stamps_from_alerts(path: Path, survey: str | None, preprocessing: Preprocessing) -> StampSource:
    """Read stamps from the packets in a folder.

    Parameters
    ----------
    path : Path
        Every file in it, at any depth, in the order of their names; one packet a file. Or one such file.
    survey : str or None
        The survey's profile; None tells it from the packets.
    preprocessing : Preprocessing
        What to cut and how to scale.

    Returns
    -------
    StampSource
        Unlabelled, grouped by object; a packet that cannot be decoded is an unscoreable row.

    Raises
    ------
    ConfigError
        If there are no packets, or none that the profile can read.
    """
    inside = [path] if path.is_file() else path.rglob("*")
    files = sorted(file for file in inside if file.is_file() and not file.name.startswith("."))
    if not files:
        raise ConfigError(f"The folder {path} is empty.", remedy="Give a folder of alert packets, one a file.")
    probe = files[:: max(1, len(files) // PROBED)][:PROBED]
    candidates = [survey] if survey else surveys.names()
    readers = {name: _Reader(surveys.load(name), preprocessing) for name in candidates}
    readable = {name: reader.count_scoreable(probe) for name, reader in readers.items()}
    best = max(readable, key=lambda name: readable[name])
    if not any(readable[best]):
        raise ConfigError(
            f"None of {len(probe)} packets tried in {path} could be read as {', '.join(candidates)} alerts: "
            f"{readers[best].why(probe).rstrip('.')}.",
            remedy="Name the survey's profile with --survey, and check that the cutouts are the recipe's.",
        )

    def chunks() -> Iterator[Chunk]:
        for i in range(0, len(files), PACKETS):
            yield readers[best].read(files[i : i + PACKETS])

    def describe(row: int) -> dict[str, str]:
        file = files[row]
        return readers[best].name(file) | {"file": file.name if file == path else str(file.relative_to(path))}

    return StampSource("alerts", f"{path.name} ({best})", len(files), chunks, grouped=True, describe=describe)


class _Reader:
    """Files to stamps, for one profile."""

    def __init__(self, profile: surveys.Profile, preprocessing: Preprocessing) -> None:
        self._decoder = Decoder(FrameReader(), profile, DEFAULT_LIMITS)
        self._stamper = Stamper(preprocessing, profile.cutouts, MAX_CUTOUT_BYTES)

    def read(self, files: Sequence[Path]) -> Chunk:
        decoded = self._decoder.decode([_packet(file, row) for row, file in enumerate(files)])
        cut = self._stamper.cut(decoded.alerts)
        rows = np.array([alert.packet.offset for alert in decoded.alerts], np.int64)
        stamps = np.zeros((len(files), *cut.stamps.shape[1:]), np.float32)
        quality = np.full(len(files), np.uint32(Quality.UNREADABLE_CUTOUT))
        stamps[rows], quality[rows] = cut.stamps, cut.quality
        members = [file.name for file in files]
        for row, alert in zip(rows, decoded.alerts, strict=True):
            members[row] = str(alert.field("object_id") or alert.alert_id)
        groups = np.array([_number(member) for member in members], np.int64)
        return Chunk(stamps, quality, np.full(len(files), UNKNOWN, np.int8), groups)

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
