"""How often drift alarms on ordinary nights, and on which changes it does: `training/LOG.md` has the answer.

    python training/drift_false_alarms.py --nights DIR --train stamps.npz      # stamps of fifty nights, to train on
    stream-vae train --recipe quick --data stamps.npz --store releases --promote
    python training/drift_false_alarms.py --nights DIR --train stamps.npz --store releases --windows 100

Nights are simulated once and kept in the folder: a minute of CPU for every 25,000 stamps.
"""

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from stream_vae.drift import DriftReference, Figure, Limits, Tally, drift, summed_square
from stream_vae.model.reconstruct import Reconstructor
from stream_vae.model.release import Preprocessing
from stream_vae.model.store import ReleaseStore
from stream_vae.quality import UNSCOREABLE, Quality
from stream_vae.sky.nights import Night, draw_night, simulate_night
from stream_vae.stages.encode import Encoder
from stream_vae.stages.score import Scorer
from stream_vae.stages.stamp import normalise

INSTRUMENT = 3
TRAINING_NIGHTS = 50
ORDINARY = 1000
"""Seed of the first ordinary night that is judged; the nights to train on have others."""
CHANGED = 9000

Stamps = NDArray[np.float32]


def take(night: Night, count: int, seed: int) -> tuple[Stamps, NDArray[np.int8], NDArray[np.int32], NDArray[np.str_]]:
    """Simulate so many difference stamps of a night: stamps (n, 21, 21, 1) in counts, labels, images, bands."""
    stamps, labels, groups, bands = [], [], [], []
    for part in simulate_night(night, instrument=INSTRUMENT, seed=seed):
        images = part.images
        stamps.append(images.stamps[..., :1])
        labels.append(images.labels)
        groups.append(images.groups)
        bands.append(np.full(len(images), part.band))
        if sum(map(len, labels)) >= count:
            break
    joined = [np.concatenate(each)[:count] for each in (stamps, labels, groups, bands)]
    return joined[0], joined[1], joined[2], joined[3]


def training_stamps(path: Path, count: int = 6000) -> None:
    """Write stamps of many ordinary nights, with what a reference by band needs."""
    each = count // TRAINING_NIGHTS
    parts = [take(draw_night(np.random.default_rng((7, k))), each, 10_000 + k) for k in range(TRAINING_NIGHTS)]
    groups = np.concatenate([part[2] + 1000 * k for k, part in enumerate(parts)])
    stamps, labels, bands = (np.concatenate([part[i] for part in parts]) for i in (0, 1, 3))
    np.savez(path, stamps=stamps, labels=labels, groups=groups, bands=bands)


def ordinary(k: int) -> Night:
    """Draw the k-th ordinary night."""
    return draw_night(np.random.default_rng((ORDINARY, k)))


CHANGES: dict[str, Callable[[int], Night]] = {
    "seeing 1.6 times the site's": lambda k: Night(seeing=1.6, sky=ordinary(k).sky, bands=ordinary(k).bands),
    "seeing 2 times the site's": lambda k: Night(seeing=2.0, sky=ordinary(k).sky, bands=ordinary(k).bands),
}


def kept(path: Path, night: Night, count: int, seed: int) -> tuple[Stamps, NDArray[np.uint32], NDArray[np.str_]]:
    """Simulate a night or read it again: scaled stamps, quality flags, bands."""
    if not path.exists():
        stamps, _, _, bands = take(night, count, seed)
        scaled, quality = normalise(stamps, Preprocessing())
        partial = path.with_suffix(".part.npz")
        np.savez(partial, stamps=scaled.astype(np.float16), quality=quality, bands=bands)
        partial.replace(path)
    with np.load(path) as file:
        return file["stamps"].astype(np.float32), file["quality"], file["bands"]


def nights(
    folder: Path, first: int, windows: int, alerts: int
) -> Iterator[tuple[str, Stamps, NDArray[np.uint32], NDArray[np.str_]]]:
    """Give ordinary nights, then each change on five nights."""
    for k in range(first, first + windows):
        yield "ordinary", *kept(folder / f"ordinary-{alerts}-{k:03d}.npz", ordinary(k), alerts, ORDINARY * 100 + k)
    for number, (name, draw) in enumerate(CHANGES.items()):
        for k in range(5):
            seed = CHANGED * 100 + 10 * number + k
            yield name, *kept(folder / f"changed-{alerts}-{number}-{k}.npz", draw(k), alerts, seed)


class Judge:
    """A release with the reference that its own nights give it, bands, flags and held-out errors included."""

    def __init__(self, store: str, train: Path, *, as_shipped: bool) -> None:
        release = ReleaseStore(store).load()
        self._encoder, self._scorer, self._decoder = Encoder(release), Scorer(release), Reconstructor(release)
        if as_shipped:
            self.reference = DriftReference.of(release)
            return
        with np.load(train) as file:
            stamps, quality = normalise(file["stamps"], release.card.preprocessing)
            bands = file["bands"]
        usable = (quality & UNSCOREABLE) == 0
        z_mean, score = self.encode(stamps[usable])
        order = np.random.default_rng(0).permutation(len(z_mean))
        first, second = order[:2000], order[2000:4000]
        self.reference = DriftReference.from_sample(
            z_mean[first],
            score[first],
            bands[usable][first],
            self.squared_error(stamps[usable][second], z_mean[second]),
            {
                "masked": (float(np.count_nonzero(quality & Quality.MASKED_PIXELS)), len(quality)),
                "unscoreable": (float(np.count_nonzero(~usable)), len(quality)),
            },
        )

    def encode(self, stamps: Stamps) -> tuple[Stamps, Stamps]:
        """Give codes (n, latent_size) and scores (n,)."""
        codes, scores = [], []
        for start in range(0, len(stamps), 512):
            found = self._encoder.run(stamps[start : start + 512])
            codes.append(found.z_mean)
            scores.append(self._scorer.score(found).real_score)
        return np.concatenate(codes), np.concatenate(scores)

    def squared_error(self, stamps: Stamps, z_mean: Stamps) -> Stamps:
        """Give the squared error of reconstructions, (n,)."""
        return summed_square(stamps, self._decoder.reconstruct(z_mean))

    def figures(
        self, stamps: Stamps, quality: NDArray[np.uint32], bands: NDArray[np.str_], limits: Limits
    ) -> tuple[Figure, ...]:
        """Judge one window, as a worker does."""
        tally = Tally(self.reference, ())
        numbers = tally.numbers(bands.tolist())
        usable = np.flatnonzero((quality & UNSCOREABLE) == 0)
        z_mean = np.full((len(stamps), self.reference.active.size), np.nan, np.float32)
        score = np.full(len(stamps), np.nan, np.float32)
        z_mean[usable], score[usable] = self.encode(stamps[usable])
        tally.add(numbers, z_mean, score, quality)
        some = usable[:: max(1, len(usable) // 400)]  # twenty a second for twenty seconds
        tally.add_errors(numbers[some], self.squared_error(stamps[some], z_mean[some]))
        return drift(self.reference, tally.counts(), limits)


def spoiled(kind: str, stamps: Stamps, quality: NDArray[np.uint32], seed: int) -> tuple[Stamps, NDArray[np.uint32]]:
    """Spoil a share of an ordinary night's stamps."""
    rng = np.random.default_rng(seed)
    stamps, quality = stamps.copy(), quality.copy()
    share = {"a twentieth is blank": 0.05, "a quarter is striped": 0.25, "a quarter is rings": 0.25}[kind]
    rows = rng.permutation(len(stamps))[: round(share * len(stamps))]
    if kind == "a twentieth is blank":
        stamps[rows], quality[rows] = 0.0, np.uint32(Quality.BLANK)
        return stamps, quality
    raw = stamps[rows]
    y, x = np.mgrid[-10:11, -10:11]
    for n in range(len(raw)):
        if kind == "a quarter is striped":  # a CCD whose every third column reads high
            raw[n, :, rng.integers(3) :: 3, 0] += rng.uniform(0.5, 2.0)
        else:  # a new artefact: a ring of light about the candidate
            radius = np.hypot(x, y) - rng.uniform(5, 8)
            raw[n, :, :, 0] += rng.uniform(1.0, 3.0) * np.exp(-0.5 * radius**2)
    stamps[rows], quality[rows] = normalise(raw, Preprocessing())
    return stamps, quality


SPOILED = ("a twentieth is blank", "a quarter is striped", "a quarter is rings")


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nights", type=Path, required=True, help="folder that simulated nights are kept in")
    parser.add_argument("--train", type=Path, required=True, help="the stamps that the release was trained on")
    parser.add_argument("--store", help="its store; absent: the stamps to train on are made")
    parser.add_argument("--windows", type=int, default=100, help="ordinary nights to judge")
    parser.add_argument("--first", type=int, default=0, help="number of the first of them")
    parser.add_argument("--as-shipped", action="store_true", help="judge by the reference.npz of the release alone")
    parser.add_argument("--alerts", type=int, default=5000, help="in a window")
    arguments = parser.parse_args()
    arguments.nights.mkdir(parents=True, exist_ok=True)
    if arguments.store is None:
        training_stamps(arguments.train)
        return
    limits = Limits()
    judge = Judge(arguments.store, arguments.train, as_shipped=arguments.as_shipped)
    values: dict[tuple[str, str, str], list[float]] = {}
    alarmed: dict[str, list[set[tuple[str, str]]]] = {}
    every = nights(arguments.nights, arguments.first, arguments.windows, arguments.alerts)
    for number, (name, stamps, quality, bands) in enumerate(every):
        cases = [(name, stamps, quality)]
        if name == "ordinary" and number < 5:
            cases += [(kind, *spoiled(kind, stamps, quality, number)) for kind in SPOILED]
        for case, some, flags in cases:
            figures = judge.figures(some, flags, bands, limits)
            for figure in figures:
                scope = "all" if figure.band == "all" else "a band"
                values.setdefault((case, figure.name, scope), []).append(figure.psi)
            over = {(figure.name, "all" if figure.band == "all" else "a band") for figure in figures if figure.alarm}
            alarmed.setdefault(case, []).append(over)
    print(f"limit {limits.psi}, at least {limits.least_alerts} alerts, windows of {arguments.alerts}\n")
    print("| nights | figure | of | judged | median PSI | 95% | largest |\n|---|---|---|---|---|---|---|")
    for (case, figure_name, scope), psi in values.items():
        middle, high = np.quantile(psi, (0.5, 0.95))
        print(f"| {case} | {figure_name} | {scope} | {len(psi)} | {middle:.3f} | {high:.3f} | {max(psi):.3f} |")
    print()
    for case, found in alarmed.items():
        over = sorted({" of ".join(each) for one in found for each in one})
        print(f"{case}: {sum(map(bool, found))} of {len(found)} windows alarm ({', '.join(over) or 'none'})")


if __name__ == "__main__":
    main()
