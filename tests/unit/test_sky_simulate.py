"""The simulator: reproducible, labelled by match with what was injected, and without shortcuts between the classes."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import rankdata
from stream_vae.sky import BOGUS_KINDS, REAL_KINDS, Likeness, SimulatedStamps, simulate_stamps
from stream_vae.sky.artefacts import Cause
from stream_vae.sky.conditions import Conditions, draw_conditions
from stream_vae.sky.detection import THRESHOLD, Candidates, detect
from stream_vae.sky.differencing import Difference, subtract
from stream_vae.sky.exposure import expose_science, expose_template
from stream_vae.sky.optics import add_ghosts, add_spikes
from stream_vae.sky.psf import Psf, add_points
from stream_vae.sky.scene import Scene, Stars, draw_scene
from stream_vae.sky.simulate import simulate_images

SIDE = 300
MARGIN = 18


@pytest.fixture(scope="module")
def stamps() -> SimulatedStamps:
    return simulate_stamps(2500, seed=11)


def _same(one: SimulatedStamps, other: SimulatedStamps) -> bool:
    pairs = zip(vars(one).values(), vars(other).values(), strict=True)
    return all(np.array_equal(a, b, equal_nan=a.dtype.kind == "f") for a, b in pairs)


def _head(stamps: SimulatedStamps, n: int) -> SimulatedStamps:
    return SimulatedStamps(**{name: value[:n] for name, value in vars(stamps).items()})


def test_the_same_seed_gives_the_same_stamps_and_a_longer_run_begins_with_a_shorter() -> None:
    assert _same(simulate_stamps(60, seed=3), _head(simulate_stamps(90, seed=3), 60))


def test_the_number_of_workers_changes_nothing() -> None:
    assert _same(simulate_stamps(90, seed=3, workers=2), simulate_stamps(90, seed=3))


def test_no_process_is_left_behind() -> None:
    images = simulate_images(10_000, seed=3, workers=2)
    next(images)
    assert len(multiprocessing.active_children()) == 2
    images.close()
    assert not multiprocessing.active_children()


_ENDLESS = """
import signal
from stream_vae.sky.simulate import simulate_images
# What runs in the background of a shell ignores Ctrl-C, and so do its children.
signal.signal(signal.SIGINT, signal.default_int_handler)
if __name__ == "__main__":
    for i, part in enumerate(simulate_images(10**9, seed=3, workers=2)):
        if i == 0:
            import multiprocessing
            print(*(child.pid for child in multiprocessing.active_children()), flush=True)
"""


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_workers_end_with_the_process_that_started_them(how: signal.Signals, tmp_path: Path) -> None:
    script = tmp_path / "endless.py"
    script.write_text(_ENDLESS)
    with subprocess.Popen(
        [sys.executable, script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
    ) as process:
        workers = [int(pid) for pid in process.stdout.readline().split()]
        assert len(workers) == 2
        if how is signal.SIGINT:
            os.killpg(process.pid, how)  # as a terminal does on Ctrl-C
        else:
            process.kill()
        process.wait(30)
    deadline = time.monotonic() + 30
    while any(map(_is_running, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(_is_running, workers))


def _is_running(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


def test_another_seed_gives_other_stamps() -> None:
    assert not _same(simulate_stamps(20, seed=3), simulate_stamps(20, seed=4))


def test_shapes_and_types_are_as_promised(stamps: SimulatedStamps) -> None:
    assert stamps.stamps.shape == (2500, 21, 21, 3)
    assert stamps.stamps.dtype == stamps.snr.dtype == stamps.mag.dtype == np.float32
    assert stamps.noise.shape == stamps.stamps.shape
    assert stamps.noise.dtype == np.float32
    assert stamps.labels.dtype == np.int8
    assert stamps.groups.dtype == np.int32
    assert len(stamps) == 2500
    assert all(len(value) == 2500 for value in vars(stamps).values())
    assert np.all((stamps.ra_deg >= 0) & (stamps.ra_deg < 360) & (np.abs(stamps.dec_deg) <= 90))


def test_every_candidate_is_above_five_sigma(stamps: SimulatedStamps) -> None:
    assert stamps.snr.min() > THRESHOLD


def test_the_kind_says_the_label(stamps: SimulatedStamps) -> None:
    assert np.all(np.isin(stamps.kinds[stamps.labels == 1], REAL_KINDS))
    assert np.all(np.isin(stamps.kinds[stamps.labels == 0], BOGUS_KINDS))
    assert set(stamps.kinds.tolist()) == {*REAL_KINDS, *BOGUS_KINDS}


def test_between_a_quarter_and_a_half_are_real(stamps: SimulatedStamps) -> None:
    assert 0.25 < stamps.labels.mean() < 0.5


@pytest.mark.parametrize("fraction", [0.0, 0.1, 1.0])
def test_the_share_of_real_ones_can_be_asked_for(fraction: float) -> None:
    assert simulate_stamps(50, seed=1, real_fraction=fraction).labels.mean() == pytest.approx(fraction)


def test_progress_ends_with_all_of_them() -> None:
    calls: list[tuple[int, int]] = []
    simulate_stamps(70, seed=1, progress=lambda done, total: calls.append((done, total)))
    assert calls == sorted(calls)
    assert calls[-1] == (70, 70)


@pytest.mark.parametrize(
    "wrong",
    [{"n": 0}, {"n": 5, "size": 20}, {"n": 5, "real_fraction": 1.5}, {"n": 5, "workers": 0}, {"n": 5, "fading": 0.95}],
)
def test_arguments_without_sense_are_refused(wrong: dict) -> None:
    with pytest.raises(ValueError, match="must be"):
        simulate_stamps(**wrong)


def _search(
    seed: int, conditions: Conditions, scene: Scene, *, template_scene: Scene | None = None
) -> tuple[Difference, Candidates]:
    rng = np.random.default_rng(seed)
    science = expose_science(rng, conditions, scene)
    template = expose_template(rng, conditions, template_scene or scene)
    difference = subtract(rng, conditions, science, template)
    return difference, detect(conditions, difference, scene.transients, MARGIN)


def test_a_real_one_has_an_injected_source_near_it_and_nothing_else_has() -> None:
    found = 0
    for seed in range(8):
        conditions = draw_conditions(np.random.default_rng(seed))
        scene = draw_scene(np.random.default_rng(seed), conditions, SIDE, 18)
        _, candidates = _search(seed, conditions, scene)
        transients = scene.transients
        distance = np.hypot(candidates.column[:, None] - transients.x, candidates.row[:, None] - transients.y).min(
            axis=1
        )
        assert np.all(distance[candidates.real] <= 1.0 + 0.3 * conditions.difference_psf.fwhm_px)
        found += int(candidates.real.sum())
    assert found > 40


def test_without_injected_light_nothing_is_real() -> None:
    for seed in range(4):
        conditions = draw_conditions(np.random.default_rng(seed))
        scene = draw_scene(np.random.default_rng(seed), conditions, SIDE, 18)
        dark = replace(scene, transients=replace(scene.transients, flux=np.zeros_like(scene.transients.flux)))
        _, candidates = _search(seed, conditions, dark)
        assert len(candidates.real) > 0
        assert not candidates.real.any()


@pytest.mark.parametrize("on_peak", [False, True])
def test_an_image_in_which_nothing_stands_out_has_no_candidates(on_peak: bool) -> None:
    """A simulation of 30,000 stamps met such an image, and ended there."""
    conditions = replace(draw_conditions(np.random.default_rng(1)), centre_on_peak=on_peak)
    scene = draw_scene(np.random.default_rng(1), conditions, SIDE, 18)
    difference, _ = _search(1, conditions, scene)
    empty = replace(difference, image=np.zeros_like(difference.image))
    assert len(detect(conditions, empty, scene.transients, MARGIN).real) == 0


def test_what_is_in_both_images_is_subtracted() -> None:
    """Stars of a hundred sigma a pixel vanish to within their own noise if nothing is wrong with the pipeline."""
    conditions = replace(
        draw_conditions(np.random.default_rng(1)),
        registration_x=0.0,
        registration_y=0.0,
        distortion=(0.0, 0.0, 0.0, 0.0),
        subpixel_x=0.0,
        subpixel_y=0.0,
        psf_error=0.0,
        flux_scale=1.0,
        background_error=0.0,
        response_scatter=0.0,
        full_well_e=1e12,
        misread_share=0.0,
        template_depth=1000.0,
        science_psf=Psf(4.0, 3.0),
        template_psf=Psf(3.5, 3.0),
    )
    scene = draw_scene(np.random.default_rng(1), conditions, SIDE, 0)
    peak = scene.stars.flux * conditions.science_psf.peak() / conditions.science_sky_noise_e
    inside = np.maximum(np.abs(scene.stars.x - SIDE / 2), np.abs(scene.stars.y - SIDE / 2)) < 120
    stars = np.flatnonzero((peak > 50) & inside)
    assert len(stars) > 3
    difference, _ = _search(1, conditions, scene)
    rows, columns = np.rint(scene.stars.y[stars]).astype(int), np.rint(scene.stars.x[stars]).astype(int)
    left = difference.image[rows, columns] / difference.noise[rows, columns]
    assert np.median(np.abs(left)) < 1.5


@pytest.mark.parametrize(("lanczos", "least"), [(False, 0.3), (True, 0.15)])
def test_resampling_correlates_the_noise(lanczos: bool, least: float) -> None:
    base = replace(draw_conditions(np.random.default_rng(2)), lanczos=lanczos, subpixel_x=0.5, subpixel_y=0.5)
    scene = draw_scene(np.random.default_rng(2), base, SIDE, 0)
    shift = {}
    for resample in (False, True):
        difference, _ = _search(2, replace(base, resample_science=resample), scene)
        shift[resample] = _neighbour_correlation(difference)
    assert abs(shift[False]) < 0.15
    assert shift[True] > shift[False] + least


def _neighbour_correlation(difference: Difference) -> float:
    """Correlation of horizontal neighbours, without what stands out."""
    snr = difference.image / difference.noise
    left, right = snr[:, :-1].ravel(), snr[:, 1:].ravel()
    quiet = (np.abs(left) < 3) & (np.abs(right) < 3)
    return float(np.corrcoef(left[quiet], right[quiet])[0, 1])


def _auc(real: np.ndarray, bogus: np.ndarray) -> float:
    """Probability that a value of the first exceeds one of the second."""
    ranks = rankdata(np.concatenate([real, bogus]))
    return float((ranks[: len(real)].sum() - len(real) * (len(real) + 1) / 2) / len(real) / len(bogus))


def test_neither_the_template_nor_the_position_tells_a_transient_from_a_hit(stamps: SimulatedStamps) -> None:
    """Hits of single pixels come in galaxies and near stars as often as transients do."""
    transient = np.isin(stamps.kinds, ["transient", "asteroid"])
    hit = np.isin(stamps.kinds, ["cosmic_ray", "hot_pixel"]) & stamps.positive
    template = stamps.stamps[..., 2]
    noise = np.nanmedian(np.abs(template - np.nanmedian(template, axis=(1, 2), keepdims=True)), axis=(1, 2))
    centre = np.nanmean(template[:, 8:13, 8:13], axis=(1, 2)) - np.nanmedian(template, axis=(1, 2))
    known = np.isfinite(centre) & (noise > 0)
    brightness = np.divide(centre, noise, where=known, out=np.zeros_like(centre))
    masked = np.isnan(stamps.stamps).mean(axis=(1, 2, 3))
    for value in (brightness, masked, stamps.x, stamps.y, stamps.groups, stamps.ra_deg, stamps.midpoint_mjd):
        assert 0.42 < _auc(value[transient & known], value[hit & known]) < 0.58


def test_the_noise_map_of_the_difference_is_its_scatter_but_for_the_underestimate() -> None:
    """In empty sky, and without the correlation of resampled noise, which lowers the scatter of single pixels."""
    for seed in range(6):
        conditions = replace(draw_conditions(np.random.default_rng(seed)), response_scatter=0.0)
        scene = draw_scene(np.random.default_rng(seed), conditions, SIDE, 0)
        difference, _ = _search(seed, conditions, scene)
        inner = (slice(MARGIN, -MARGIN),) * 2
        quiet = difference.signal[inner] < 0.1 * conditions.science_sky_noise_e
        ratio = (difference.image / difference.noise)[inner][quiet]
        scatter = 1.4826 * np.nanmedian(np.abs(ratio - np.nanmedian(ratio)))
        assert scatter * conditions.noise_underestimate == pytest.approx(1.0, abs=0.1)


def test_the_noise_of_a_stamp_is_known_wherever_its_pixels_are(stamps: SimulatedStamps) -> None:
    assert np.array_equal(np.isnan(stamps.noise), np.isnan(stamps.stamps))
    assert np.nanmin(stamps.noise) > 0


def test_the_detected_pixel_has_its_signal_to_noise_up_to_the_scale_of_the_noise_map(stamps: SimulatedStamps) -> None:
    """Half of the images are searched with a matched filter, which sees more than the pixel has."""
    centre = np.where(stamps.positive, 1, -1) * stamps.stamps[:, 10, 10, 0] / stamps.noise[:, 10, 10, 0]
    assert np.corrcoef(np.log(np.maximum(centre, 1.0)), np.log(stamps.snr))[0, 1] > 0.8


def test_what_has_faded_is_found_as_a_negative_peak() -> None:
    found = []
    for seed in range(4):
        conditions = draw_conditions(np.random.default_rng(seed), fading=0.5)
        scene = draw_scene(np.random.default_rng(seed), conditions, SIDE, 18)
        faded = scene.transients.flux < 0
        assert faded.sum() == 18
        assert np.all((scene.transients.kind == "fading") == faded)
        difference, candidates = _search(seed, conditions, scene)
        real = np.flatnonzero(candidates.real)
        assert np.array_equal(candidates.kind[real] == "fading", ~candidates.positive[real])
        sign = np.where(candidates.positive, 1, -1)[real]
        assert np.all(sign * difference.image[candidates.row, candidates.column][real] > 0)
        assert candidates.snr.min() > THRESHOLD
        found += candidates.kind[real].tolist()
    assert found.count("fading") > 15


def test_only_the_template_has_what_has_faded() -> None:
    conditions = replace(draw_conditions(np.random.default_rng(5), fading=0.5), registration_x=0.0, registration_y=0.0)
    scene = draw_scene(np.random.default_rng(5), conditions, SIDE, 18)
    gone = scene.transients.flux < 0
    bright = replace(scene, transients=replace(scene.transients, flux=np.where(gone, -1e6, 0.0)))
    dark = replace(scene, transients=replace(scene.transients, flux=np.zeros(36)))
    row, column = np.rint(scene.transients.y[gone]).astype(int), np.rint(scene.transients.x[gone]).astype(int)
    inside = (np.minimum(row, column) > 5) & (np.maximum(row, column) < SIDE - 5)
    for expose, there in ((expose_science, False), (expose_template, True)):
        one, other = (expose(np.random.default_rng(1), conditions, sky).image for sky in (bright, dark))
        assert bool(np.median((one - other)[row[inside], column[inside]]) > 1e3) == there


def test_without_fading_sources_nobody_looks_for_negative_peaks() -> None:
    assert simulate_stamps(60, seed=3, fading=0.0).positive.all()


def test_a_negative_peak_does_not_say_that_it_is_real(stamps: SimulatedStamps) -> None:
    real = [stamps.labels[stamps.positive == sign].mean() for sign in (True, False)]
    assert 0.2 < min(real) < max(real) < 0.5
    negative = stamps.kinds[~stamps.positive]
    assert {"fading", "dipole", "hot_pixel", "cosmic_ray", "noise"} <= set(negative.tolist())


def test_only_real_negative_peaks_are_fading_sources(stamps: SimulatedStamps) -> None:
    assert np.array_equal(stamps.kinds == "fading", (stamps.labels == 1) & ~stamps.positive)


def test_a_magnitude_is_that_of_the_flux_without_its_sign(stamps: SimulatedStamps) -> None:
    assert np.isfinite(stamps.mag[stamps.kinds == "fading"]).mean() > 0.97  # not where something bright lies beside it


def test_fading_is_left_to_the_likeness() -> None:
    with pytest.raises(ValueError, match="left out with like"):
        simulate_stamps(5, fading=0.1, like=Likeness((), np.zeros(0), None, 1.0))


def _vanes(turn: float = 0.0) -> Conditions:
    conditions = draw_conditions(np.random.default_rng(1))
    spikes = {"spike_share": 0.01, "spike_length_px": 10.0, "spike_angle_rad": 0.0, "spike_turn_rad": turn}
    return replace(conditions, science_psf=Psf(4.0, 3.0), template_psf=Psf(3.5, 3.0), **spikes)


@pytest.mark.parametrize(("in_template", "turned"), [(False, False), (True, True)])
def test_a_bright_star_has_four_spikes_and_the_template_its_own(in_template: bool, turned: bool) -> None:
    conditions = _vanes(turn=np.pi / 4)
    star, faint = (Stars(np.full(1, 60.0), np.full(1, 60.0), np.full(1, flux)) for flux in (1e8, 1e3))
    image, marks = np.zeros((121, 121), np.float32), np.zeros((121, 121), np.uint8)
    add_spikes(conditions, star, (0.0, 0.0), image, marks, in_template=in_template)
    straight = [image[60, 90], image[60, 30], image[30, 60], image[90, 60]]
    diagonal = [image[60 + d, 60 + e] for d in (-21, 21) for e in (-21, 21)]
    on, off = (diagonal, straight) if turned else (straight, diagonal)
    assert min(on) > conditions.science_sky_noise_e
    assert max(off) < 0.1 * min(on)
    assert (marks[60, 90] == Cause.SPIKE) == (not turned)
    assert image[60, 60] < image.max()  # the star itself is the profile's
    before = image.copy()
    add_spikes(conditions, faint, (0.0, 0.0), image, marks, in_template=in_template)
    assert np.array_equal(image, before)


def test_spikes_have_no_more_than_their_share_of_the_light() -> None:
    conditions = replace(_vanes(), science_background_e=1.0, read_noise_e=0.1)
    star = Stars(np.full(1, 200.0), np.full(1, 200.0), np.full(1, 1e8))
    image = np.zeros((401, 401), np.float32)
    add_spikes(conditions, star, (0.0, 0.0), image, np.zeros(image.shape, np.uint8))
    assert 0.4e6 < image.sum() < 1.05e6


def test_a_ghost_is_a_ring_that_is_marked() -> None:
    conditions = replace(_vanes(), science_psf=Psf(2.0, 3.0))
    for seed in range(40):
        image, marks = np.zeros((301, 301), np.float32), np.zeros((301, 301), np.uint8)
        add_ghosts(np.random.default_rng(seed), conditions, image, marks)
        lit = image > 0
        if lit.sum() > 200 and not (lit[[0, -1]].any() or lit[:, [0, -1]].any()):
            break
    assert set(np.unique(marks).tolist()) == {0, Cause.GHOST}
    assert lit[marks == Cause.GHOST].all()
    y, x = (round(float(axis.mean())) for axis in np.nonzero(lit))
    assert not lit[y, x]  # the hole of the secondary mirror


def test_points_have_their_flux_and_their_place() -> None:
    image = np.zeros((201, 201), np.float32)
    psf = Psf(5.0, 3.5, axis_ratio=0.85, angle_rad=0.4)
    add_points(image, psf, np.array([100.3]), np.array([99.6]), np.array([1e5]), floor=1e-4)
    y, x = np.indices(image.shape)
    assert image.sum() == pytest.approx(1e5, rel=0.01)
    assert (image * x).sum() / image.sum() == pytest.approx(100.3, abs=0.02)
    assert (image * y).sum() / image.sum() == pytest.approx(99.6, abs=0.02)


def test_the_profile_has_its_width() -> None:
    psf = Psf(5.0, 3.0)
    half = float(psf.at(np.array([2.5]), np.array([0.0]))[0])
    assert half == pytest.approx(psf.peak() / 2)
