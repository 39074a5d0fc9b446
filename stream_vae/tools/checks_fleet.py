"""Check of the Ray cluster that a fleet would run in."""

from stream_vae.runtime.cluster import connected
from stream_vae.settings import Settings
from stream_vae.tools.checkup import Check, Finding, State

_TIMEOUT_S = 90.0
"""A Ray that is started here takes seconds, on a busy machine many."""


def checks(settings: Settings, workers: int, address: str | None) -> list[Check]:
    """List the checks.

    Parameters
    ----------
    settings : Settings
        ``[fleet]``.
    workers : int
        How many a fleet shall have; 0 for none.
    address : str or None
        Of a cluster to join; None: one is started here for the time of the check.

    Returns
    -------
    list of Check
        One, or none without workers.
    """
    return [Check("ray", lambda: check_ray(settings, workers, address), _TIMEOUT_S)] if workers else []


def check_ray(settings: Settings, workers: int, address: str | None) -> list[Finding]:
    """Ask whether the cluster can be joined, and has room for the workers.

    Parameters
    ----------
    settings : Settings
        ``[fleet]``.
    workers : int
        How many a fleet shall have.
    address : str or None
        As for `checks`.

    Returns
    -------
    list of Finding
        One.

    Raises
    ------
    ConfigError
        If Ray is not installed, of another version, not there, or too small.
    """
    with connected(settings, workers, address):
        where = f"the cluster at {address}" if address else "a Ray that is started here"
        return [Finding("ray", State.GOOD, f"{where} has room for {workers} workers")]
