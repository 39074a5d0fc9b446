"""How many workers the lag asks for.

The rule is the one that KEDA and Kubernetes' autoscaler go by, so that a fleet that scales itself and one that is
scaled from outside do alike: a worker for every so many messages that wait, at once; fewer only when for a while
nothing has asked for as many. A worker that leaves costs a rebalance, a worker too many costs nearly nothing.
"""

import math
from collections import deque

from stream_vae.errors import ConfigError
from stream_vae.settings import FleetSettings


class Scaling:
    """Decides between a least and a most number of workers.

    Parameters
    ----------
    section : FleetSettings
        ``[fleet]``.
    least : int
        Workers that there always are.
    partitions : int
        Of the input: more workers than that would have nothing to do.

    Raises
    ------
    ConfigError
        If the most is less than the least.
    """

    def __init__(self, section: FleetSettings, least: int, partitions: int) -> None:
        if section.max_workers is not None and section.max_workers < least:
            raise ConfigError(
                f"fleet.max_workers = {section.max_workers} is less than --workers {least}.",
                remedy="--workers is the least number; leave fleet.max_workers out for a fleet of fixed size.",
            )
        self._section = section
        self.least = least
        self.most = least if section.max_workers is None else max(least, min(section.max_workers, partitions))
        self._asked: deque[tuple[float, int]] = deque()

    @property
    def fixed(self) -> bool:
        """Whether there is nothing to decide."""
        return self.least == self.most

    def wanted(self, lag: int, now: float) -> int:
        """Decide.

        Parameters
        ----------
        lag : int
            Messages that wait, over all partitions.
        now : float
            Seconds on any clock that only goes forward.

        Returns
        -------
        int
            The most that any lag within the last ``fleet.scale_down_after_s`` has asked for.
        """
        asked = min(max(math.ceil(lag / self._section.lag_per_worker), self.least), self.most)
        while self._asked and self._asked[0][0] <= now - self._section.scale_down_after_s:
            self._asked.popleft()
        while (
            self._asked and self._asked[-1][1] <= asked
        ):  # asked for earlier and no more than now: never decides again
            self._asked.pop()
        self._asked.append((now, asked))
        return self._asked[0][1]
