"""Where one writer schema keeps what a survey's profile names: paths to byte spans, resolved once a schema."""

from typing import Any

import numpy as np
import numpy.typing as npt

from stream_vae.avro.limits import Limits
from stream_vae.avro.nodes import Kind, Node, resolve
from stream_vae.avro.program import find
from stream_vae.avro.schema import WriterSchema
from stream_vae.avro.walker import FieldPlan, Spans
from stream_vae.errors import Reason, RejectedAlertError
from stream_vae.native import Addresses
from stream_vae.surveys import CUTOUTS, Fields, Profile, SolarSystem

_SHAPE = ("height", "width")
_INTEGER = frozenset((Kind.INT, Kind.LONG))
_NUMBER = _INTEGER | {Kind.FLOAT, Kind.DOUBLE}
_TEXT = _INTEGER | {Kind.STRING, Kind.ENUM}
_KINDS = {
    "alert_id": _INTEGER | {Kind.STRING},
    "object_id": _TEXT,
    "band": _TEXT,
    **dict.fromkeys(_SHAPE, _INTEGER),
    **dict.fromkeys(("solar_system.object_id", "solar_system.name"), _TEXT),
    "injection.injected": _NUMBER | _TEXT | {Kind.BOOLEAN},
}
"""What may stand behind a name, null apart; a number where nothing is said. A field of another type is no field."""


class Layout:
    """Where one writer schema keeps what a profile names.

    Parameters
    ----------
    writer : WriterSchema
        The schema that the packets were written with.
    profile : Profile
        The survey's paths.
    limits : Limits
        Bounds on what one record may cost.
    solar_system : bool
        Find the profile's section of that name too, its fields as `solar_system.name`: for labels, not for scores.
        Its section on injection, if any, is always found, as `injection.injected`.

    Raises
    ------
    RejectedAlertError
        If the schema has no field for the alert's id.
    """

    __slots__ = ("_index", "plan")

    def __init__(self, writer: WriterSchema, profile: Profile, limits: Limits, *, solar_system: bool = False) -> None:
        root = resolve(writer.parsed, max_depth=limits.max_depth)
        present = {
            name: path
            for name, alternatives in _wanted(profile, solar_system=solar_system).items()
            if (path := next((path for path in alternatives if _fits(find(root, path), name)), None)) is not None
        }
        if "alert_id" not in present:
            raise RejectedAlertError(
                f"the writer schema has no integer or string {' or '.join(profile.fields.alert_id)}",
                reason=Reason.SCHEMA,
            )
        paths = list(dict.fromkeys(present.values()))  # two names may share a path: an object's id that is the alert's
        self._index = {name: paths.index(path) for name, path in present.items()}
        self.plan = FieldPlan(writer.parsed, paths, limits)

    def has(self, name: str) -> bool:
        """Tell whether the schema has a field of a fitting type for one of the profile's names.

        Parameters
        ----------
        name : str
            A profile's field or cutout.

        Returns
        -------
        bool
            False if no alert of this schema can have it.
        """
        return name in self._index

    def value(self, name: str, body: bytes | memoryview, spans: npt.NDArray[np.int64]) -> Any:
        """Decode one value.

        Parameters
        ----------
        name : str
            A profile's field.
        body : bytes or memoryview
            The record.
        spans : ndarray
            What the walk found.

        Returns
        -------
        int, float, str, bytes or None
            None where it is null or absent.

        Raises
        ------
        RejectedAlertError
            If a string is not UTF-8.
        """
        at = self._index.get(name)
        return None if at is None or spans[at, 0] < 0 else self.plan.value(body, spans, at)

    def integers(self, name: str, addresses: Addresses, spans: Spans) -> list[int | None] | None:
        """Decode one integer of each alert of a batch in one call.

        Parameters
        ----------
        name : str
            A profile's field.
        addresses : ndarray of uintp, shape (n,)
            Where each record lies.
        spans : ndarray of int64, shape (n, paths, 2)
            What the walk found.

        Returns
        -------
        list of int or None, or None
            None for an alert where it is null; nothing at all where this schema's values are no integers.
        """
        at = self._index.get(name)
        return self.plan.integers(addresses, spans, at) if at is not None and self.plan.is_integer(at) else None

    def span_index(self, name: str) -> int | None:
        """Tell which of the spans is that of a name.

        Parameters
        ----------
        name : str
            A profile's field or cutout.

        Returns
        -------
        int or None
            None where the schema lacks it.
        """
        return self._index.get(name)

    def cutout(self, name: str, body: bytes | memoryview, spans: npt.NDArray[np.int64]) -> memoryview | None:
        """Return a cutout's bytes without copying them.

        Parameters
        ----------
        name : str
            One of `CUTOUTS`.
        body : bytes or memoryview
            The record.
        spans : ndarray
            What the walk found.

        Returns
        -------
        memoryview or None
            None where it is null or absent.
        """
        at = self._index.get(name)
        return None if at is None else self.plan.view(body, spans, at)


def _fits(node: Node | None, name: str) -> bool:
    """Tell whether a field's type is one that the stages can use; a stage that asks for it never fails then."""
    if node is None:
        return False
    kinds = {branch.kind for branch in (node.children if node.kind is Kind.UNION else (node,))} - {Kind.NULL}
    if name in CUTOUTS:
        return kinds in ({Kind.BYTES}, {Kind.FIXED})
    return bool(kinds) and kinds <= _KINDS.get(name, _NUMBER)


def _wanted(profile: Profile, *, solar_system: bool) -> dict[str, tuple[str, ...]]:
    fields = {name: getattr(profile.fields, name) for name in Fields.model_fields}
    cutouts = {name: profile.cutouts.paths(name) for name in CUTOUTS}
    asked = profile.solar_system if solar_system else None
    more = {} if asked is None else {f"solar_system.{name}": getattr(asked, name) for name in SolarSystem.model_fields}
    if profile.injection is not None:
        more["injection.injected"] = profile.injection.injected
    return fields | cutouts | {name: getattr(profile.cutouts, name) for name in _SHAPE} | more
