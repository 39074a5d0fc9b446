"""Take a good message apart and put it together again with one thing changed."""

import copy
import gzip
import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum, auto
from functools import cached_property
from typing import Any

import fastavro
import numpy as np
import numpy.typing as npt

from stream_vae.avro.framing import FrameReader, Framing
from stream_vae.cutout import CutoutError, decompress, read_fits
from stream_vae.sky.fits import write_fits
from stream_vae.sky.packets import gzip_fits, ocf_block, ocf_header
from stream_vae.sky.psf import Image

ID_FIELDS = ("candid", "candidate_id", "diaSourceId", "alertId")
_FITS_FIELDS = ("cutoutDifference", "cutoutScience", "cutoutTemplate")
_RAW_FIELDS = ("difference", "science", "template")
_GZIP_MAGIC = b"\x1f\x8b"
_MAX_CUTOUT_BYTES = 1 << 24

Pixels = npt.NDArray[np.generic]


class Scope(Enum):
    """What a message must have for a fault to be possible."""

    BYTES = auto()
    """Nothing: any message will do."""
    OCF = auto()
    """It is an Avro file, so that its schema is at hand."""
    ID = auto()
    """And its id is a field at the top."""
    FITS = auto()
    """And its cutouts are FITS files."""
    GZIP = auto()
    """And these are gzip'd."""
    RAW = auto()
    """And its cutouts are raw pixels with a shape beside them."""
    NULLABLE = auto()
    """And its schema allows each cutout to be null."""
    PIXELS = auto()
    """And its cutouts are FITS files or raw pixels."""


@dataclass(frozen=True)
class Unpacked:
    """The parts of an Avro file with one record.

    Parameters
    ----------
    schema : dict
        The writer schema; shared, so not to be changed.
    sync : bytes
        The marker of its block.
    body : bytes
        The record, not compressed.
    """

    schema: dict[str, Any]
    sync: bytes
    body: bytes

    @cached_property
    def scopes(self) -> frozenset[Scope]:
        """What can be done to it."""
        types = {field["name"]: field["type"] for field in self.schema["fields"]}
        names = types.keys()
        found = {Scope.OCF}
        if self.id_field is not None:
            found.add(Scope.ID)
        if names >= {*_RAW_FIELDS, "height", "width"}:
            found |= {Scope.RAW, Scope.PIXELS}
        if names >= {*_FITS_FIELDS} and self._cutouts_are_fits():
            found |= {Scope.FITS, Scope.PIXELS}
            if all(cutout[:2] == _GZIP_MAGIC for cutout in self.cutouts().values()):
                found.add(Scope.GZIP)
        if Scope.PIXELS in found and all("null" in types[name] for name in self.cutouts()):
            found.add(Scope.NULLABLE)
        return frozenset(found)

    @property
    def id_field(self) -> str | None:
        """The field at the top that holds the alert's id."""
        names = [field["name"] for field in self.schema["fields"]]
        return next((name for name in ID_FIELDS if name in names), None)

    @cached_property
    def record(self) -> dict[str, Any]:
        """The alert; shared, so not to be changed."""
        record: dict[str, Any] = fastavro.schemaless_reader(
            io.BytesIO(self.body), fastavro.parse_schema(self.schema), None
        )
        return record

    def _cutouts_are_fits(self) -> bool:
        try:
            return all(read_fits(decompress(c, _MAX_CUTOUT_BYTES)).size for c in self.cutouts().values())
        except (CutoutError, TypeError):  # damaged, or null
            return False

    def cutouts(self) -> dict[str, bytes]:
        """Give the cutouts' bytes.

        Returns
        -------
        dict of str to bytes
            By the name of their field.
        """
        names = _FITS_FIELDS if _FITS_FIELDS[0] in self.record else _RAW_FIELDS
        return {name: _bytes_of(self.record[name]) for name in names}

    def pack(
        self,
        *,
        schema: Mapping[str, Any] | bytes | None = None,
        body: bytes | None = None,
        metadata: Mapping[str, bytes] | None = None,
    ) -> bytes:
        """Put an Avro file together.

        Parameters
        ----------
        schema : mapping or bytes, optional
            Another schema, or other bytes where the schema's JSON belongs.
        body : bytes, optional
            Another record, compressed as the metadata say.
        metadata : mapping of str to bytes, optional
            Metadata that replace or are added to the usual ones.

        Returns
        -------
        bytes
            The message.
        """
        return self.head(schema=schema, metadata=metadata) + ocf_block(self.body if body is None else body, self.sync)

    def head(
        self, *, schema: Mapping[str, Any] | bytes | None = None, metadata: Mapping[str, bytes] | None = None
    ) -> bytes:
        """Write an Avro file up to its block.

        Parameters
        ----------
        schema : mapping or bytes, optional
            Another schema, or other bytes where its JSON belongs.
        metadata : mapping of str to bytes, optional
            As for `pack`.

        Returns
        -------
        bytes
            Magic, metadata and marker.
        """
        text = schema if isinstance(schema, bytes) else json.dumps(schema or self.schema).encode()
        return ocf_header({"avro.codec": b"null", "avro.schema": text, **(metadata or {})}) + self.sync

    def with_field(self, field_type: object, value: bytes) -> bytes:
        """Append a field to the record.

        Parameters
        ----------
        field_type : object
            Its type, as JSON has it.
        value : bytes
            Its encoding, which need not be right.

        Returns
        -------
        bytes
            The message.
        """
        fields = [*self.schema["fields"], {"name": "appended_by_fault", "type": field_type}]
        return self.pack(schema={**self.schema, "fields": fields}, body=self.body + value)

    def with_cutouts(self, change: Callable[[bytes], bytes | None]) -> bytes:
        """Change the bytes of every cutout.

        Parameters
        ----------
        change : callable
            Takes a cutout, gives another or None.

        Returns
        -------
        bytes
            The message.
        """
        record = copy.copy(self.record)
        for name, cutout in self.cutouts().items():
            record[name] = _replaced(record[name], change(cutout))
        return self.with_record(record)

    def with_pixels(self, change: Callable[[Image], Pixels]) -> bytes:
        """Change the image in every cutout.

        Parameters
        ----------
        change : callable
            Takes a float32 image without NaN, gives another of any shape.

        Returns
        -------
        bytes
            The message.
        """
        record, shape = copy.copy(self.record), (0, 0)
        for name, cutout in self.cutouts().items():
            changed = change(_without_gaps(self._image(cutout)))
            shape = changed.shape
            record[name] = _replaced(record[name], self._encoded(changed, cutout))
        if Scope.RAW in self.scopes:
            record["height"], record["width"] = shape
        return self.with_record(record)

    def images(self) -> dict[str, Image]:
        """Give the images in the cutouts, with masked pixels filled.

        Returns
        -------
        dict of str to ndarray of float32
            By the name of their field.
        """
        return {name: _without_gaps(self._image(cutout)) for name, cutout in self.cutouts().items()}

    def with_record(self, record: Mapping[str, Any], schema: Mapping[str, Any] | None = None) -> bytes:
        """Encode another record.

        Parameters
        ----------
        record : mapping
            The alert.
        schema : mapping, optional
            Its schema, if it is another.

        Returns
        -------
        bytes
            The message.
        """
        body = io.BytesIO()
        fastavro.schemaless_writer(body, fastavro.parse_schema(dict(schema or self.schema)), record)
        return self.pack(schema=schema, body=body.getvalue())

    def _image(self, cutout: bytes) -> Pixels:
        if Scope.RAW in self.scopes:
            return np.frombuffer(cutout, "<f4").reshape(self.record["height"], self.record["width"])
        return read_fits(decompress(cutout, _MAX_CUTOUT_BYTES))

    def _encoded(self, image: Pixels, like: bytes) -> bytes:
        if Scope.RAW in self.scopes:
            return image.astype("<f4").tobytes()
        return gzip_fits(image) if like[:2] == _GZIP_MAGIC else write_fits(image)


def unpack(packet: bytes) -> Unpacked:
    """Take an Avro file apart.

    Parameters
    ----------
    packet : bytes
        A good message.

    Returns
    -------
    Unpacked
        Its parts.

    Raises
    ------
    RejectedAlertError
        It is not an Avro file with one record.
    """
    frame = FrameReader(framing=Framing.OCF).open(packet)
    return Unpacked(frame.writer.parsed, frame.sync, bytes(frame.body))


def gunzip(cutout: bytes) -> bytes:
    """Give the FITS file in a cutout.

    Parameters
    ----------
    cutout : bytes
        A FITS file, gzip'd or not.

    Returns
    -------
    bytes
        The FITS file.
    """
    return gzip.decompress(cutout) if cutout[:2] == _GZIP_MAGIC else cutout


def _bytes_of(value: Any) -> Any:
    return value["stampData"] if isinstance(value, dict) else value


def _replaced(value: Any, cutout: bytes | None) -> Any:
    return {**value, "stampData": cutout} if isinstance(value, dict) and cutout is not None else cutout


def _without_gaps(image: Pixels) -> Image:
    """Fill masked pixels, so that what a fault does to an image is all that is wrong with it."""
    pixels = image.astype(np.float32)
    level = np.nanmedian(np.where(np.isfinite(pixels), pixels, np.nan))
    filled: Image = np.where(np.isfinite(pixels), pixels, np.float32(level))
    return filled
