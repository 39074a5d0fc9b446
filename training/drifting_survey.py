"""A survey that drifts for five nights, retrained after each: what is kept, what is lost, against two other ways.

Night 1 is the real ZTF stamps and simulated ones under conditions that made stamps like them; every later night the
seeing, the background and the registration are worse, and from night 4 on a tenth of the alerts are stripes of a
readout that nobody had seen before. All go into a real reservoir; people label some alerts of each night. Then

    going on        `stream-vae retrain --now` after each night, as it is
    from scratch    the same stamps and labels, with `--from-scratch`
    never           the first release for ever

    python training/drifting_survey.py --ztf DIR --out DIR

Judged on other images than those that were offered: the AUC on the newest night and on the first, the squared error,
and whether a vector of release 1 still finds its like among vectors of the newest release.
"""

import argparse
import json
import time
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray
from stream_vae import assembly
from stream_vae.embedded.valkey import EmbeddedValkey
from stream_vae.labels.finding import find_labels
from stream_vae.labels.label import BOGUS, REAL, Label, Provenance
from stream_vae.labels.solar_system import Tolerances
from stream_vae.learning import measures
from stream_vae.learning.compare import NEIGHBOURS, look, nearest, recall
from stream_vae.learning.data.source import open_source
from stream_vae.learning.data.stamps import read_stamps
from stream_vae.learning.recipe import Recipe, build_recipe, load_recipe
from stream_vae.learning.retrain import retrain_now
from stream_vae.learning.train import train
from stream_vae.model.release import Preprocessing, Release
from stream_vae.model.store import ReleaseStore
from stream_vae.reservoir import Batch, Reservoir
from stream_vae.sampling import Capacities, Heads, digests, pack, sampled_ranks
from stream_vae.settings import KafkaSettings, ReleaseSettings, ReservoirSettings, Settings
from stream_vae.sky import simulate_stamps
from stream_vae.sky.conditions import Conditions
from stream_vae.sky.likeness import Likeness
from stream_vae.sky.matching import match
from stream_vae.stages.encode import Encoder
from stream_vae.stages.score import Scorer
from stream_vae.stages.stamp import normalise

Array = NDArray[np.float32]

WAYS = ("going on", "from scratch", "never")
NIGHTS = 6
LABELLED = 150
"""Alerts that people label a night."""
STRIPES_FROM, STRIPES_SHARE = 4, 0.1
DAY_S, FIRST_S = 86_400.0, 1_790_000_000.0
CAPACITIES = {"uniform": 4000, "recent": 2500, "rare": 500, "known": 1000, "anchors": 5000}
RECENT_DAYS = 1.5
SURVEY = "ztf"
_AT_A_TIME = 500


@dataclass(frozen=True)
class Night:
    """What a night brings."""

    number: int
    ids: tuple[str, ...]
    stamps: Array
    labels: NDArray[np.int8]
    """The truth; -1 where nobody knows."""
    test_stamps: Array
    """Of other images."""
    test_real: NDArray[np.bool_]


class _AnyJudge:
    """Lets every stamp pass: those of later nights are not to look like the first one's."""

    def predict_proba(self, statistics: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.full((len(statistics), 2), 0.5)


def worse(conditions: Conditions, nights: int) -> Conditions:
    """Let the seeing widen by an eighth, the sky brighten by a third and the registration slip, every night."""
    psf = conditions.science_psf
    return replace(
        conditions,
        science_psf=replace(psf, fwhm_px=psf.fwhm_px * (1.0 + 0.12 * nights)),
        science_background_e=conditions.science_background_e * (1.0 + 0.3 * nights),
        registration_x=conditions.registration_x + 0.1 * nights,
        background_error=conditions.background_error + 0.15 * nights,
    )


def simulate_night(number: int, count: int, like: Likeness, real: Array | None) -> Night:
    """Simulate a night; a third of its images is kept apart to judge on."""
    later = number - 1
    conditions = tuple(worse(each, later) for each in like.conditions)
    found = simulate_stamps(count, seed=7 + 1000 * number, like=Likeness(conditions, like.weights, _AnyJudge(), 1.0))
    stamps = normalise(np.ascontiguousarray(found.stamps[..., :1]), Preprocessing())[0]
    labels = found.labels.copy()
    random = np.random.default_rng(number)
    if number >= STRIPES_FROM:
        for row in random.permutation(count)[: int(STRIPES_SHARE * count)]:
            stamps[row, ..., 0], labels[row] = stripes(random), BOGUS
    images = np.unique(found.groups)
    apart = np.isin(found.groups, random.permutation(images)[: len(images) // 3])
    own, truth = stamps[~apart], labels[~apart]
    if real is not None:
        own, truth = np.concatenate([real, own]), np.concatenate([np.full(len(real), -1, np.int8), truth])
    ids = tuple(f"{number}-{row}" for row in range(len(own)))
    return Night(number, ids, own, truth, stamps[apart], labels[apart] == REAL)


def stripes(random: np.random.Generator) -> Array:
    """Every third row of a detector that reads out wrongly."""
    image = random.normal(0.0, 0.15, (21, 21))
    image[np.arange(21) % 3 == random.integers(0, 3)] += random.uniform(0.5, 1.0)
    image -= np.median(image)
    return (image / np.abs(image).max()).astype(np.float32)


def offer(reservoir: Reservoir, night: Night, release: Release | None) -> None:
    """Offer a night as workers do, with the novelty that the served release gives."""
    times = FIRST_S + DAY_S * night.number + np.linspace(0.0, DAY_S / 3, len(night.ids))
    novelty = np.full(len(night.ids), 0.5, np.float32)
    if release is not None:
        novelty = Scorer(release).score(Encoder(release).run(night.stamps)).novelty
    ranks = sampled_ranks(digests(SURVEY, night.ids), times, novelty, RECENT_DAYS)
    ranks[:, 3:] = np.inf  # no alert of these says what it is
    for start in range(0, len(night.ids), _AT_A_TIME):
        some = slice(start, start + _AT_A_TIME)
        heads = Heads.empty(len(night.ids[some]))
        heads.time_s[:], heads.novelty[:] = times[some], novelty[some]
        batch = Batch(list(night.ids[some]), ranks[some], pack(night.stamps[some], heads))
        reservoir.add(
            batch, preprocessing=Preprocessing(), capacities=Capacities(**CAPACITIES), recent_days=RECENT_DAYS
        )


def label(reservoir: Reservoir, night: Night, asteroids: frozenset[int]) -> int:
    """Let people label some alerts of the night that the reservoir holds, and asteroids themselves."""
    at = datetime.fromtimestamp(FIRST_S + DAY_S * night.number, UTC)
    held = set(reservoir.draw(None, np.random.default_rng(0)).alert_ids)
    known = [row for row in range(len(night.ids)) if night.labels[row] >= 0 and night.ids[row] in held]
    chosen = np.random.default_rng(night.number).permutation(known)[:LABELLED]
    said = [Label(night.ids[row], int(night.labels[row]), Provenance.HUMAN, labelled_at=at) for row in chosen]
    said += [Label(night.ids[row], REAL, Provenance.SOLAR_SYSTEM, labelled_at=at) for row in sorted(asteroids)]
    return sum(reservoir.label(each) == "anchored" for each in said)


def judge(release: Release, first: Release, night: Night, start: Night) -> dict[str, Any]:
    """Measure a release on a night's other images, and on those of the first."""
    new, old = look(release, night.test_stamps), look(release, start.test_stamps)
    both = np.concatenate([start.test_stamps[:1000], night.test_stamps[:1000]])
    result = {
        "release": release.id,
        "latent_space": release.card.latent_space,
        "auc_newest": measures.roc_auc(new.real_score, night.test_real),
        "auc_first": measures.roc_auc(old.real_score, start.test_real),
        "error_newest": float(_present(new.squared_error).mean()),
        "error_first": float(_present(old.squared_error).mean()),
        "active_units": measures.active_units(new.z_mean),
    }
    for name, stamps in (("first", start.test_stamps), ("both", both)):
        result |= {f"{key}_{name}": value for key, value in retrieved(first, release, stamps).items()}
    return result


def retrieved(first: Release, release: Release, stamps: Array) -> dict[str, float]:
    """Share of the nearest stamps in pixels among the nearest codes, release 1's queries in the newest's gallery."""
    pixels = stamps.reshape(len(stamps), -1)
    truth = nearest(pixels, pixels, NEIGHBOURS)
    one, newest = look(first, stamps).z_mean, look(release, stamps).z_mean
    return {
        "recall_across": recall(nearest(one, newest, NEIGHBOURS), truth),
        "recall_same": recall(nearest(one, one, NEIGHBOURS), truth),
        "recall_own": recall(nearest(newest, newest, NEIGHBOURS), truth),
    }


def _present(values: Array | None) -> Array:
    assert values is not None
    return values


def settings_of(url: str, store: Path) -> Settings:
    """Settings of a deployment that has no Kafka."""
    kafka = KafkaSettings(
        bootstrap_servers="127.0.0.1:1", input_topics=("in",), output_topic="o", dead_letter_topic="d"
    )
    reservoir = ReservoirSettings(url=url, recent_days=RECENT_DAYS)
    return Settings(survey=SURVEY, kafka=kafka, release=ReleaseSettings(store=str(store)), reservoir=reservoir)


def recipe_of(epochs: int, distillation: float | None) -> Recipe:
    """Recipe `survey`, shortened for two cores."""
    document = load_recipe("survey").model_dump()
    document["name"] = "drifting"
    if distillation is not None:
        document["retrain"] |= {"distillation": distillation}
    document["data"] |= {"add_simulated": 2000}
    document["fit"] |= {"epochs": epochs}
    return build_recipe(document)


def retrained(settings: Settings, *, from_scratch: bool) -> tuple[Release, dict[str, Any]]:
    """Retrain once; what the gates reject is not served when going on, and all is served from scratch."""
    store = ReleaseStore(settings.release.store)
    found = retrain_now(settings, from_scratch=from_scratch, promote=False, progress=False)
    served = from_scratch or found.verdict["decision"] != "reject"
    if served:
        store.promote(found.release.id, reason=found.reason)
    about = {"decision": found.verdict["decision"], "reasons": found.verdict["reasons"], "served": served}
    about |= {"continuity": found.verdict["continuity"], "fit": found.release.metrics["fit"], "labels": found.labels}
    return store.load(), about


def draw_figure(path: Path, rows: dict[str, list[dict[str, Any]]]) -> None:
    """Draw the figure."""
    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, 4, figsize=(15, 3.6), layout="constrained")
    styles = {"going on": ("#0072b2", "o", "-"), "from scratch": ("#d55e00", "s", "--"), "never": ("#777777", "^", ":")}
    for way, results in rows.items():
        colour, marker, line = styles[way]
        nights = [row["night"] for row in results]
        drawn = (
            [row["auc_newest"] for row in results],
            [row["auc_first"] for row in results],
            [row["recall_across_first"] / row["recall_same_first"] for row in results],
            [row["error_newest"] for row in results],
        )
        for panel, values in zip(panels, drawn, strict=True):
            panel.plot(nights, values, color=colour, marker=marker, linestyle=line, label=way)
    titles = ("AUC on the newest night", "AUC on the first night", "neighbours found across releases", "squared error")
    for panel, title in zip(panels, titles, strict=True):
        panel.set(title=title, xlabel="night")
        panel.grid(alpha=0.3)
    panels[2].axhline(0.98, color="black", linewidth=0.8)
    panels[2].set_ylim(-0.05, 1.08)
    panels[2].set_ylabel("share of those within release 1")
    panels[0].legend(frameon=False)
    figure.savefig(path, dpi=110)


def row_of(way: str, result: dict[str, Any]) -> str:
    """Write a row of the table."""
    across, same, own = (result[f"recall_{name}_first"] for name in ("across", "same", "own"))
    cells = [
        str(result["night"]),
        way,
        f"{result['auc_newest']:.4f}",
        f"{result['auc_first']:.4f}",
        f"{result['error_newest']:.2f}",
        f"{result['error_first']:.2f}",
        f"{across:.3f}",
        f"{same:.3f}, {own:.3f}",
        f"{result['recall_across_both'] / result['recall_same_both']:.3f}",
        result.get("decision", "-"),
        f"{result['seconds']:.0f}" if "seconds" in result else "-",
    ]
    return "| " + " | ".join(cells) + " |"


COLUMNS = (
    "night",
    "way",
    "AUC newest",
    "AUC first",
    "error newest",
    "error first",
    "recall 1 in newest, first night",
    "within 1, within newest",
    "across / same, both nights",
    "gates",
    "s",
)


def main() -> None:
    """Read the arguments and go through the nights."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ztf", type=Path, required=True, help="a folder of real ZTF alerts")
    parser.add_argument("--out", type=Path, required=True, help="a folder for stores, results.json and the figure")
    parser.add_argument("--count", type=int, default=4500, help="simulated stamps a night")
    parser.add_argument("--epochs", type=int, default=14, help="of a fit that begins")
    parser.add_argument("--distillation", type=float, help="instead of the recipes' own weight")
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS, help="which of the three")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    preprocessing = Preprocessing()
    source = open_source(str(arguments.ztf), preprocessing, survey=SURVEY, simulated_stamps=1, seed=1)
    real = read_stamps(source, max_stamps=None, min_stamps=1, seed=1).stamps
    like = match(real[..., 0], seed=1)
    asteroids = _asteroids(arguments.ztf, len(real))
    nights = [
        simulate_night(number, arguments.count, like, real if number == 1 else None) for number in range(1, NIGHTS + 1)
    ]
    print(f"{len(real)} real stamps, {len(asteroids)} of asteroids; {NIGHTS} nights of {arguments.count}", flush=True)
    print("| " + " | ".join(COLUMNS) + " |\n|" + "---|" * len(COLUMNS), flush=True)
    rows: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS if way in arguments.ways}
    stores = {way: arguments.out / way.replace(" ", "-") for way in WAYS[:2] if way in rows or way == WAYS[0]}
    recipe = recipe_of(arguments.epochs, arguments.distillation)
    with (
        EmbeddedValkey() as server,
        closing(assembly.reservoir_of(settings_of(server.url, stores["going on"]))) as held,
    ):
        first = None
        for night in nights:
            offer(held, night, first and ReleaseStore(str(stores["going on"])).load())
            label(held, night, asteroids if night.number == 1 else frozenset())
            if first is None:
                held.draw(None, np.random.default_rng(1)).save(arguments.out / "first.npz")
                for store in stores.values():
                    train(recipe, str(arguments.out / "first.npz"), str(store), promote=True)
                first = ReleaseStore(str(stores["going on"])).load()
            for way, results in rows.items():
                about: dict[str, Any] = {"night": night.number}
                release = first if way == "never" else ReleaseStore(str(stores[way])).load()
                if night.number > 1 and way != "never":
                    began = time.monotonic()
                    settings = settings_of(server.url, stores[way])
                    release, found = retrained(settings, from_scratch=way == "from scratch")
                    about |= found | {"seconds": time.monotonic() - began}
                # From scratch has a first release of its own, of the same stamps and seed.
                origin = first if way != "from scratch" else ReleaseStore(str(stores[way])).load(_oldest(stores[way]))
                results.append(about | judge(release, origin, night, nights[0]))
                print(row_of(way, results[-1]), flush=True)
            (arguments.out / "results.json").write_text(json.dumps(rows, indent=2) + "\n", "utf-8")
    draw_figure(arguments.out / "drifting_survey.png", rows)


def _oldest(store: Path) -> str:
    return ReleaseStore(str(store)).ids()[0]


def _asteroids(folder: Path, count: int) -> frozenset[int]:
    """Rows of the real stamps whose alerts name an asteroid; alerts are read in the order of their files' names."""
    found = find_labels(folder, SURVEY, asteroids=Tolerances())
    names = {label.alert_id for label in found.labels}
    source = open_source(str(folder), Preprocessing(), survey=SURVEY, simulated_stamps=1, seed=1)
    described = source.describe
    if described is None or source.count != count:
        return frozenset()
    return frozenset(row for row in range(count) if described(row)["alert"] in names)


if __name__ == "__main__":
    main()
