"""Sources injected into a user's images: found as their S/N says, with their flux and profile, and by seed."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import ndimage
from stream_vae import cli
from stream_vae.errors import ConfigError
from stream_vae.labels import read_labels
from stream_vae.sky.alard_lupton import subtract_pair
from stream_vae.sky.conditions import draw_conditions
from stream_vae.sky.exposure import expose_science, expose_template
from stream_vae.sky.fits import write_fits
from stream_vae.sky.injection.files import inject_into_files, read_image
from stream_vae.sky.injection.inject import Injected, inject
from stream_vae.sky.injection.plan import Images, Plan
from stream_vae.sky.psf import Image, Psf, add_points
from stream_vae.sky.scene import draw_scene
from stream_vae.sky.stars import background, isolated_stars, measure_psf, noise_of

SKY = 100.0
"""Electrons: the noise of an empty pixel is 10."""
WIDE, SHARP = Psf(4.2, 3.0, 0.85, 0.5), Psf(3.0, 3.5, 0.95, 2.0)


def field(psf: Psf, seed: int, *, scale: float = 1.0, stars: int = 60, side: int = 320, sky: float = SKY) -> Image:
    """The same stars whatever the seed, which is of the noise."""
    where = np.random.default_rng(7)
    image = np.full((side, side), sky, np.float32)
    x, y = where.uniform(0, side, (2, stars))
    add_points(image, psf, x, y, scale * 10 ** where.uniform(3.3, 4.7, stars), floor=0.1)
    return np.random.default_rng(seed).poisson(image).astype(np.float32)


def noise_image(seed: int = 0, side: int = 400) -> Image:
    return np.random.default_rng(seed).normal(0, 10, (side, side)).astype(np.float32)


def rounds(images: Images, plan: Plan, seed: int = 1) -> list[Injected]:
    return list(inject(images, plan, np.random.default_rng(seed)))


def joined(made: list[Injected], name: str) -> Any:
    return np.concatenate([getattr(one, name) for one in made])


def test_what_is_injected_is_found_as_its_signal_to_noise_says() -> None:
    plan = Plan(per_image=90, rounds=12, snr=(3.0, 40.0), fwhm_px=4.0)
    made = rounds(Images("a", difference=noise_image()), plan)
    snr, found = joined(made, "true_snr"), joined(made, "found")
    # The peak's noise adds a standard deviation of one; which of nine pixels is highest adds about half a sigma.
    assert found[snr < 3.5].mean() < 0.3
    assert 0.35 < found[(snr > 4.5) & (snr < 5.5)].mean() < 0.85
    assert found[snr > 8].mean() > 0.97


def test_the_flux_put_in_is_the_flux_that_is_there() -> None:
    plan = Plan(per_image=80, rounds=5, snr=(10.0, 50.0), fwhm_px=4.0, near_sources=0.0)
    psf, offset = Psf(4.0, 3.0), np.arange(-10, 11)
    pulls = []
    for one in rounds(Images("a", difference=noise_image()), plan):
        for i in np.flatnonzero(one.labels == 1):
            nearest = np.argmin(np.hypot(one.true_x - one.x[i], one.true_y - one.y[i]))
            dx, dy = one.true_x[nearest] - one.x[i], one.true_y[nearest] - one.y[i]
            profile = psf.at(offset[None, :] - dx, offset[:, None] - dy)
            good = np.isfinite(one.stamps[i, :, :, 0])
            norm = np.sum(profile[good] ** 2)
            flux = np.sum(one.stamps[i, :, :, 0][good] * profile[good]) / norm
            pulls.append((flux - one.true_flux[nearest]) / (10.0 / np.sqrt(norm)))
    assert len(pulls) > 250
    assert abs(np.mean(pulls)) < 4.0 / np.sqrt(len(pulls))
    assert 0.85 < np.std(pulls) < 1.15


def test_the_fluxes_follow_the_power_law() -> None:
    made = rounds(Images("a", difference=noise_image()), Plan(per_image=80, rounds=20, fwhm_px=3.0))
    snr = joined(made, "true_snr")
    power = 1.0 - 3.0 / 2.512
    expected = (5**power - 10**power) / (5**power - 100**power)
    assert np.mean(snr < 10) == pytest.approx(expected, abs=4 * np.sqrt(0.25 / len(snr)))
    assert snr.min() >= 5
    assert snr.max() <= 100


def test_injected_light_brings_its_own_poisson_noise() -> None:
    quiet = np.random.default_rng(1).normal(0, 0.1, (400, 400)).astype(np.float32)
    one = rounds(Images("a", difference=quiet), Plan(per_image=60, snr=(5e4, 5e4 + 1), fwhm_px=4.0, gain_e_adu=2.0))[0]
    core = (slice(None), slice(9, 12), slice(9, 12), 0)
    drawn = np.zeros_like(quiet)
    add_points(drawn, Psf(4.0, 3.0), one.true_x, one.true_y, one.true_flux, floor=0.1)
    light = np.stack([drawn[y - 1 : y + 2, x - 1 : x + 2] for x, y in zip(one.x, one.y, strict=True)])
    pull = (one.stamps[core] - light) / np.sqrt(light / 2.0)
    assert np.std(pull) == pytest.approx(1.0, abs=0.1)
    assert one.noise[:, 10, 10] == pytest.approx(np.sqrt(one.stamps[:, 10, 10, 0] / 2.0), rel=0.1)


def test_the_profile_is_measured_from_the_stars() -> None:
    for psf in (WIDE, SHARP):
        image = field(psf, 3)
        above, noise = image - background(image), noise_of(image)
        measured = measure_psf(above, noise, isolated_stars(above, noise))
        assert measured.fwhm_px == pytest.approx(psf.fwhm_px, rel=0.02)
        assert measured.beta == pytest.approx(psf.beta, rel=0.12)
        assert measured.axis_ratio == pytest.approx(psf.axis_ratio, abs=0.02)


def test_cosmic_rays_and_galaxies_do_not_spoil_the_profile() -> None:
    image = field(WIDE, 3)
    where = np.random.default_rng(5)
    for x, y in where.integers(0, 320, (12, 2)):
        image[y, x] += 4000.0
    galaxies = np.zeros_like(image)
    galaxies[where.integers(0, 320, 8), where.integers(0, 320, 8)] = 30_000.0
    image += ndimage.gaussian_filter(galaxies, 4.0)
    above, noise = image - background(image), noise_of(image)
    assert measure_psf(above, noise, isolated_stars(above, noise)).fwhm_px == pytest.approx(4.2, rel=0.03)


@pytest.mark.parametrize(("science", "template"), [(WIDE, SHARP), (SHARP, WIDE)])
def test_a_pair_is_subtracted_to_its_noise_whichever_is_sharper(science: Psf, template: Psf) -> None:
    images = [field(science, 1), field(template, 2, scale=1.7)]
    above, noises = [image - background(image) for image in images], [noise_of(image) for image in images]
    stars = [isolated_stars(a, n) for a, n in zip(above, noises, strict=True)]
    profiles = [measure_psf(a, n, s) for a, n, s in zip(above, noises, stars, strict=True)]
    made = subtract_pair(*above, tuple(noises), tuple(profiles), stars[0])
    assert made.convolves_science == (science is SHARP)
    scale = made.kernel.sum() if science is WIDE else 1 / made.kernel.sum()
    assert scale == pytest.approx(1 / 1.7, rel=0.03)
    bright = above[0] > 300
    poisson = np.sqrt(made.noise**2 + np.maximum(above[0], 0) * (1 + 1 / 1.7))[bright]
    assert np.std(made.image[bright] / poisson) < 1.4
    assert np.std(above[0][bright] / poisson) > 4


@pytest.mark.parametrize(("science", "template"), [(WIDE, SHARP), (SHARP, WIDE)])
def test_sources_injected_before_the_subtraction_come_through_it(science: Psf, template: Psf) -> None:
    images = Images("a", science=field(science, 1), template=field(template, 2))
    made = rounds(images, Plan(per_image=60, rounds=3, near_sources=0.0, gain_e_adu=1.0))
    snr, found = (
        np.concatenate([vars_[k] for vars_ in (one._asdict() for one in made)]) for k in ("true_snr", "found")
    )
    assert found[snr > 10].mean() > 0.9
    offset = np.arange(-10, 11)
    ratios = []
    for one in made:
        for i in np.flatnonzero((one.labels == 1) & (one.snr > 20)):
            nearest = np.argmin(np.hypot(one.true_x - one.x[i], one.true_y - one.y[i]))
            dx, dy = one.true_x[nearest] - one.x[i], one.true_y[nearest] - one.y[i]
            profile = WIDE.at(offset[None, :] - dx, offset[:, None] - dy)  # matched to the wider of the two
            stamp = one.stamps[i, :, :, 0]
            good = np.isfinite(stamp)
            flux = np.sum((stamp * profile)[good]) / np.sum(profile[good] ** 2)
            ratios.append(flux / one.true_flux[nearest])
    assert len(ratios) > 20
    assert np.median(ratios) == pytest.approx(1.0, abs=0.04)


def test_a_simulated_pair_gives_both_kinds_of_detections() -> None:
    rng = np.random.default_rng(11)
    conditions = draw_conditions(rng)
    scene = draw_scene(rng, conditions, 320, 12)
    science, template = expose_science(rng, conditions, scene), expose_template(rng, conditions, scene)
    images = Images("pair", science=science.image, template=template.image)
    plan = Plan(per_image=40, gain_e_adu=1.0, saturation=0.8 * conditions.full_well_e)
    (one,) = rounds(images, plan)
    assert set(one.labels.tolist()) == {-1, 1}
    assert one.psf.fwhm_px == pytest.approx(conditions.science_psf.fwhm_px, rel=0.15)
    assert np.all(one.snr > 5)
    assert one.found[one.true_snr > 15].mean() > 0.6


def test_one_source_gives_one_stamp() -> None:
    for one in rounds(Images("a", difference=noise_image()), Plan(per_image=90, rounds=4, fwhm_px=7.0)):
        assert (one.labels == 1).sum() == one.found.sum()
        apart = np.maximum(abs(one.x[:, None] - one.x), abs(one.y[:, None] - one.y))
        assert apart[~np.eye(len(apart), dtype=bool)].min() > 4


def test_the_stamp_is_centred_on_the_most_significant_pixel() -> None:
    (one,) = rounds(Images("a", difference=noise_image()), Plan(per_image=50, fwhm_px=4.0))
    centre = one.stamps[:, 10, 10, 0]
    near = one.stamps[:, 8:13, 8:13, 0].reshape(len(centre), -1)
    assert np.array_equal(centre, np.nanmax(near, axis=1))


def test_everything_is_fixed_by_the_seed() -> None:
    images, plan = Images("a", science=field(WIDE, 1), template=field(SHARP, 2)), Plan(per_image=20, gain_e_adu=1.5)
    one, same, other = (rounds(images, plan, seed)[0] for seed in (1, 1, 2))
    for a, b in zip(one, same, strict=True):
        assert a == b if isinstance(a, Psf) else np.array_equal(a, b, equal_nan=True)
    assert not np.array_equal(one.true_x, other.true_x)


def test_later_rounds_bring_no_detection_twice() -> None:
    images = Images("a", difference=field(WIDE, 1) - field(WIDE, 2), science=field(WIDE, 1))
    made = rounds(images, Plan(per_image=20, rounds=3))
    assert np.any(made[0].labels == -1)
    assert all(np.all(one.labels == 1) for one in made[1:])


def test_injected_ones_lie_as_far_from_stars_as_the_images_own_detections() -> None:
    science = field(WIDE, 1, stars=30)
    difference = science - np.roll(field(WIDE, 2, stars=30), 1, axis=1)  # a dipole at every bright star
    images = Images("a", difference=difference, science=science)
    where = np.random.default_rng(7).uniform(0, 320, (2, 30))
    apart = {}
    for share in (0.0, 1.0):
        made = rounds(images, Plan(per_image=15, rounds=10, near_sources=share, snr=(20.0, 100.0)))
        x, y = joined(made, "true_x"), joined(made, "true_y")
        apart[share] = np.median(np.hypot(x[:, None] - where[0], y[:, None] - where[1]).min(axis=1))
    own = made[0].labels == -1
    detected = np.hypot(made[0].x[own, None] - where[0], made[0].y[own, None] - where[1]).min(axis=1)
    assert abs(apart[1.0] - np.median(detected)) < 3.0
    assert apart[0.0] > 4 * apart[1.0]


def test_nothing_is_injected_where_there_are_no_data_and_edges_become_nan() -> None:
    difference = noise_image()
    difference[:, 150:] = np.nan
    made = rounds(Images("a", difference=difference), Plan(per_image=60, rounds=4, fwhm_px=4.0))
    for one in made:
        assert np.all(np.rint(one.true_x) < 150)
        right = one.x + 10 > 149
        assert np.array_equal(np.isnan(one.stamps[:, 10, -1, 0]), right)


def test_a_noise_map_decides_what_is_significant() -> None:
    difference, noise = noise_image(), np.full((400, 400), 10.0, np.float32)
    noise[:100] *= 6.0
    difference[:100] *= 6.0
    noise[:, 390:] = 0.0
    plan = Plan(per_image=100, rounds=4, fwhm_px=4.0, snr=(6.0, 12.0))
    made = rounds(Images("a", difference=difference, noise=noise), plan)
    found, y = joined(made, "found"), joined(made, "true_y")
    assert found[y < 95].mean() < 0.1
    assert found[y > 105].mean() > 0.7


SMALL = np.zeros((30, 30), np.float32)
GOOD = noise_image(side=100)


@pytest.mark.parametrize(
    ("images", "plan", "message"),
    [
        (Images("a"), {"fwhm_px": 3.0}, "no difference, and no pair"),
        (Images("a", science=GOOD), {"fwhm_px": 3.0}, "no difference, and no pair"),
        (Images("a", difference=SMALL), {"fwhm_px": 3.0}, "30x30 pixels are too few"),
        (Images("a", difference=GOOD, noise=GOOD[:50]), {"fwhm_px": 3.0}, "shapes differ"),
        (Images("a", difference=GOOD * np.float32(np.nan)), {"fwhm_px": 3.0}, "under 5% of difference is finite"),
        (Images("a", difference=GOOD * 0), {"fwhm_px": 3.0}, "has no noise"),
        (Images("a", difference=GOOD), {}, "no science image to measure the profile in"),
        (Images("a", difference=GOOD, science=GOOD), {}, "only 0 bright isolated stars"),
        (Images("a", science=GOOD, template=GOOD), {"fwhm_px": 3.0}, "only 0 bright isolated stars"),
    ],
)
def test_images_that_cannot_be_used_are_refused_with_the_remedy(images: Images, plan: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        rounds(images, Plan(**plan))
    assert caught.value.remedy


@pytest.mark.parametrize(
    "wrong",
    [
        {"per_image": 0},
        {"rounds": 0},
        {"snr": (5.0, 5.0)},
        {"snr": (5.0, float("nan"))},
        {"size": 20},
        {"near_sources": 1.5},
        {"gain_e_adu": 0.0},
        {"fwhm_px": 0.1},
        {"beta": 1.0},
        {"other_label": 1},
    ],
)
def test_a_plan_out_of_range_is_refused(wrong: Any) -> None:
    with pytest.raises(ConfigError, match="out of range"):
        Plan(**wrong)


@pytest.mark.parametrize("kind", ["i2", "i4", "f4", "f8"])
def test_integer_and_floating_fits_are_read_alike(tmp_path: Path, kind: str) -> None:
    image = np.arange(42 * 50).reshape(42, 50)
    (tmp_path / "a.fits").write_bytes(write_fits(image.astype(kind), {"BSCALE": 0.5, "BZERO": 3.0}))
    assert np.array_equal(read_image(tmp_path / "a.fits"), image * 0.5 + 3.0)
    assert read_image(tmp_path / "a.fits").dtype == np.dtype("f4")


@pytest.mark.parametrize("content", [None, b"", b"SIMPLE  = nonsense", write_fits(np.zeros(5, np.float32))])
def test_what_is_no_image_is_refused(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "a.fits").write_bytes(content)
    with pytest.raises(ConfigError, match=r"a\.fits"):
        read_image(tmp_path / "a.fits")


def test_the_command_line_writes_what_training_takes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, seed, psf in (("new", 1, WIDE), ("ref", 50, SHARP)):
        (tmp_path / name).mkdir()
        for i in range(2):
            image = np.rint(field(psf, seed + i)).astype("i4")
            (tmp_path / name / f"field{i}.fits").write_bytes(write_fits(image))
    out, labels, truth = tmp_path / "stamps.npz", tmp_path / "labels.csv", tmp_path / "truth.csv"
    monkeypatch.setattr(
        "sys.argv",
        ["stream-vae", "inject", "--science", str(tmp_path / "new"), "--template", str(tmp_path / "ref"), "--gain", "1",
         "--per-image", "30", "--out", str(out), "--labels", str(labels), "--truth", str(truth), "--json"],
    )  # fmt: skip
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 0
    told = json.loads(capsys.readouterr().out)
    with np.load(out) as file:
        arrays = dict(file)
    assert told["images"] == 2
    assert arrays["stamps"].shape == arrays["noise"].shape == (told["stamps"], 21, 21)
    assert set(arrays["groups"].tolist()) == {0, 1}
    assert (arrays["labels"] == 1).sum() == told["real"] == (arrays["kinds"] == "injected").sum() > 20
    resolved = read_labels(labels).resolve()
    assert [resolved[name].label for name in arrays["alert_ids"].tolist()] == arrays["labels"].tolist()
    assert len(truth.read_text().splitlines()) == told["injected"] + 1
    assert sum(row["injected"] for row in told["by_snr"]) == told["injected"]


def test_three_channels_and_bogus_labels_on_request(tmp_path: Path) -> None:
    for name, psf, seed in (("science", WIDE, 1), ("template", SHARP, 2)):
        (tmp_path / f"{name}.fits").write_bytes(write_fits(field(psf, seed)))
    files = {name: tmp_path / f"{name}.fits" for name in ("science", "template")}
    plan = Plan(per_image=20, other_label=0)
    cutouts = ("difference", "science", "template")
    inject_into_files([files], plan, tmp_path / "a.npz", cutouts=cutouts, labels=tmp_path / "a.csv")
    with np.load(tmp_path / "a.npz") as file:
        assert file["stamps"].shape[1:] == (21, 21, 3)
        assert "noise" not in file.files
        assert set(file["labels"].tolist()) == {0, 1}
    assert set(read_labels(tmp_path / "a.csv").counts()) == {"injection", "crossmatch"}


@pytest.mark.parametrize(
    ("cutouts", "message"), [(("science",), "not all fields have one"), (("colour",), "no cutout colour")]
)
def test_channels_that_are_not_there_are_refused(tmp_path: Path, cutouts: tuple[str, ...], message: str) -> None:
    (tmp_path / "d.fits").write_bytes(write_fits(noise_image()))
    with pytest.raises(ConfigError, match=message):
        inject_into_files([{"difference": tmp_path / "d.fits"}], Plan(fwhm_px=3.0), tmp_path / "a.npz", cutouts=cutouts)
    assert not (tmp_path / "a.npz").exists()
