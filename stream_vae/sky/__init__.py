"""A sky of our own: image pairs, their subtraction, detections with known labels, and alerts made of them.

``simulate.py`` shows the order: conditions, scene, exposures, difference, detection, stamps. Nothing here draws a
stamp: whatever is in one came through the subtraction and was found at 5 sigma.
"""

from stream_vae.sky.likeness import Likeness
from stream_vae.sky.matching import match
from stream_vae.sky.simulate import BOGUS_KINDS, REAL_KINDS, SimulatedStamps, simulate_stamps

__all__ = ["BOGUS_KINDS", "REAL_KINDS", "Likeness", "SimulatedStamps", "match", "simulate_stamps"]
