"""Simulated alerts as bytes, for demonstrations and tests: in our own schema, or with the field paths of ZTF's."""

import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, Literal

import deflate
import fastavro
import numpy as np
import numpy.typing as npt

from stream_vae import schemas
from stream_vae.avro.binary import write_bytes, write_long
from stream_vae.sky.fits import write_fits
from stream_vae.sky.simulate import SimulatedStamps, simulate_images

Shape = Literal["ztf", "candidate"]

_CUTOUT_PX = {"ztf": 63, "candidate": 21}
_CHANNELS = ("difference", "science", "template")
_MJD_TO_JD = 2_400_000.5
_TAI_MINUS_UTC_DAYS = 37.0 / 86_400.0  # since 2017; ZTF's dates are UTC
_GZIP_LEVEL = 1  # noise hardly compresses, and packets should be made faster than they are read
_NO_OBJECT = -999.0  # what ZTF writes where there is no solar-system object


@dataclass(frozen=True, slots=True)
class SimulatedPacket:
    """One simulated alert, ready to be published, and the truth about it.

    Parameters
    ----------
    key : bytes
        Kafka key: the object's id.
    packet : bytes
        The message.
    label : int
        1 real, 0 bogus.
    kind : str
        One of `stream_vae.sky.REAL_KINDS` or `stream_vae.sky.BOGUS_KINDS`.
    candid : int
        The alert's id.
    """

    key: bytes
    packet: bytes
    label: int
    kind: str
    candid: int


def simulate_packets(
    n: int,
    *,
    shape: Shape = "ztf",
    seed: int = 0,
    size: int | None = None,
    real_fraction: float | None = None,
    fading: float | None = None,
    schema_id: int | None = None,
) -> Iterator[SimulatedPacket]:
    """Make simulated alerts one by one.

    Parameters
    ----------
    n : int
        Number of alerts.
    shape : {"ztf", "candidate"}
        The schema: with ZTF's field paths and gzip'd FITS cutouts, or ours with raw stamps.
    seed : int
        Fixes everything, ids included; different seeds give different ids.
    size : int, optional
        Pixels along each side of the cutouts, odd: by default 63 for ZTF's shape, 21 for ours.
    real_fraction : float, optional
        Share of real ones.
    fading : float, optional
        Share of fading sources, as `simulate_stamps` has it.
    schema_id : int, optional
        Gives messages in Confluent's wire format with this id, rather than Avro files.

    Yields
    ------
    SimulatedPacket
        Image by image, as a survey sends them.
    """
    writer = PacketWriter(packet_schema(shape), schema_id=schema_id)
    rng = np.random.default_rng((seed, 0x5EED))
    candid = (1_000 + seed % 8_000) * 10**15
    for image in simulate_images(
        n, size=size or _CUTOUT_PX[shape], seed=seed, real_fraction=real_fraction, fading=fading
    ):
        for i in range(len(image)):
            candid += 1
            record = _ztf_record(image, i, candid, rng) if shape == "ztf" else _candidate_record(image, i, candid)
            yield SimulatedPacket(
                key=_object_id(candid).encode(),
                packet=writer.write(record, rng.bytes(16)),
                label=int(image.labels[i]),
                kind=str(image.kinds[i]),
                candid=candid,
            )


@cache
def packet_schema(shape: Shape) -> str:
    """Read the schema of simulated packets, as a registry would be given it.

    Parameters
    ----------
    shape : {"ztf", "candidate"}
        Which one.

    Returns
    -------
    str
        JSON.
    """
    if shape == "candidate":
        return schemas.read("candidate", "1.0")
    return (files("stream_vae.sky") / "ztf_like.avsc").read_text(encoding="utf-8")


class PacketWriter:
    """Writes records of one schema as messages.

    Parameters
    ----------
    schema : str
        The schema as JSON.
    schema_id : int, optional
        For Confluent's wire format; without it every message is an Avro file.
    """

    def __init__(self, schema: str, *, schema_id: int | None = None) -> None:
        self._schema = fastavro.parse_schema(json.loads(schema))
        if schema_id is None:
            compact = json.dumps(json.loads(schema), separators=(",", ":"))
            self._header = ocf_header({"avro.codec": b"null", "avro.schema": compact.encode()})
        else:
            self._header = b"\0" + schema_id.to_bytes(4, "big")
        self._confluent = schema_id is not None

    def write(self, record: Mapping[str, Any], sync: bytes) -> bytes:
        """Write one message.

        Parameters
        ----------
        record : mapping
            The alert.
        sync : bytes
            16 random bytes that mark the ends of an Avro file's blocks.

        Returns
        -------
        bytes
            The message.
        """
        body = io.BytesIO()
        fastavro.schemaless_writer(body, self._schema, record)
        if self._confluent:
            return self._header + body.getvalue()
        return self._header + sync + ocf_block(body.getvalue(), sync)


def ocf_header(metadata: Mapping[str, bytes]) -> bytes:
    """Write an Avro file's header up to its sync marker.

    Parameters
    ----------
    metadata : mapping of str to bytes
        Its entries.

    Returns
    -------
    bytes
        Magic and metadata.
    """
    entries = b"".join(write_bytes(key.encode()) + write_bytes(value) for key, value in metadata.items())
    return b"Obj\x01" + write_long(len(metadata)) + entries + b"\0"


def ocf_block(body: bytes, sync: bytes) -> bytes:
    """Write the one block of an Avro file with one record.

    Parameters
    ----------
    body : bytes
        The record, compressed as the header says.
    sync : bytes
        The header's marker.

    Returns
    -------
    bytes
        Count, size, body and marker.
    """
    return write_long(1) + write_long(len(body)) + body + sync


def gzip_fits(image: npt.NDArray[np.generic]) -> bytes:
    """Write a cutout as ZTF does: a gzip'd FITS file.

    Parameters
    ----------
    image : ndarray, (height, width)
        The pixels.

    Returns
    -------
    bytes
        The cutout.
    """
    return bytes(deflate.gzip_compress(write_fits(image), _GZIP_LEVEL))


def _object_id(candid: int) -> str:
    return f"SIM{candid % 10**15:09d}s{candid // 10**15}"


def _candidate_record(image: SimulatedStamps, i: int, candid: int) -> dict[str, Any]:
    height, width = image.stamps.shape[1:3]
    mag = float(image.mag[i])
    stamps = {
        name: np.ascontiguousarray(image.stamps[i, :, :, channel], dtype="<f4").tobytes()
        for channel, name in enumerate(_CHANNELS)
    }
    return {
        "candidate_id": candid,
        "object_id": _object_id(candid),
        "ra_deg": float(image.ra_deg[i]),
        "dec_deg": float(image.dec_deg[i]),
        "midpoint_mjd": float(image.midpoint_mjd[i]),
        "time_scale": "TAI",
        "band": "gri"[int(image.groups[i]) % 3],
        "snr": float(image.snr[i]),
        "mag": mag if np.isfinite(mag) else None,
        "height": height,
        "width": width,
        "survey": "simulated",
        **stamps,
    }


def _ztf_record(image: SimulatedStamps, i: int, candid: int, rng: np.random.Generator) -> dict[str, Any]:
    stamps = image.stamps[i].copy()
    if not image.positive[i]:
        stamps[:, :, 0] *= -1.0  # ZTF searches template minus science for these, and cuts from that
    cutouts = {
        f"cutout{name.capitalize()}": {
            "fileName": f"candid{candid}_{name}.fits.gz",
            "stampData": gzip_fits(stamps[:, :, channel]),
        }
        for channel, name in enumerate(_CHANNELS)
    }
    candidate = _ztf_candidate(image, i, candid, rng)
    return {
        "schemavsn": "simulated",
        "publisher": "stream_vae.sky",
        "objectId": _object_id(candid),
        "candid": candid,
        "candidate": candidate,
        "prv_candidates": _history(candidate, rng),
        **cutouts,
    }


def _ztf_candidate(image: SimulatedStamps, i: int, candid: int, rng: np.random.Generator) -> dict[str, Any]:
    mag, snr, group = float(image.mag[i]), float(image.snr[i]), int(image.groups[i])
    asteroid = str(image.kinds[i]) == "asteroid"
    return {
        "jd": float(image.midpoint_mjd[i]) + _MJD_TO_JD - _TAI_MINUS_UTC_DAYS,
        "fid": 1 + group % 3,
        "pid": group,
        "candid": candid,
        "isdiffpos": "t" if image.positive[i] else "f",
        "field": group,
        # The searched piece lies somewhere inside the detector, so that no cutout is cut off at its border.
        "xpos": 1_000.0 + float(image.x[i]),
        "ypos": 1_000.0 + float(image.y[i]),
        "ra": float(image.ra_deg[i]),
        "dec": float(image.dec_deg[i]),
        "magpsf": mag if np.isfinite(mag) else 99.0,
        "sigmapsf": 1.0857 / snr,
        "scorr": snr,
        "ssdistnr": rng.uniform(0.0, 2.0) if asteroid else _NO_OBJECT,
        "ssmagnr": mag + 0.3 * rng.standard_normal() if asteroid else _NO_OBJECT,
        "ssnamenr": f"{candid % 100_000}" if asteroid else "null",
        "exptime": 30.0,
    }


def _history(candidate: Mapping[str, Any], rng: np.random.Generator) -> list[dict[str, Any]] | None:
    """Up to a dozen earlier visits, mostly without a detection; a quarter of the alerts have none."""
    n = max(int(rng.integers(-4, 13)), 0)
    if n == 0:
        return None
    visits: list[dict[str, Any]] = []
    for jd in candidate["jd"] - np.sort(rng.uniform(0.5, 30.0, n))[::-1]:
        visit: dict[str, Any] = {"jd": float(jd), "fid": int(rng.integers(1, 4)), "pid": int(rng.integers(10**9))}
        visit["diffmaglim"] = float(rng.uniform(19.0, 21.0))
        if rng.uniform() < 0.3:
            visit |= {"candid": candidate["candid"] - 10**12 * len(visits) - 1, "magpsf": candidate["magpsf"] + 0.2}
            visit |= {"ra": candidate["ra"], "dec": candidate["dec"], "sigmapsf": 0.1}
        visits.append(visit)
    return visits
