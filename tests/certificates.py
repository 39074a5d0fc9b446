"""Certificates for the tests' own servers: an authority, a server, clients, and an authority that nobody trusts.

Made by openssl, in a folder that lasts as long as the servers do. The server's certificate is for 127.0.0.1 alone,
so that `localhost` is a wrong name for it.
"""

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

KEY_PASSWORD = "key-password-of-the-tests"  # noqa: S105 - of keys that live for a test run
_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1")
_TIMEOUT_S = 30


class NoOpensslError(Exception):
    """This machine cannot make certificates."""


@dataclass(frozen=True)
class Certificates:
    """The files of one authority and of those it knows; keys and certificates in PEM."""

    folder: Path

    @property
    def authority(self) -> Path:
        return self.folder / "authority.pem"

    @property
    def other_authority(self) -> Path:
        """Of an authority that signed nothing here."""
        return self.folder / "other.pem"

    def certificate(self, name: str) -> Path:
        return self.folder / f"{name}.pem"

    def key(self, name: str) -> Path:
        """The key of `server`; a client's is encrypted, with `KEY_PASSWORD`."""
        return self.folder / f"{name}.key"

    @property
    def server_keystore(self) -> Path:
        """Key and certificate in one file, as Kafka wants them."""
        return self.folder / "server-keystore.pem"


def make_certificates(folder: Path, *clients: str) -> Certificates:
    """Make an authority, a server for 127.0.0.1, clients by name, and another authority."""
    if shutil.which("openssl") is None:
        raise NoOpensslError("certificates need openssl")
    made = Certificates(folder)
    for name in ("authority", "other"):
        _openssl(folder, "req", "-x509", "-nodes", *_KEY, "-keyout", f"{name}.key", "-out", f"{name}.pem",
                 "-subj", f"/CN=stream-vae tests {name}", "-days", "2")  # fmt: skip
    _sign(folder, "server", "subjectAltName=IP:127.0.0.1", "-nodes")
    for name in clients:
        _sign(folder, name, "extendedKeyUsage=clientAuth", "-passout", f"pass:{KEY_PASSWORD}")
    made.server_keystore.write_bytes(made.key("server").read_bytes() + made.certificate("server").read_bytes())
    return made


def _sign(folder: Path, name: str, extension: str, *options: str) -> None:
    _openssl(folder, "req", "-x509", *_KEY, "-keyout", f"{name}.key", "-out", f"{name}.pem", "-subj", f"/CN={name}",
             "-days", "2", "-CA", "authority.pem", "-CAkey", "authority.key", "-addext", extension,
             "-addext", "basicConstraints=critical,CA:FALSE", *options)  # fmt: skip


def _openssl(folder: Path, *arguments: str) -> None:
    made = subprocess.run(
        ["openssl", *arguments], cwd=folder, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
    )
    if made.returncode != 0:
        raise NoOpensslError(f"openssl {arguments[0]} fails: {made.stderr}")
