"""What labels need to know of alerts: ids, positions, times and asteroids, from a folder of packets."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from stream_vae import surveys
from stream_vae.alert import Alert, Packet
from stream_vae.avro.framing import FrameReader
from stream_vae.avro.limits import DEFAULT_LIMITS
from stream_vae.errors import ConfigError
from stream_vae.stages.decode import Decoder
from stream_vae.surveys import Profile, SolarSystem

PACKETS = 256
"""Packets at a time: some 20 MB."""


class Facts(NamedTuple):
    """One alert's."""

    alert_id: str
    ra_deg: float | None
    dec_deg: float | None
    mjd: float | None
    """On the survey's time scale."""
    solar_system: dict[str, Any]
    """By the names of `stream_vae.surveys.SolarSystem`; None where the alert does not say."""


class AlertFolder:
    """The packets of one survey in a folder, at any depth, one a file.

    Parameters
    ----------
    path : Path
        The folder.
    survey : str
        A profile's name, or the path of one.

    Raises
    ------
    ConfigError
        If there is no such folder or profile, or the folder is empty.
    """

    def __init__(self, path: Path, survey: str) -> None:
        self.profile: Profile = surveys.load(survey)
        self.files = sorted(file for file in path.rglob("*") if file.is_file() and not file.name.startswith("."))
        if not self.files:
            raise ConfigError(
                f"{path} is no folder with files in it.", remedy="Give a folder of alert packets, one a file."
            )
        self.path = path
        self.unreadable = 0
        """Packets that could not be decoded in the last reading."""

    def read(self) -> Iterator[list[Facts]]:
        """Read all packets through, in bounded memory.

        Yields
        ------
        list of Facts
            Of up to `PACKETS` files, in the order of their names; what cannot be decoded is left out and counted.

        Raises
        ------
        ConfigError
            If none of them can be decoded.
        """
        decoder = Decoder(FrameReader(), self.profile, DEFAULT_LIMITS, solar_system=True)
        self.unreadable, why = 0, ""
        for at in range(0, len(self.files), PACKETS):
            files = self.files[at : at + PACKETS]
            decoded = decoder.decode([Packet(file.read_bytes(), "file", 0, row) for row, file in enumerate(files)])
            self.unreadable += len(decoded.rejected)
            why = why or next((rejected.error for rejected in decoded.rejected), "")
            yield [self._facts(alert) for alert in decoded.alerts]
        if self.unreadable == len(self.files):
            raise ConfigError(
                f"None of {len(self.files)} files in {self.path} is a {self.profile.name} alert: {why.rstrip('.')}.",
                remedy="Name the survey's profile with --survey.",
            )

    def _facts(self, alert: Alert) -> Facts:
        told = {name: alert.field(f"solar_system.{name}") for name in SolarSystem.model_fields}
        mjd = self.profile.midpoint_mjd(alert.field("time"))
        return Facts(alert.alert_id, alert.field("ra_deg"), alert.field("dec_deg"), mjd, told)
