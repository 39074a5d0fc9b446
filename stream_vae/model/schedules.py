"""The weight of the KL term (`beta`) as training goes on.

References
----------
Bowman et al. 2016, section 3.1 (linear and sigmoid annealing); Fu et al. 2019, equation 6 (cyclical).
"""

from dataclasses import dataclass
from typing import Any, Literal

from stream_vae.model.backend import keras

Tensor = Any
Shape = Literal["none", "linear", "sigmoid", "cyclical"]

_STEEPNESS = 12.0
"""Of the sigmoid: its ends are at 0.25% and 99.75% of the final weight."""


@dataclass(frozen=True)
class KlSchedule:
    """From a batch's number to the KL weight.

    Parameters
    ----------
    final : float
        The weight at the end. Below 1 the objective is no longer a bound on the evidence.
    anneal_steps : int
        Batches until that weight is reached for good; 0 for no annealing.
    shape : {"none", "linear", "sigmoid", "cyclical"}
        How it rises; `cyclical` rises over the first half of each cycle, stays for the other, and begins again.
    cycles : int
        How often `cyclical` does so within `anneal_steps`.
    """

    final: float = 1.0
    anneal_steps: int = 0
    shape: Shape = "linear"
    cycles: int = 4

    def at(self, step: Tensor) -> Tensor:
        """Give the weight for a batch.

        Parameters
        ----------
        step : tensor, scalar
            How many batches came before.

        Returns
        -------
        tensor, scalar
            The weight, between 0 and `final`.
        """
        if self.anneal_steps == 0 or self.shape == "none":
            return self.final
        ops = keras.ops
        progress = ops.minimum(1.0, (step + 1.0) / self.anneal_steps)
        if self.shape == "linear":
            return self.final * progress
        if self.shape == "sigmoid":
            rising = ops.sigmoid(_STEEPNESS * (progress - 0.5))
            return self.final * ops.where(progress < 1.0, rising, 1.0)
        rising = ops.minimum(1.0, 2.0 * ops.mod(step * self.cycles / self.anneal_steps, 1.0))
        return self.final * ops.where(progress < 1.0, rising, 1.0)
