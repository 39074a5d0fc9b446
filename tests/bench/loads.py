"""What a fleet is put under when its latency is measured."""

from dataclasses import dataclass, replace

WARM_UP = 40_000
"""Alerts before: every packet in each worker, and so many that the broker's virtual machine has compiled what it runs:
with 6,000 that is still a third of its CPU time in the burst."""


@dataclass(frozen=True)
class Load:
    """Alerts at an even pace."""

    name: str
    alerts: int
    over_s: float


BURST = Load("burst", 40_000, 37.0)
"""LSST's peak: 1,081 alerts a second."""
STEADY_PER_S, STEADY_S = 200, 20.0


def steady(per_s: int = STEADY_PER_S) -> Load:
    """What workers see between bursts."""
    return Load("steady", round(per_s * STEADY_S), STEADY_S)


@dataclass(frozen=True)
class Plan:
    """The loads, one after the other, and who takes them."""

    loads: tuple[Load, ...] = (steady(), BURST)
    survey: str = "ztf"
    workers: int = 2
    partitions: int = 4
    warm_up: int = WARM_UP
    lite: bool = False
    """Publish enrichments without the packets, and nothing else."""

    def lessened(self, alerts: int) -> "Plan":
        """As many alerts in the burst and before all, at the same pace."""
        burst = Load(BURST.name, alerts, BURST.over_s * alerts / BURST.alerts)
        return replace(self, loads=(self.loads[0], burst), warm_up=alerts)

    def even(self, alerts: int) -> int:
        """As many for each partition."""
        return alerts // self.partitions * self.partitions
