import numpy as np
import pytest
from stream_vae.errors import ConfigError
from stream_vae.learning.data.split import split_by_group


def split(groups, labels=None, seed=1, fraction=0.15):
    groups = np.asarray(groups, np.int64)
    labels = np.full(len(groups), -1, np.int8) if labels is None else np.asarray(labels, np.int8)
    return split_by_group(groups, labels, validation_fraction=fraction, test_fraction=fraction, seed=seed)


@pytest.mark.parametrize("seed", range(5))
def test_no_group_is_in_two_parts_and_no_row_is_lost(seed):
    groups = np.random.default_rng(seed).integers(0, 40, 2000)
    parts = split(groups, seed=seed)
    members = [set(groups[rows]) for rows in (parts.train, parts.validation, parts.test)]
    assert members[0].isdisjoint(members[1] | members[2])
    assert members[1].isdisjoint(members[2])
    assert sorted(np.concatenate([parts.train, parts.validation, parts.test])) == list(range(2000))


def test_the_parts_have_about_the_fractions_asked_for():
    parts = split(np.arange(4000) // 20)
    assert len(parts.validation) == pytest.approx(600, abs=40)
    assert len(parts.test) == pytest.approx(600, abs=40)
    assert parts.held_out


def test_three_groups_give_one_to_each_part_whatever_their_sizes():
    for seed in range(10):
        parts = split([0] * 5 + [1] * 500 + [2] * 50, seed=seed)
        assert min(len(parts.train), len(parts.validation), len(parts.test)) > 0


def test_with_two_groups_the_test_rows_are_the_validation_rows_and_it_says_so():
    parts = split([0] * 50 + [1] * 60)
    assert np.array_equal(parts.validation, parts.test)
    assert not parts.held_out
    assert len(parts.train) in (50, 60)


def test_one_group_cannot_be_parted():
    with pytest.raises(ConfigError, match="leave `groups` out"):
        split([7] * 100)


def test_labelled_rows_are_drawn_until_every_part_has_both_classes():
    groups = np.arange(600) // 30
    labels = np.where(groups < 4, 1, 0)
    labels[::29] = -1
    for seed in range(10):
        parts = split(groups, labels, seed=seed)
        for rows in (parts.train, parts.validation, parts.test):
            assert {0, 1} <= set(labels[rows])


def test_groups_of_one_class_each_are_refused_where_that_leaves_a_part_without_the_other():
    with pytest.raises(ConfigError, match="groups that hold both classes"):
        split([0] * 50 + [1] * 50 + [2] * 50, [1] * 50 + [0] * 100)


def test_the_same_seed_gives_the_same_parts():
    groups = np.arange(1000) // 10
    assert np.array_equal(split(groups, seed=4).test, split(groups, seed=4).test)
    assert not np.array_equal(split(groups, seed=4).test, split(groups, seed=5).test)


@pytest.mark.parametrize(("real", "bogus"), [(2, 1), (1, 2)])
def test_three_labels_are_too_few_to_part_and_the_error_says_how_many_are_needed(real, bogus):
    labels = np.full(100, -1, np.int8)
    labels[:real], labels[real : real + bogus] = 1, 0
    with pytest.raises(ConfigError, match=rf"{real} stamps are labelled real and {bogus} bogus.*Label some dozens"):
        split_by_group(np.arange(100), labels, validation_fraction=0.15, test_fraction=0.15, seed=1)
