"""The store that releases live in: which there are, which is served, and what happened to them.

A store is a folder or any fsspec URL::

    releases/<id>/          see `stream_vae.model.release`
    current.json            which one is served
    challenger.json         which one is on trial beside it, if any
    history/<time>-<event>-<id>.json
"""

import json
import re
import shutil
import tempfile
import weakref
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec
from pydantic import ValidationError

from stream_vae import __version__
from stream_vae.errors import ConfigError, RetriableError
from stream_vae.model.challenger import Challenger, Mode
from stream_vae.model.release import CARD, ENCODER, REQUIRED, Preprocessing, Release, ReleaseCard, problems, sha256

_CHALLENGER = "challenger.json"
_ID = re.compile(r"[a-z0-9][a-z0-9._-]{0,100}")


def _is_file(filesystem: Any, root: str) -> bool:
    """Tell for a local path; of a remote one nothing is asked before it is needed."""
    return isinstance(filesystem, fsspec.implementations.local.LocalFileSystem) and Path(root).is_file()


class ReleaseStore:
    """Releases under one URL, and which of them is current.

    Parameters
    ----------
    url : str
        A folder or an fsspec URL (``s3://``, ``gs://``, ``memory://``; other schemes as fsspec's plug-ins allow).

    Raises
    ------
    ConfigError
        If the scheme is unknown, its plug-in is not installed, or it is a file.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        try:
            self._fs, root = fsspec.core.url_to_fs(url)
        except (ValueError, ImportError) as error:
            raise ConfigError(
                f"release.store = {url!r} cannot be opened: {error}.",
                remedy="Give a folder, or install the fsspec plug-in of that scheme (s3fs, gcsfs).",
            ) from error
        self._root = PurePosixPath(root)
        if _is_file(self._fs, root):
            raise ConfigError(
                f"The release store {url} is a file, not a folder.",
                remedy="Name the folder that holds releases/, or one that is to be made.",
            )
        self._local = isinstance(self._fs, fsspec.implementations.local.LocalFileSystem)
        self._copies: Path | None = None

    def ids(self) -> list[str]:
        """List the releases.

        Returns
        -------
        list of str
            Oldest first.

        Raises
        ------
        RetriableError
            If the store cannot be reached.
        """
        return [card.id for card in self.cards()]

    def cards(self) -> list[ReleaseCard]:
        """Read the card of every release.

        Returns
        -------
        list of ReleaseCard
            Oldest first; folders without a readable card are left out (``verify`` names them).

        Raises
        ------
        RetriableError
            If the store cannot be reached.
        """
        cards = []
        for name in self.folders():
            try:
                cards.append(
                    ReleaseCard.model_validate_json(self._fs.cat_file(str(self._root / "releases" / name / CARD)))
                )
            except (OSError, ValidationError):
                continue
        return sorted(cards, key=lambda card: (card.created_at, card.id))

    def folders(self) -> list[str]:
        """List what lies in the store, whole or not.

        Returns
        -------
        list of str
            Names of the release folders, sorted.

        Raises
        ------
        RetriableError
            If the store cannot be reached.
        """
        try:
            # A store that another process writes to changes: never answer from fsspec's cache.
            self._fs.invalidate_cache()
            entries = self._fs.ls(str(self._root / "releases"), detail=False)
        except FileNotFoundError:
            return []
        except OSError as error:
            raise RetriableError(f"The release store {self.url} cannot be read: {error}.") from error
        names = (PurePosixPath(str(entry).rstrip("/")).name for entry in entries)
        return sorted(name for name in names if _ID.fullmatch(name))

    def current(self) -> str | None:
        """Return the id of the release that is served.

        Returns
        -------
        str or None
            None if none was ever promoted.

        Raises
        ------
        ConfigError
            If the pointer is damaged.
        RetriableError
            If the store cannot be reached.
        """
        try:
            pointer = json.loads(self._fs.cat_file(str(self._root / "current.json")))
            return str(pointer["release"])
        except FileNotFoundError:
            return None
        except OSError as error:
            raise RetriableError(f"The release store {self.url} cannot be read: {error}.") from error
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"current.json of the release store {self.url} is damaged: {error}.",
                remedy="Promote a release again: `stream-vae releases promote ID --store URL`.",
            ) from error

    def resolve(self, release_id: str | None) -> str:
        """Turn what a person or the settings say into a release's id.

        Parameters
        ----------
        release_id : str or None
            An id, an unambiguous beginning or end of one, or None for the current one.

        Returns
        -------
        str
            The id.

        Raises
        ------
        ConfigError
            If there is none such, or several.
        """
        ids = self.folders()
        if release_id is None:
            current = self.current()
            if current is None:
                raise ConfigError(
                    f"The release store {self.url} has no current release ({len(ids)} in all).",
                    remedy="Train one with `stream-vae train --promote`, or `stream-vae releases promote ID`.",
                )
            return current
        if release_id in ids:
            return release_id
        matches = [i for i in ids if i.startswith(release_id) or i.endswith(release_id)]
        if len(matches) != 1:
            what = "matches several releases: " + ", ".join(matches) if matches else "is not there"
            raise ConfigError(
                f"Release {release_id!r} {what} in the store {self.url}.",
                remedy="`stream-vae releases list --store URL` shows them.",
            )
        return matches[0]

    def load(self, release_id: str | None = None) -> Release:
        """Fetch a release and verify it.

        Parameters
        ----------
        release_id : str, optional
            As for `resolve`.

        Returns
        -------
        Release
            Verified, in a local folder that lasts as long as it and this store object do.

        Raises
        ------
        ConfigError
            If it is not there or not what was released.
        RetriableError
            If the store cannot be reached.
        """
        name = self.resolve(release_id)
        folder = self.fetch(name)
        if found := problems(folder):
            raise ConfigError(
                f"Release {name} of {self.url} is damaged: " + "; ".join(found) + ".",
                remedy="Train or copy it again; `stream-vae releases verify` checks every release.",
            )
        return Release(ReleaseCard.model_validate_json((folder / CARD).read_bytes()), folder, self)

    def fetch(self, release_id: str) -> Path:
        """Return a local folder with a release's files, unverified.

        Parameters
        ----------
        release_id : str
            A full id.

        Returns
        -------
        Path
            The store's own folder if it is local, else a copy.

        Raises
        ------
        ConfigError
            If it is not there.
        RetriableError
            If the store cannot be reached.
        """
        source = self._root / "releases" / release_id
        if not _ID.fullmatch(release_id) or not self._fs.exists(str(source)):
            raise ConfigError(f"Release {release_id!r} is not in the store {self.url}.")
        if self._local:
            return Path(str(source))
        if self._copies is None:
            self._copies = Path(tempfile.mkdtemp(prefix="stream-vae-releases-"))
            weakref.finalize(self, shutil.rmtree, self._copies, ignore_errors=True)
        target = self._copies / release_id
        try:
            self._fs.get(f"{source}/", f"{target}/", recursive=True)
        except OSError as error:
            raise RetriableError(f"Release {release_id} cannot be fetched from {self.url}: {error}.") from error
        return target

    def publish(self, folder: Path, card: ReleaseCard) -> ReleaseCard:
        """Put a finished folder into the store; half a release is never seen.

        Parameters
        ----------
        folder : Path
            The files; ``card.json`` is written into it.
        card : ReleaseCard
            Without id and file digests, which are computed here.

        Returns
        -------
        ReleaseCard
            The complete card.

        Raises
        ------
        ConfigError
            If a file's name may not be in a release.
        RetriableError
            If the store cannot be written.
        """
        files = _digests(folder)
        card = _checked(card.model_dump() | {"files": files}).named()
        releases = self._root / "releases"
        # Where a folder can be renamed it comes to be in one step; elsewhere its card does, and comes last.
        place = releases / (f".{card.id}.part" if self._local else card.id)
        try:
            for name in files:
                self._fs.makedirs(str((place / name).parent), exist_ok=True)
                self._fs.put_file(str(folder / name), str(place / name))
            self._write(place / CARD, card.model_dump_json(indent=2).encode())
            if self._local:
                Path(str(place)).replace(str(releases / card.id))
            self.record("created", card.id)
        except OSError as error:
            if self._local:
                shutil.rmtree(str(place), ignore_errors=True)
            raise RetriableError(
                f"Release {card.id} cannot be written to {self.url}: {error}.", remedy="Nothing of it was kept."
            ) from error
        return card

    def promote(self, release_id: str, *, reason: str = "by hand") -> str:
        """Make a release the one that is served.

        Parameters
        ----------
        release_id : str
            As for `resolve`; verified first.
        reason : str
            Kept in the history.

        Returns
        -------
        str
            Its full id.

        Raises
        ------
        ConfigError
            If it is not there or damaged.
        RetriableError
            If the store cannot be reached.
        """
        name = self.load(release_id).id
        try:
            previous = self.current()
        except ConfigError:
            previous = None  # the pointer is damaged, and this mends it
        return self._serve("promoted", name, previous, reason)

    def _serve(self, event: str, name: str, previous: str | None, reason: str) -> str:
        pointer = {"release": name, "previous": previous, "promoted_at": _now().isoformat(), "reason": reason}
        try:
            self._write(self._root / "current.json", json.dumps(pointer, indent=2).encode())
            self.record(event, name, reason=reason, previous=previous)
        except OSError as error:
            raise RetriableError(f"The release store {self.url} cannot be written: {error}.") from error
        # A trial was against what was served until now.
        self._withdraw(f"{name} is served now", successor=name)
        return name

    def challenge(
        self, release_id: str, mode: Mode = "shadow", share: float = 0.1, *, reason: str = "by hand"
    ) -> Challenger:
        """Put a release on trial beside the current one, instead of any that is on trial.

        Parameters
        ----------
        release_id : str
            As for `resolve`; verified first.
        mode : {"shadow", "canary"}
            Whether it only scores alerts too, or publishes them.
        share : float
            Of the alerts, above 0 and up to 1.
        reason : str
            Kept in the history.

        Returns
        -------
        Challenger
            As workers will read it.

        Raises
        ------
        ConfigError
            If it is not there, damaged, current, or takes other stamps than the current one; or the share is none.
        RetriableError
            If the store cannot be reached.
        """
        release, current = self.load(release_id), self.load()
        if release.id == current.id:
            raise ConfigError(f"Release {release.id} is the current one: it cannot challenge itself.")
        if release.card.preprocessing != current.card.preprocessing:
            raise ConfigError(
                f"Release {release.id} prepares stamps in another way than {current.id}, which is current.",
                remedy="They cannot be tried on the same stamps: `stream-vae releases compare` needs no stream.",
            )
        try:
            challenger = Challenger(release=release.id, mode=mode, share=share, since=_now(), reason=reason)
        except ValidationError as error:
            found = "; ".join(f"{each['loc'][0]}: {each['msg']}" for each in error.errors())
            raise ConfigError(f"This is no trial of {release.id}: {found}.") from None
        try:
            self._write(self._root / _CHALLENGER, challenger.model_dump_json(indent=2).encode())
            self.record("challenged", release.id, reason=reason, mode=mode, share=share, current=current.id)
        except OSError as error:
            raise RetriableError(f"The release store {self.url} cannot be written: {error}.") from error
        return challenger

    def challenger(self) -> Challenger | None:
        """Return what is on trial.

        Returns
        -------
        Challenger or None
            None if nothing is.

        Raises
        ------
        ConfigError
            If the pointer is damaged.
        RetriableError
            If the store cannot be reached.
        """
        try:
            return Challenger.model_validate_json(self._fs.cat_file(str(self._root / _CHALLENGER)))
        except FileNotFoundError:
            return None
        except OSError as error:
            raise RetriableError(f"The release store {self.url} cannot be read: {error}.") from error
        except ValidationError as error:
            raise ConfigError(
                f"{_CHALLENGER} of the release store {self.url} is damaged.",
                remedy="End the trial: `stream-vae releases withdraw --store URL`.",
            ) from error

    def withdraw(self, reason: str = "by hand") -> str | None:
        """End the trial; the current release goes on as it was.

        Parameters
        ----------
        reason : str
            Kept in the history.

        Returns
        -------
        str or None
            The release that was on trial; None if none was, or its pointer is damaged.

        Raises
        ------
        RetriableError
            If the store cannot be reached.
        """
        return self._withdraw(reason)

    def _withdraw(self, reason: str, successor: str | None = None) -> str | None:
        """Remove the pointer; a challenger that is served now was not withdrawn."""
        name = None
        with suppress(ConfigError):
            found = self.challenger()
            if found is None:
                return None
            name = found.release
        try:
            with suppress(FileNotFoundError):  # another one was faster
                self._fs.rm_file(str(self._root / _CHALLENGER))
            if name is not None and name != successor:
                self.record("withdrawn", name, reason=reason)
        except OSError as error:
            raise RetriableError(f"The release store {self.url} cannot be written: {error}.") from error
        return name

    def rollback(self, *, reason: str = "by hand") -> str:
        """Serve the release again that was current before this one.

        Parameters
        ----------
        reason : str
            Kept in the history.

        Returns
        -------
        str
            The id that is served now.

        Raises
        ------
        ConfigError
            If there was none before.
        """
        promotions = [event for event in self.history() if event["event"] in ("promoted", "rolled_back")]
        # Walk back through what was served, undoing each rollback with the promotion that it took back.
        served: list[str] = []
        for event in promotions:
            if event["event"] == "rolled_back" and served:
                served.pop()
            elif served[-1:] != [event["release"]]:  # promoting what is served changes nothing
                served.append(event["release"])
        if len(served) < 2:
            raise ConfigError(f"The release store {self.url} has nothing to roll back to.")
        return self._serve("rolled_back", self.load(served[-2]).id, served[-1], reason)

    def record(self, event: str, release_id: str, **details: Any) -> None:
        """Add an event to the store's history.

        Parameters
        ----------
        event : str
            ``created``, ``promoted``, ``rolled_back`` and so on.
        release_id : str
            Whom it concerns.
        **details : Any
            Anything that JSON can hold.
        """
        now = _now()
        entry = {"time": now.isoformat(), "event": event, "release": release_id, **details}
        name = f"{now:%Y%m%dT%H%M%S.%fZ}-{event}-{release_id}.json"
        self._write(self._root / "history" / name, json.dumps(entry, indent=2).encode())

    def history(self) -> list[dict[str, Any]]:
        """Read what happened to the releases of this store.

        Returns
        -------
        list of dict
            Oldest first.

        Raises
        ------
        ConfigError
            If an entry is damaged.
        RetriableError
            If the store cannot be reached.
        """
        try:
            self._fs.invalidate_cache()
            names = sorted(str(name) for name in self._fs.ls(str(self._root / "history"), detail=False))
            return [json.loads(self._fs.cat_file(name)) for name in names if name.endswith(".json")]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise RetriableError(f"The release store {self.url} cannot be read: {error}.") from error
        except ValueError as error:
            raise ConfigError(
                f"The history of the release store {self.url} is damaged: {error}.",
                remedy=f"Remove the damaged file from {self._root / 'history'}.",
            ) from error

    def _write(self, path: PurePosixPath, content: bytes) -> None:
        """Write a small file so that readers see the old content or the new, never a part."""
        self._fs.makedirs(str(path.parent), exist_ok=True)
        if not self._local:
            self._fs.pipe_file(str(path), content)  # object stores replace objects atomically
            return
        with tempfile.NamedTemporaryFile(dir=str(path.parent), prefix=".", delete=False) as file:
            file.write(content)
        Path(file.name).chmod(0o644)
        Path(file.name).replace(str(path))


def write_release(store: ReleaseStore, folder: Path, **about: Any) -> ReleaseCard:
    """Turn a folder of exported files into a release of the store.

    Parameters
    ----------
    store : ReleaseStore
        Where to.
    folder : Path
        Holds at least ``encoder.onnx`` and ``reference.npz``.
    **about : object
        What `draft_card` takes besides.

    Returns
    -------
    ReleaseCard
        With the id and the digests.

    Raises
    ------
    ConfigError
        If a required file is missing, or a name is not fit for a folder.
    RetriableError
        If the store cannot be written.
    """
    return store.publish(folder, draft_card(folder, **about))


def draft_card(
    folder: Path,
    *,
    name: str,
    latent_size: int,
    latent_space: str | None = None,
    recipe: Mapping[str, Any],
    data: Mapping[str, Any],
    metrics: Mapping[str, Any],
    preprocessing: Preprocessing,
) -> ReleaseCard:
    """Make the card of a release that is not in a store yet.

    Parameters
    ----------
    folder : Path
        Holds at least ``encoder.onnx`` and ``reference.npz``.
    name : str
        Begins the id; usually the recipe's name.
    latent_size : int
        Length of a latent vector.
    latent_space : str, optional
        The space that the codes live in; absent: a new one, see `space_named_after`.
    recipe, data, metrics : Mapping
        What it was made with and from, and how good it is; plain JSON values.
    preprocessing : Preprocessing
        How stamps were prepared.

    Returns
    -------
    ReleaseCard
        With the digests of the files that are there, and without an id.

    Raises
    ------
    ConfigError
        If a required file is missing, or a name is not fit for a folder.
    """
    for required in REQUIRED:
        if not (folder / required).is_file():
            raise ConfigError(f"{folder} has no {required}: it is no release.")
    return _checked(
        {
            "name": name,
            "created_at": _now(),
            "latent_space": latent_space or space_named_after(folder),
            "latent_size": latent_size,
            "recipe": dict(recipe),
            "data": dict(data),
            "metrics": dict(metrics),
            "preprocessing": preprocessing,
            "stream_vae_version": __version__,
            "files": _digests(folder),
        }
    )


def space_named_after(folder: Path) -> str:
    """Name a latent space after the first encoder in it.

    Parameters
    ----------
    folder : Path
        Holds ``encoder.onnx``.

    Returns
    -------
    str
        With a digest.
    """
    return f"space-{sha256(folder / ENCODER)[:12]}"


def _digests(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): sha256(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.relative_to(folder).as_posix() != CARD
    }


def _checked(values: Mapping[str, Any]) -> ReleaseCard:
    try:
        return ReleaseCard.model_validate(values)
    except ValidationError as error:
        found = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
        raise ConfigError(f"This cannot be a release: {found}.") from None


def _now() -> datetime:
    return datetime.now(UTC)
