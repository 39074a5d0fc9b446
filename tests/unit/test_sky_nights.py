"""Nights of one survey: reproducible, with one instrument, and with a seeing of their own."""

import numpy as np
from stream_vae.sky.nights import BANDS, Night, NightStamps, draw_night, simulate_night


def images(night: Night, count: int, seed: int = 5) -> list[NightStamps]:
    return [image for image, _ in zip(simulate_night(night, instrument=3, seed=seed), range(count), strict=False)]


def test_a_night_is_the_same_each_time_and_another_seed_is_another_night() -> None:
    first, again, other = (images(Night(), 2, seed) for seed in (5, 5, 6))
    for one, two in zip(first, again, strict=True):
        assert one.band == two.band
        assert np.array_equal(one.images.stamps, two.images.stamps, equal_nan=True)
    assert not np.array_equal(first[0].images.stamps, other[0].images.stamps, equal_nan=True)


def test_a_nights_filters_are_drawn_from_its_mix() -> None:
    assert {image.band for image in images(Night(bands=(0.0, 0.0, 1.0)), 4)} == {"i"}
    assert {image.band for image in images(Night(bands=(0.5, 0.5, 0.0)), 12)} == {"g", "r"}


def test_worse_seeing_makes_wider_sources() -> None:
    def width(night: Night) -> float:
        """Share of a real stamp's light that is outside its middle 5 x 5 pixels."""
        shares = []
        for image in images(night, 8):
            stamps = np.abs(np.nan_to_num(image.images.stamps[image.images.labels == 1, :, :, 0]))
            shares += (1 - stamps[:, 8:13, 8:13].sum((1, 2)) / stamps.sum((1, 2))).tolist()
        return float(np.median(shares))

    assert width(Night(seeing=0.7)) < width(Night(seeing=1.0)) < width(Night(seeing=2.0))


def test_ordinary_nights_lie_about_the_sites_median() -> None:
    nights = [draw_night(np.random.default_rng(k)) for k in range(400)]
    seeing, sky = (np.array([getattr(night, name) for night in nights]) for name in ("seeing", "sky"))
    assert abs(np.log(seeing).mean()) < 0.04
    assert abs(np.log(sky).mean()) < 0.13
    mixes = np.array([night.bands for night in nights])
    assert mixes.shape == (400, len(BANDS))
    assert np.allclose(mixes.sum(axis=1), 1)
