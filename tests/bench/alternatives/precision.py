"""The encoder in other number formats on ONNX Runtime's CPU: its cost, and what becomes of codes and scores.

A small release is trained on simulated stamps, or --store names a store whose current release is taken. Cost: batches
of 128 real ZTF stamps. Judged on labelled real stamps of one LCO image (training/LOG.md); ranges of static quantisation
are learned from the other.
"""

import tempfile
import time
from argparse import Namespace
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from corpus import data_folder
from numpy.typing import NDArray
from stream_vae.alert import Codes
from stream_vae.model.release import ENCODER, Release
from stream_vae.model.store import ReleaseStore
from stream_vae.stages.score import Scorer
from stream_vae.stages.stamp import Stamper, normalise
from stream_vae.surveys import load

from alternatives.real_alerts import packets_of, stages_for
from alternatives.rounds import Skipped, Work, compare, interleaved

BATCH = 128
CALLS = 20
"""Of one way in a round."""
JUDGED = 2
"""The LCO image on which all are judged."""
Stamps = NDArray[np.float32]
LEVELS = {
    "no graph optimisation": onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "basic graph optimisation": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "extended graph optimisation": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
}


def measure(options: Namespace) -> dict[str, list[dict[str, Any]]]:
    """Tables by title."""
    try:
        import onnx  # noqa: F401 - asked for only here
        from sklearn.metrics import roc_auc_score
    except ImportError as error:
        raise Skipped(f"{error.name} is not installed") from error
    from alternatives.graphs import variants

    with tempfile.TemporaryDirectory(prefix="stream-vae-alternatives-") as name:
        folder = Path(name)
        release = _release(folder, options.store)
        labelled, labels, groups = _labelled(release)
        judged = groups == JUDGED
        encoder = release.folder / ENCODER
        graphs = variants(encoder, labelled[~judged], folder)
        sessions, refused = _sessions({"float32": encoder, **graphs})
        sessions |= {level: _open(encoder, level=value) for level, value in LEVELS.items()}
        sessions["float32, 2 threads"] = _open(encoder, threads=2)
        batch = np.resize(_of_ztf(release), (BATCH, *labelled.shape[1:]))
        ways: dict[str, Work] = {way: partial(_calls, session, batch) for way, session in sessions.items()}
        rows = compare(interleaved(ways, options.rounds, time.process_time), CALLS * BATCH, "stamp")
        walls = compare(interleaved(ways, options.rounds, time.perf_counter), CALLS * BATCH, "stamp")
        scorer = Scorer(release)
        exact = _codes(sessions["float32"], labelled[judged])
        for row, wall in zip(rows, walls, strict=True):
            row["ratio of wall time"] = wall["ratio"]
            codes = _codes(sessions[row["way"]], labelled[judged])
            away = np.abs(codes.z_mean - exact.z_mean) / np.exp(0.5 * exact.z_log_var)
            score = scorer.score(codes).real_score
            row["dz/sd, median"], row["dz/sd, largest"] = float(np.median(away)), float(away.max())
            row["dscore, largest"] = float(np.abs(score - scorer.score(exact).real_score).max())
            row["AUC"] = f"{roc_auc_score(labels[judged], score):.4f}"
        title = f"Encoder of {release.id}, {BATCH} stamps a call, ONNX Runtime {onnxruntime.__version__}, CPU time"
        return {title: rows + [{"way": way, "us/stamp": f"does not run: {why}"} for way, why in refused.items()]}


def _release(folder: Path, store: str | None) -> Release:
    if store is None:
        from stream_vae.learning.train import train

        store = str(folder / "store")
        train("quick", "sim", store, promote=True, progress=False)
    return ReleaseStore(store).load()


def _labelled(release: Release) -> tuple[Stamps, NDArray[np.int64], NDArray[np.int64]]:
    path = data_folder() / "stamps" / "lco_pydia_21px.npz"
    if not path.exists():
        raise Skipped("no labelled real stamps: set ALERTS_DIR")
    with np.load(path) as file:
        stamps, _ = normalise(file["stamps"][..., None], release.card.preprocessing)
        return stamps, file["labels"], file["groups"]


def _of_ztf(release: Release) -> Stamps:
    stages = stages_for("ztf")
    stamper = Stamper(release.card.preprocessing, load("ztf").cutouts, 1 << 20)
    found = stamper.cut(stages.decoder.decode(packets_of("ztf")[: 2 * BATCH]).alerts)
    return found.stamps[found.scoreable]


def _sessions(graphs: Mapping[str, Path]) -> tuple[dict[str, Any], dict[str, str]]:
    """Open what ONNX Runtime can run; of the rest, why not."""
    sessions, refused = {}, {}
    for name, path in graphs.items():
        try:
            sessions[name] = _open(path)
        except Exception as error:  # noqa: BLE001 - its exceptions share no base class
            refused[name] = str(error).replace("\n", " ").replace("|", "/")[:120]
    return sessions, refused


def _open(
    path: Path, threads: int = 1, level: Any = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
) -> onnxruntime.InferenceSession:
    """Open a graph as `stream_vae.backends.onnx` does, which knows no levels."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.graph_optimization_level = level
    options.log_severity_level = 4
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def _calls(session: Any, batch: Stamps) -> None:
    for _ in range(CALLS):
        session.run(["z_mean", "z_log_var"], {"stamp": batch})


def _codes(session: Any, stamps: Stamps) -> Codes:
    return Codes(*session.run(["z_mean", "z_log_var"], {"stamp": stamps}))
