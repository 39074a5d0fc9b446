"""Packets to alerts: open the framing, walk the record, find the fields that the survey's profile names.

Nothing is decoded here but the alert's id; cutouts and other values are read from their byte spans by the
stage that needs them. A packet that cannot be walked to its last byte is rejected with the reason.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

from stream_vae.alert import Alert, Packet, Rejected
from stream_vae.avro.framing import FrameReader
from stream_vae.avro.limits import Limits
from stream_vae.avro.schema import WriterSchema
from stream_vae.errors import Reason, RejectedAlertError
from stream_vae.layout import Layout
from stream_vae.surveys import Profile

STAGE = "decode"


class Decoded(NamedTuple):
    """A batch after this stage: every packet is in one of the two."""

    alerts: list[Alert]
    rejected: list[Rejected]


class Decoder:
    """Opens and walks the packets of one survey.

    Parameters
    ----------
    frames : FrameReader
        Knows the framing and the schemas.
    profile : Profile
        The survey's paths.
    limits : Limits
        Bounds on what one record may cost.
    solar_system : bool
        Find the fields that tell of asteroids too: for labels, not for scores.
    """

    def __init__(self, frames: FrameReader, profile: Profile, limits: Limits, *, solar_system: bool = False) -> None:
        self._frames = frames
        self._profile = profile
        self._limits = limits
        self._solar_system = solar_system
        self._layouts: OrderedDict[str, Layout] = OrderedDict()

    def decode(self, packets: Sequence[Packet]) -> Decoded:
        """Walk a batch.

        Parameters
        ----------
        packets : sequence of Packet
            As consumed.

        Returns
        -------
        Decoded
            Alerts in the order of their packets, and what had to be rejected.

        Raises
        ------
        RetriableError
            If the schema registry cannot be reached; nothing was decoded then.
        """
        alerts: list[Alert] = []
        rejected: list[Rejected] = []
        for packet in packets:
            try:
                alerts.append(self._alert(packet))
            except RejectedAlertError as error:
                rejected.append(Rejected(packet, error.reason, STAGE, str(error)))
        return Decoded(alerts, rejected)

    def _alert(self, packet: Packet) -> Alert:
        frame = self._frames.open(packet.value)
        layout = self._layout(frame.writer)
        spans = layout.plan.walk(frame.body)
        alert_id = layout.value("alert_id", frame.body, spans)
        if alert_id is None:
            raise RejectedAlertError("the alert's id is null", reason=Reason.MISSING_ID)
        return Alert(packet, frame, layout, spans, str(alert_id))

    def _layout(self, writer: WriterSchema) -> Layout:
        layout = self._layouts.get(writer.digest)
        if layout is None:
            layout = Layout(writer, self._profile, self._limits, solar_system=self._solar_system)
            self._layouts[writer.digest] = layout
            if len(self._layouts) > self._limits.schema_cache_entries:
                self._layouts.popitem(last=False)
        return layout
