"""How much does the simulator look like real data? Figures to look at, and numbers.

    python training/compare_simulator.py --data ../shared/data --out build/simulator

With ``--like`` stamps are also simulated to be like one LCO image (unlabelled), and compared with the other one, both
ways.

The folder has ``stamps/lco_pydia_21px.npz`` (difference stamps of two real images: detections, which are bogus, and
injected sources) and ``ztf/*/*.avro``. Written are ``stamps.png``, ``eigenvalues.png``, ``told_apart.png`` and
``comparison.json``.

Every number compares stamps as the model sees them: minus their median, over their largest absolute value. Two judges
tell simulated stamps from real ones: boosted trees on statistics of a stamp, and a small network on its pixels. Their
intervals are bootstraps of the held-out scores, and know nothing of how the judge would differ with other stamps.
"""

import argparse
import io
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fastavro
import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.neighbors import NearestNeighbors
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from stream_vae.cutout import crop_into, decompress, read_fits
from stream_vae.learning.measures import bootstrap_interval, roc_auc
from stream_vae.sky import BOGUS_KINDS, REAL_KINDS, SimulatedStamps, match, simulate_stamps

mpl.use("Agg")
import matplotlib.pyplot as plt

Stamps = npt.NDArray[np.float32]

SIZE = 21
LAGS = ((0, 1), (1, 0), (1, 1), (0, 2), (0, 3))
EIGENVALUES = 10
PAIRS = (  # what is simulated beside what is real
    ("simulated real", "LCO injected"),
    ("simulated bogus", "LCO bogus"),
    ("simulated real", "ZTF"),
    ("simulated fading", "ZTF fading"),
)
REAL_PAIRS = (  # and what is real beside what is real
    ("LCO injected", "ZTF"),
    ("LCO injected 1", "LCO injected 2"),
    ("LCO bogus 1", "LCO bogus 2"),
)
MOST_JUDGED = 1500


def scaled(stamps: Stamps) -> Stamps:
    """Scale as the paper does; masked pixels become zero."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # wholly masked stamps
        centred = stamps - np.nanmedian(stamps, axis=(1, 2), keepdims=True)
        largest = np.nanmax(np.abs(centred), axis=(1, 2), keepdims=True)
    return np.nan_to_num(centred / np.where(largest > 0, largest, 1.0), nan=0.0).astype(np.float32)


def read_lco(path: Path) -> tuple[Stamps, npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Read difference stamps, their labels and their images."""
    with np.load(path) as file:
        return file["stamps"], file["labels"], file["groups"]


def read_ztf(folder: Path) -> tuple[Stamps, NDArray[np.bool_]]:
    """Read the centres of all whole cutouts: (n, size, size, 3), difference, science, template; and their signs."""
    stamps, positive = zip(*_ztf_stamps(folder), strict=True)
    return np.stack(stamps), np.array(positive)


def _ztf_stamps(folder: Path) -> Iterator[tuple[Stamps, bool]]:
    names = ("cutoutDifference", "cutoutScience", "cutoutTemplate")
    for path in sorted(folder.glob("*/*.avro")):
        (alert,) = fastavro.reader(io.BytesIO(path.read_bytes()))
        images = [read_fits(decompress(alert[name]["stampData"], 1 << 20)) for name in names]
        if any(image.shape != (63, 63) for image in images):
            continue
        stamp = np.empty((SIZE, SIZE, 3), np.float32)
        for channel, image in enumerate(images):
            crop_into(stamp[:, :, channel], image, 31, 31)
        yield stamp, alert["candidate"]["isdiffpos"] in ("t", "1")


def noise_correlation(stamps: Stamps) -> dict[str, float]:
    """Correlation of pixels some distance apart, in the outer part of stamps where nothing stands out.

    Sources of up to three sigma remain, so that white noise has a correlation a little above zero.
    """
    outside = np.ones((SIZE, SIZE), np.bool_)
    outside[5:16, 5:16] = False
    products: dict[tuple[int, int], list[float]] = {lag: [] for lag in LAGS}
    for stamp in stamps:
        level = np.nanmedian(stamp[outside])
        noise = 1.4826 * np.nanmedian(np.abs(stamp[outside] - level))
        z = (stamp - level) / noise if noise > 0 else np.full_like(stamp, np.nan)
        quiet = outside & (np.abs(z) < 3)
        if quiet.sum() < 0.95 * outside.sum():
            continue
        for down, right in LAGS:
            one, other = _shifted(z, down, right)
            both = np.logical_and(*_shifted(quiet, down, right))
            products[down, right].append(float(np.mean(one[both] * other[both]) / np.mean(z[quiet] ** 2)))
    return {f"{down},{right}": float(np.median(products[down, right])) for down, right in LAGS} | {
        "stamps": len(products[LAGS[0]])
    }


def _shifted(image: npt.NDArray[Any], down: int, right: int) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    return image[: SIZE - down, : SIZE - right], image[down:, right:]


def energy(stamps: Stamps) -> list[float]:
    """Quantiles (5, 25, 50, 75, 95%) of the sum of squares of scaled stamps: what a reconstruction has to explain."""
    sums = np.sum(scaled(stamps).astype(np.float64) ** 2, axis=(1, 2))
    return np.percentile(sums, [5, 25, 50, 75, 95]).round(2).tolist()


def eigenvalues(stamps: Stamps, groups: NDArray[np.integer[Any]] | None = None, draws: int = 300) -> dict[str, Any]:
    """Largest eigenvalues of the covariance, as variances summed over pixels and as shares of the total.

    Each has its 95% interval, a bootstrap over stamps, or over whole groups where these are given. It is drawn in the
    leading 60 directions of all stamps. Redrawn stamps repeat, which lifts the first eigenvalues by about their error.
    """
    flat = scaled(stamps).reshape(len(stamps), -1).astype(np.float64)
    pca = PCA(min(60, len(flat) - 1), random_state=0).fit(flat)
    reduced, total = pca.transform(flat), np.square(flat - flat.mean(axis=0)).sum(axis=1)
    unit = np.arange(len(flat)) if groups is None else np.unique(groups, return_inverse=True)[1]
    rng, drawn = np.random.default_rng(0), []
    for _ in range(draws):
        times = np.bincount(rng.integers(unit.max() + 1, size=unit.max() + 1), minlength=unit.max() + 1)[unit]
        centred = reduced - np.average(reduced, axis=0, weights=times)
        covariance = (centred * times[:, None]).T @ centred / times.sum()
        largest = np.linalg.eigvalsh(covariance)[::-1][:EIGENVALUES]
        drawn.append((largest, largest / np.average(total, weights=times)))
    values = pca.explained_variance_[:EIGENVALUES]
    result: dict[str, Any] = {"total_variance": round(float(total.mean()), 4)}
    for k, (name, value) in enumerate((("variance", values), ("share", values / total.mean()))):
        low, high = np.percentile([draw[k] for draw in drawn], [2.5, 97.5], axis=0)
        result[name] = {"value": value.round(5).tolist(), "low": low.round(5).tolist(), "high": high.round(5).tolist()}
    return result


def features(stamps: Stamps) -> npt.NDArray[np.float64]:
    """What a quick classifier looks at: statistics of rings, products of neighbours, moments and the central pixels."""
    flat = scaled(stamps)
    y, x = np.indices((SIZE, SIZE)) - SIZE // 2
    ring = np.rint(np.hypot(x, y)).astype(int)
    rings = np.stack(
        [f(flat[:, ring == r], axis=1) for r in range(11) for f in (np.mean, np.std, np.max, np.min)], axis=1
    )
    neighbours = np.stack(
        [np.mean(flat[:, : SIZE - d, : SIZE - r] * flat[:, d:, r:], axis=(1, 2)) for d, r in LAGS], axis=1
    )
    moments = np.stack([np.mean(flat**k, axis=(1, 2)) for k in (1, 2, 3, 4)], axis=1)
    return np.concatenate([rings, neighbours, moments, flat[:, 7:14, 7:14].reshape(len(flat), -1)], axis=1)


def tell_apart(simulated: Stamps, real: Stamps, rng: np.random.Generator) -> dict[str, list[float]]:
    """AUC, with its interval, of judges that are told to tell simulated stamps from real ones; 0.5: they cannot."""
    n = min(len(simulated), len(real), MOST_JUDGED)
    both = np.concatenate([_some(simulated, n, rng), _some(real, n, rng)])
    label = np.repeat([0, 1], n)
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    model = HistGradientBoostingClassifier(max_iter=100, random_state=0)
    trees = cross_val_predict(model, features(both), label, cv=folds, method="predict_proba")[:, 1]
    network = np.empty(2 * n, np.float32)
    for train, test in StratifiedKFold(3, shuffle=True, random_state=0).split(both, label):
        network[test] = pixel_judge(scaled(both[train]), label[train], scaled(both[test]))
    return {name: _auc_interval(score, label) for name, score in (("statistics", trees), ("pixels", network))}


def _auc_interval(score: NDArray[np.floating[Any]], label: NDArray[np.integer[Any]]) -> list[float]:
    """AUC and its 95% interval: value, low, high."""
    interval = bootstrap_interval(roc_auc, score.astype(np.float32), label == 1, strata=label, draws=300)
    return [round(float(value), 4) for value in interval]


def pixel_judge(train: Stamps, label: NDArray[np.integer[Any]], test: Stamps, epochs: int = 12) -> Stamps:
    """Score stamps by a small network that is fitted to the pixels of others, in all eight orientations."""
    import keras

    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((SIZE, SIZE, 1)),
            keras.layers.Conv2D(16, 3, activation="relu"),
            keras.layers.Conv2D(16, 3, activation="relu"),
            keras.layers.MaxPooling2D(),
            keras.layers.Conv2D(32, 3, activation="relu"),
            keras.layers.MaxPooling2D(),
            keras.layers.Flatten(),
            keras.layers.Dropout(0.3),
            keras.layers.Dense(32, activation="relu"),
            keras.layers.Dense(1),
        ]
    )
    loss = keras.losses.BinaryCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(2e-3), loss)
    turned = [np.rot90(part, k, (1, 2)) for part in (train, train[:, :, ::-1]) for k in range(4)]
    rng = np.random.default_rng(0)
    for _ in range(epochs):
        which = rng.integers(8, size=len(train))
        chosen = np.choose(which[:, None, None], turned)
        model.fit(chosen[..., None], label, batch_size=64, epochs=1, verbose=0)
    views = [test, test[:, ::-1], test[:, :, ::-1], test[:, ::-1, ::-1]]
    return np.mean([model.predict(view[..., None], batch_size=512, verbose=0)[:, 0] for view in views], axis=0)


def coverage(simulated: Stamps, real: Stamps, rng: np.random.Generator) -> dict[str, float]:
    """Whether something simulated lies as near to each real stamp as other real stamps do.

    Distances are in the first 21 principal components of the real stamps. The simulator spans many instruments and
    the real stamps one, so that a classifier can always tell the two; this asks whether the one is among the many.
    """
    n = min(len(real) // 2, 600)
    chosen = _some(real, 2 * n, rng)
    pca = PCA(21, random_state=0).fit(scaled(chosen).reshape(2 * n, -1))
    half, other = (pca.transform(scaled(part).reshape(n, -1)) for part in (chosen[:n], chosen[n:]))
    many = pca.transform(scaled(simulated).reshape(len(simulated), -1))
    to_real = NearestNeighbors(n_neighbors=1).fit(other).kneighbors(half)[0][:, 0]
    to_simulated = NearestNeighbors(n_neighbors=1).fit(many).kneighbors(half)[0][:, 0]
    return {
        "nearer_to_simulated": float(np.mean(to_simulated < to_real)),
        "median_distance_ratio": float(np.median(to_simulated / to_real)),
    }


def transfer(simulated: SimulatedStamps, stamps: Stamps, labels: npt.NDArray[np.int64]) -> dict[str, float]:
    """AUC on real stamps of real/bogus classifiers that have seen only simulated ones (difference channel).

    Twice: with positive peaks alone, which is all that LCO's stamps are, and with negative ones, too.
    """
    train, test = features(simulated.stamps[..., 0]), features(stamps)
    models = {
        "boosted_trees": HistGradientBoostingClassifier(max_iter=150, random_state=0),
        "logistic": make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000, C=0.1)),
    }
    rows = {"": simulated.positive, ", negative peaks too": np.ones(len(train), np.bool_)}
    return {
        name + which: float(
            roc_auc_score(labels, model.fit(train[some], simulated.labels[some]).predict_proba(test)[:, 1])
        )
        for which, some in rows.items()
        for name, model in models.items()
    }


def likened(data: Path, image: int, n: int, seed: int, workers: int) -> dict[str, Any]:
    """Match the simulator to one LCO image, without its labels, and judge on the other image, which it has not seen."""
    lco, labels, groups = read_lco(data / "stamps" / "lco_pydia_21px.npz")
    like = match(lco[groups == image], seed=seed, workers=workers)
    simulated = simulate_stamps(n, seed=seed, like=like, workers=workers)
    rng = np.random.default_rng(0)
    told = {}
    for name, label in (("real, LCO injected", 1), ("bogus, LCO", 0)):
        for judged in (1, 2):
            kind = "matched" if judged == image else "unseen"
            real = lco[(labels == label) & (groups == judged)]
            told[f"{name}, {kind} image"] = tell_apart(simulated.stamps[simulated.labels == label, ..., 0], real, rng)
    unseen = groups != image
    return {
        "auc_simulated_against_real": told,
        "auc_trained_on_simulated_unseen_image": transfer(simulated, lco[unseen], labels[unseen]),
        "share_of_real": float(simulated.labels.mean()),
        "image_pairs": int(simulated.groups.max()) + 1,
        "fwhm_px": [round(conditions.difference_psf.fwhm_px, 2) for conditions in like.conditions],
    }


def _some(stamps: Stamps, n: int, rng: np.random.Generator) -> Stamps:
    return stamps[rng.permutation(len(stamps))[:n]]


def compare(simulated: SimulatedStamps, data: Path) -> dict[str, Any]:
    """Make every comparison."""
    rng = np.random.default_rng(0)
    lco, labels, groups = read_lco(data / "stamps" / "lco_pydia_21px.npz")
    ztf, positive = read_ztf(data / "ztf")
    chosen = {
        "simulated real": (simulated.labels == 1) & simulated.positive,
        "simulated bogus": (simulated.labels == 0) & simulated.positive,
        "simulated fading": simulated.kinds == "fading",
    }
    sets = {name: simulated.stamps[rows, ..., 0] for name, rows in chosen.items()}
    sets["simulated fading"] = -sets["simulated fading"]  # ZTF cuts these from template minus science
    sets |= {"LCO injected": lco[labels == 1], "LCO bogus": lco[labels == 0]}
    sets |= {"ZTF": ztf[positive, ..., 0], "ZTF fading": ztf[~positive, ..., 0]}
    halves = {
        f"{name} {image}": lco[(labels == label) & (groups == image)]
        for name, label in (("LCO injected", 1), ("LCO bogus", 0))
        for image in (1, 2)
    }
    one_image = features(lco[groups == 1]), labels[groups == 1]
    within = HistGradientBoostingClassifier(max_iter=150, random_state=0).fit(*one_image)
    return {
        "stamps": {name: len(stamps) for name, stamps in sets.items()},
        "kinds": {kind: int(np.sum(simulated.kinds == kind)) for kind in (*REAL_KINDS, *BOGUS_KINDS)},
        "share_of_negative_peaks": {
            "simulated": float(1 - simulated.positive.mean()),
            "ZTF": float(1 - positive.mean()),
        },
        "noise_correlation": {name: noise_correlation(stamps) for name, stamps in sets.items()},
        "science_noise_correlation": {
            "simulated": noise_correlation(_some(simulated.stamps[..., 1], 3000, rng)),
            "ZTF": noise_correlation(ztf[..., 1]),
        },
        "template_noise_correlation": {
            "simulated": noise_correlation(_some(simulated.stamps[..., 2], 3000, rng)),
            "ZTF": noise_correlation(ztf[..., 2]),
        },
        "energy_quantiles": {name: energy(stamps) for name, stamps in sets.items()},
        "eigenvalues": {
            name: eigenvalues(stamps, simulated.groups[chosen[name]] if name in chosen else None)
            for name, stamps in sets.items()
        },
        "auc_simulated_against_real": {
            f"{one}, {other}": tell_apart((sets | halves)[one], (sets | halves)[other], rng)
            for one, other in (*PAIRS, *REAL_PAIRS)
        },
        "coverage": {f"{one}, {other}": coverage(sets[one], sets[other], rng) for one, other in PAIRS},
        "auc_on_lco": {
            "trained on simulated": transfer(simulated, lco, labels),
            "trained on simulated, image 1": transfer(simulated, lco[groups == 1], labels[groups == 1]),
            "trained on simulated, image 2": transfer(simulated, lco[groups == 2], labels[groups == 2]),
            "trained on LCO image 1, image 2": float(
                roc_auc_score(labels[groups == 2], within.predict_proba(features(lco[groups == 2]))[:, 1])
            ),
        },
    }


def _channel_name(name: str, channel: int) -> str:
    return (name, "science", "template")[channel]


def draw_sheet(simulated: SimulatedStamps, data: Path, path: Path, columns: int = 24) -> None:
    """Draw simulated stamps by kind, and real ones below, all three channels where there are three.

    Each stamp is scaled by itself; its values are drawn as signed square roots, so that faint structure is seen.
    """
    rng = np.random.default_rng(1)
    lco, labels, _ = read_lco(data / "stamps" / "lco_pydia_21px.npz")
    ztf, positive = read_ztf(data / "ztf")
    rows: list[tuple[str, Stamps]] = []
    for kind in (*REAL_KINDS, *BOGUS_KINDS):
        chosen = _some(simulated.stamps[simulated.kinds == kind], columns, rng)
        rows += [(_channel_name(kind, channel), chosen[..., channel]) for channel in range(3)]
    for name, label in (("LCO injected", 1), ("LCO bogus", 0)):
        rows += [(name if k == 0 else "", _some(lco[labels == label], columns, rng)) for k in range(3)]
    for name, signs in (("ZTF", positive), ("ZTF fading", ~positive)):
        chosen = _some(ztf[signs], columns, rng)
        rows += [(_channel_name(name, channel), chosen[..., channel]) for channel in range(3)]
    sheet = np.full((len(rows) * (SIZE + 1), columns * (SIZE + 1)), np.nan, np.float32)
    for i, (_, stamps) in enumerate(rows):
        for j, stamp in enumerate(stamps):
            masked = np.isnan(stamp)
            image = np.where(masked, np.nan, scaled(stamp[None])[0])
            sheet[i * (SIZE + 1) : i * (SIZE + 1) + SIZE, j * (SIZE + 1) : j * (SIZE + 1) + SIZE] = image
    figure = plt.figure(figsize=(columns * 0.5 + 1.5, len(rows) * 0.5))
    axes = figure.add_axes((1.5 / (columns * 0.5 + 1.5), 0.0, columns * 0.5 / (columns * 0.5 + 1.5), 1.0))
    axes.imshow(np.sign(sheet) * np.sqrt(np.abs(sheet)), vmin=-1, vmax=1, cmap="gray")
    axes.set_yticks([i * (SIZE + 1) + SIZE / 2 for i in range(len(rows))], [name for name, _ in rows], fontsize=11)
    axes.set_xticks([])
    figure.savefig(path, dpi=70)
    plt.close(figure)


def draw_eigenvalues(found: dict[str, dict[str, Any]], path: Path) -> None:
    """Draw the largest eigenvalues of simulated and real stamps side by side: variances above, shares below."""
    figure, grid = plt.subplots(2, len(PAIRS), figsize=(3.4 * len(PAIRS), 6.4), sharex=True, sharey="row")
    order = np.arange(1, EIGENVALUES + 1)
    for column, pair in enumerate(PAIRS):
        for line, (quantity, label) in enumerate((("variance", "variance"), ("share", "share of the variance"))):
            axes = grid[line, column]
            for k, (name, marker) in enumerate(zip(pair, "os", strict=True)):
                one = found[name][quantity]
                value = np.array(one["value"])
                # A percentile interval may lie beside its value, and an error bar has no negative length.
                off = np.abs([np.minimum(one["low"], value) - value, np.maximum(one["high"], value) - value])
                axes.errorbar(order + 0.16 * (2 * k - 1), value, off, fmt=marker, ms=4, capsize=2, lw=1, label=name)
            axes.set(yscale="log", xticks=order)
            axes.grid(alpha=0.3)
            if column == 0:
                axes.set_ylabel(label)
        grid[0, column].legend(fontsize=8)
        grid[0, column].set_title(f"{pair[0]}\nand {pair[1]}", fontsize=10)
        grid[1, column].set_xlabel("eigenvalue of the covariance")
    figure.suptitle("Largest eigenvalues of scaled stamps; bars are 95% intervals", fontsize=11)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def draw_told_apart(found: dict[str, dict[str, list[float]]], path: Path) -> None:
    """Draw how well the two judges tell sets apart."""
    figure, axes = plt.subplots(figsize=(8, 0.5 * len(found) + 1.6))
    rows = np.arange(len(found))[::-1]
    for k, (judge, label) in enumerate((("statistics", "trees, statistics"), ("pixels", "network, pixels"))):
        value, low, high = np.array([one[judge] for one in found.values()]).T
        off = np.maximum([value - low, high - value], 0.0)
        axes.errorbar(value, rows + 0.12 * (1 - 2 * k), xerr=off, fmt="os"[k], ms=5, capsize=3, label=label)
    axes.axvline(0.75, color="0.6", ls="--", lw=1, label="goal for simulated ones")
    axes.set_yticks(rows, [name.replace(", ", " | ") for name in found])
    axes.set(xlim=(0.45, 1.01), xlabel="AUC of telling the one from the other (0.5: cannot)")
    axes.grid(axis="x", alpha=0.3)
    axes.legend(loc="lower left", fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    """Compare and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of real alerts and stamps")
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--stamps", type=int, default=8000, help="how many to simulate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1, help="processes that simulate")
    parser.add_argument("--like", type=int, default=0, help="how many to simulate like each LCO image (default: none)")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    simulated = simulate_stamps(arguments.stamps, seed=arguments.seed, workers=arguments.workers)
    result = compare(simulated, arguments.data)
    if arguments.like:
        result["like"] = {
            f"image {image}": likened(arguments.data, image, arguments.like, arguments.seed, arguments.workers)
            for image in (1, 2)
        }
    draw_sheet(simulated, arguments.data, arguments.out / "stamps.png")
    draw_eigenvalues(result["eigenvalues"], arguments.out / "eigenvalues.png")
    told = result["auc_simulated_against_real"]
    for name, like in result.get("like", {}).items():
        told = told | {f"like {name}: {pair}": auc for pair, auc in like["auc_simulated_against_real"].items()}
    draw_told_apart(told, arguments.out / "told_apart.png")
    (arguments.out / "comparison.json").write_text(json.dumps(result, indent=1), encoding="utf-8")
    print(json.dumps({name: value for name, value in result.items() if name != "eigenvalues"}, indent=1))


if __name__ == "__main__":
    main()
