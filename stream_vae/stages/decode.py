"""Packets to alerts: open the framing, walk the record, find the fields that the survey's profile names.

Nothing is decoded here but the alert's id; cutouts and other values are read from their byte spans by the
stage that needs them. A packet that cannot be walked to its last byte is rejected with the reason.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from stream_vae.alert import Alert, Packet, Rejected
from stream_vae.avro.framing import Frame, FrameReader
from stream_vae.avro.limits import Limits
from stream_vae.avro.schema import WriterSchema
from stream_vae.avro.walker import fault
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
        frames = self._frames.open_each([packet.value for packet in packets])
        found: list[Alert | RejectedAlertError | None] = [None] * len(packets)
        of_writer: dict[WriterSchema, list[tuple[int, Frame]]] = {}
        for row, frame in enumerate(frames):
            if isinstance(frame, Frame):
                of_writer.setdefault(frame.writer, []).append((row, frame))
            else:
                found[row] = frame
        for writer, group in of_writer.items():
            rows = [row for row, _ in group]
            decoded = self._alerts(writer, [packets[row] for row in rows], [frame for _, frame in group])
            for row, each in zip(rows, decoded, strict=True):
                found[row] = each
        alerts: list[Alert] = []
        rejected: list[Rejected] = []
        for packet, result in zip(packets, found, strict=True):
            if isinstance(result, Alert):
                alerts.append(result)
            elif result is not None:
                rejected.append(Rejected(packet, result.reason, STAGE, str(result)))
        return Decoded(alerts, rejected)

    def _alerts(
        self, writer: WriterSchema, packets: Sequence[Packet], frames: Sequence[Frame]
    ) -> Sequence[Alert | RejectedAlertError]:
        """Walk the records of one writer."""
        try:
            layout = self._layout(writer)
        except RejectedAlertError as error:
            return [error] * len(packets)
        where = np.array([frame.address for frame in frames], np.uintp)
        sizes = np.array([len(frame.body) for frame in frames], np.int64)
        spans, ends = layout.plan.walk_each(where, sizes)
        whole = ends == sizes
        spans[~whole] = -1  # where a walk broke off, nothing is where it says
        integers = layout.integers("alert_id", where, spans)
        alerts: list[Alert | RejectedAlertError] = []
        for row, (packet, frame) in enumerate(zip(packets, frames, strict=True)):
            if not whole[row]:
                alerts.append(fault(int(ends[row]), len(frame.body)))
                continue
            try:
                alert_id = integers[row] if integers else layout.value("alert_id", frame.body, spans[row])
            except RejectedAlertError as error:
                alerts.append(error)
                continue
            if alert_id is None:
                alerts.append(RejectedAlertError("the alert's id is null", reason=Reason.MISSING_ID))
            else:
                alerts.append(Alert(packet, frame, layout, spans[row], str(alert_id)))
        return alerts

    def _layout(self, writer: WriterSchema) -> Layout:
        layout = self._layouts.get(writer.digest)
        if layout is None:
            layout = Layout(writer, self._profile, self._limits, solar_system=self._solar_system)
            self._layouts[writer.digest] = layout
            if len(self._layouts) > self._limits.schema_cache_entries:
                self._layouts.popitem(last=False)
        return layout
