"""The metrics of a whole fleet on one page: every worker's own, told apart by a ``worker`` label.

Why not Ray's own metrics: they come from one agent a node on ports that Ray chooses, pass through its own types (no
info, other bucket rules) and are gone with its dashboard agent. Why not a port a worker: actors move between
nodes and ports, so Prometheus would need service discovery that a deployment without Kubernetes has not. The
supervisor knows its workers, and a scrape of each is one call that is answered beside the loop in a
millisecond; so Prometheus has one target, and `/metrics` is complete whether a worker is new, restarted or slow.

A worker's counters begin at zero when a new one takes its slot, as `rate` and `increase` expect; the ``worker`` label
is the slot. A worker that does not answer in time is shown as it last was.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

from prometheus_client import Metric, ProcessCollector
from prometheus_client.registry import Collector

SUPERVISOR = "supervisor"
"""The ``worker`` label of this process's own metrics."""

Sample = Callable[[], Mapping[str, Sequence[Metric]]]
"""Gives the metric families of each worker, by its label."""


class FleetCollector(Collector):
    """Collects from all workers when a registry is scraped.

    Parameters
    ----------
    sample : callable
        Asks the workers.
    """

    def __init__(self, sample: Sample) -> None:
        self._sample = sample
        self._process = ProcessCollector(registry=None)

    def collect(self) -> Iterator[Metric]:
        """Ask the workers, and give their metrics as one.

        Yields
        ------
        Metric
            One a family.
        """
        yield from merged({SUPERVISOR: list(self._process.collect()), **self._sample()})


def merged(families: Mapping[str, Sequence[Metric]]) -> list[Metric]:
    """Join metric families of the same name.

    Parameters
    ----------
    families : Mapping
        By worker.

    Returns
    -------
    list of Metric
        Every sample once, with a ``worker`` label.
    """
    found: dict[str, Metric] = {}
    for worker, own in families.items():
        for family in own:
            name = family.name
            target = found.setdefault(name, Metric(name, family.documentation, family.type, family.unit))
            target.samples += [sample._replace(labels={"worker": worker, **sample.labels}) for sample in family.samples]
    return list(found.values())
