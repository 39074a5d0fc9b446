"""Has the alert path become dearer? Its CPU time over that of the library calls in it, against a stored baseline.

    .venv/bin/python tests/bench/gate.py [--rounds 60] [--write]

In one process and without Kafka: a batch through `stream_vae.pipeline.enriched`, then the same bytes through
libdeflate (all of each needed cutout), ONNX Runtime (stamps cut beforehand) and one copy of the packet, and
again. Other load slows both halves of a round alike, so the median of the rounds' ratios moves little where
microseconds move by half. It fails if that median is more than `ALLOWED` above baseline.json's, which `--write`
writes anew: with a reason in the commit. Alerts are simulated ones, so that every machine has the same; other
processors have other ratios, hence the allowance.
"""

import argparse
import itertools
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from time import thread_time

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import deflate  # noqa: E402 - needs the path above
import networks  # noqa: E402
import numpy as np  # noqa: E402
from stream_vae import assembly  # noqa: E402
from stream_vae.alert import Packet  # noqa: E402
from stream_vae.backends.onnx import open_session  # noqa: E402
from stream_vae.metrics import Metrics  # noqa: E402
from stream_vae.pipeline import enriched  # noqa: E402
from stream_vae.runtime.process import settle_memory  # noqa: E402
from stream_vae.sky.packets import simulate_packets  # noqa: E402

from stage_parts import complete_settings  # noqa: E402

BASELINE = HERE / "baseline.json"
ALLOWED = 0.15
ATTEMPTS = 3
"""What other load does once it does not do three times; what the code does, it does each time."""
CUTOUTS = (1, 3)
ALERTS = 300
BATCH = 128
WARM_UP = 8
GZIP = b"\x1f\x8b"


class Case:
    """Both halves of a round, for a release of so many cutouts.

    Parameters
    ----------
    cutouts : int
        That the release needs.
    packets : sequence of bytes
        Of which batches are made.
    folder : Path
        Where the release may lie.
    """

    def __init__(self, cutouts: int, packets: Sequence[bytes], folder: Path) -> None:
        networks.make_release(folder / "store", folder / "release", cutouts)
        settings = complete_settings("ztf", release={"store": str(folder / "store")})
        release = assembly.release_of(settings)
        self._stages = assembly.stages_of(settings, release, assembly.registry_of(settings.registry))
        self._metrics = Metrics("ztf")
        self._packets = [Packet(value, "in", n % 4, n, b"key", 1_700_000_000_000) for n, value in enumerate(packets)]
        alerts = self._stages.decoder.decode(self._packets).alerts
        names = release.card.preprocessing.cutouts
        self._cutouts = [
            [bytes(cutout) for name in names if (cutout := alert.cutout(name)) and cutout[:2] == GZIP]
            for alert in alerts
        ]
        self._stamps = np.resize(self._stages.stamper.cut(alerts).stamps, (BATCH, 21, 21, cutouts))
        self._session = open_session(release.folder / "encoder.onnx")

    def ratios(self, rounds: int) -> Iterator[float]:
        """Run rounds.

        Parameters
        ----------
        rounds : int
            How many.

        Yields
        ------
        float
            CPU time of the path over that of the calls.
        """
        numbers = itertools.cycle(range(len(self._packets)))
        for number in range(WARM_UP + rounds):
            rows = list(itertools.islice(numbers, BATCH))
            path, calls = _time(lambda rows=rows: self._path(rows)), _time(lambda rows=rows: self._calls(rows))
            if number >= WARM_UP:
                yield path / calls

    def _path(self, rows: Sequence[int]) -> None:
        outcomes = enriched([self._packets[row] for row in rows], self._stages, self._metrics)
        if any(outcome.fate != "published" for outcome in outcomes):
            raise SystemExit("An alert was not published, so its cost means nothing.")
        for outcome in outcomes:
            _ = outcome.messages[0].value  # joined as it is when it is sent

    def _calls(self, rows: Sequence[int]) -> None:
        for row in rows:
            bytearray(self._packets[row].value)
            for cutout in self._cutouts[row]:
                deflate.gzip_decompress(cutout, int.from_bytes(cutout[-4:], "little"))
        self._session.run(["z_mean", "z_log_var"], {"stamp": self._stamps})


def _time(work: Callable[[], None]) -> float:
    before = thread_time()
    work()
    return thread_time() - before


def measure(rounds: int) -> dict[str, float]:
    """Measure all cases.

    Parameters
    ----------
    rounds : int
        Of each.

    Returns
    -------
    dict
        Median ratio by case.
    """
    packets = [each.packet for each in simulate_packets(ALERTS, seed=1, shape="ztf")]
    found = {}
    for cutouts in CUTOUTS:
        with tempfile.TemporaryDirectory(prefix="stream-vae-gate-") as folder:
            case = Case(cutouts, packets, Path(folder))
            settle_memory()
            ratios = list(case.ratios(rounds))
        found[f"{cutouts} cutout{'s' * (cutouts > 1)}"] = median(ratios)
    return found


def main() -> None:
    """Compare with the baseline; exit with 1 if a ratio is over it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=60, help="of each case (60)")
    parser.add_argument("--write", action="store_true", help="make what is measured the baseline")
    options = parser.parse_args()
    found = measure(options.rounds)
    if options.write:
        BASELINE.write_text(json.dumps({name: round(value, 2) for name, value in found.items()}, indent=1) + "\n")
    baseline = json.loads(BASELINE.read_text(encoding="utf-8"))
    for attempt in range(ATTEMPTS):
        again = measure(options.rounds) if attempt else found
        found = {name: min(value, again[name]) for name, value in found.items()}
        for name, value in again.items():
            print(f"{name}: {value:.2f} times the library calls, baseline {baseline[name]:.2f}")
        dearer = [name for name, value in found.items() if value > baseline[name] * (1 + ALLOWED)]
        if not dearer:
            break
    else:
        raise SystemExit(
            f"The alert path is over {100 * ALLOWED:.0f}% dearer than its baseline with {' and '.join(dearer)}: find "
            "out why, or write a new baseline with --write and say why in the commit."
        )


if __name__ == "__main__":
    main()
