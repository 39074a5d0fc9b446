"""Write a study down: `metrics.json` and `metrics.csv` for machines, one self-contained `report.html` for people.

`write_report` is what a training run leaves in its release, drawn in seconds; `write_evaluation` is the whole
comparison of models, with intervals and every figure as a file.
"""

from stream_vae.learning.report.evaluation import write_evaluation
from stream_vae.learning.report.training import write_report

__all__ = ["write_evaluation", "write_report"]
