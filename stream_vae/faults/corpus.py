"""Spoil a good message in one of a closed list of ways, and say what must become of it.

For ``replay --corrupt``, the demonstration, and the test that drives every kind through Kafka. The ways
themselves are in three modules: those of the message's framing and record, of its cutouts' files, and of
its pixels.
"""

from collections.abc import Mapping

import numpy as np

from stream_vae.errors import RejectedAlertError
from stream_vae.faults.cutouts import CUTOUT_FAULTS, PIXEL_FAULTS
from stream_vae.faults.fault import Expected, Fault, Outcome, Scope
from stream_vae.faults.framing import BYTES_FAULTS, FRAMING_FAULTS, ID_FAULTS
from stream_vae.faults.unpacking import Unpacked, unpack

__all__ = ["EXPECTED", "FAULTS", "KINDS", "Expected", "Outcome", "corrupt", "kinds_for"]

FAULTS: Mapping[str, Fault] = {**BYTES_FAULTS, **FRAMING_FAULTS, **ID_FAULTS, **CUTOUT_FAULTS, **PIXEL_FAULTS}
"""Every kind of fault by its name."""

KINDS: tuple[str, ...] = tuple(FAULTS)
"""The closed list of kinds."""

EXPECTED: Mapping[str, Expected] = {kind: fault.expected for kind, fault in FAULTS.items()}
"""What must become of a message with each kind of fault, whichever cutouts the release needs."""


def corrupt(packet: bytes, kind: str, rng: np.random.Generator) -> bytes:
    """Spoil a message.

    Parameters
    ----------
    packet : bytes
        A good message with cutouts that can be scored.
    kind : str
        One of `KINDS`.
    rng : numpy.random.Generator
        Where and with what to spoil it, as far as that is open.

    Returns
    -------
    bytes
        Another message. All of an alert's cutouts are spoiled alike.

    Raises
    ------
    KeyError
        There is no such kind.
    ValueError
        This message cannot have this fault: see `kinds_for`.
    """
    fault, parts = FAULTS[kind], _unpacked(packet)
    if fault.scope is not Scope.BYTES and (parts is None or fault.scope not in parts.scopes):
        raise ValueError(f"a message like this cannot have the fault {kind!r}")
    return fault.spoil(packet, parts, rng)


def kinds_for(packet: bytes) -> tuple[str, ...]:
    """Tell which faults a message can have.

    Parameters
    ----------
    packet : bytes
        A good message.

    Returns
    -------
    tuple of str
        Of `KINDS`: all but one or two for an alert like ZTF's. For a bare record or one in Confluent's wire format,
        whose schema is elsewhere, only those that need no schema; for raw stamps none of those of FITS files.
    """
    parts = _unpacked(packet)
    scopes = {Scope.BYTES} | (set() if parts is None else parts.scopes)
    return tuple(kind for kind, fault in FAULTS.items() if fault.scope in scopes)


def _unpacked(packet: bytes) -> Unpacked | None:
    try:
        return unpack(packet)
    except RejectedAlertError:
        return None
