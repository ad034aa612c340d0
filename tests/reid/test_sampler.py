"""The P x K sampler: properties over random label lists, and a few cases worked by hand."""

import hashlib
import warnings
from collections import Counter
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.errors import ConfigError
from reid.inputs.sampler import MOST_KEYS, IdentitySampler
from reid.inputs.schedule import scheduled_by_groups, scheduled_by_keys

counts = st.lists(st.integers(1, 13), min_size=1, max_size=12)


def labels(per_identity, seed=0):
    pids = np.repeat(np.arange(len(per_identity)) * 7 - 3, per_identity)
    return np.random.default_rng(seed).permutation(pids)


def expected_length(per_identity, p, k):
    groups = [max(1, n // k) for n in per_identity]
    return max(b for b in range(sum(groups) // p + 1) if sum(min(g, b) for g in groups) >= p * b)


@settings(max_examples=150)
@given(counts, st.integers(1, 5), st.integers(1, 5), st.integers(0, 3), st.integers(0, 3))
def test_every_batch_has_p_identities_with_k_images(per_identity, p, k, seed, epoch):
    pids = labels(per_identity)
    if p > len(per_identity):
        with pytest.raises(ConfigError, match="different identities"):
            IdentitySampler(pids, identities=p, images=k, seed=seed)
        return
    sampler = IdentitySampler(pids, identities=p, images=k, seed=seed)
    batches = sampler.epoch(epoch)
    assert batches.shape == (expected_length(per_identity, p, k), p * k) == (len(sampler), p * k)
    for batch in batches:
        assert sorted(Counter(pids[batch]).values()) == [k] * p
        assert all(len(set(pids[group])) == 1 for group in batch.reshape(p, k))
    uses = Counter(batches.ravel().tolist())
    for identity in np.unique(pids):
        members = np.flatnonzero(pids == identity)
        if len(members) >= k:  # without replacement over the whole epoch
            assert max((uses[i] for i in members), default=0) <= 1
        elif uses[members[0]]:  # too few images: each at least once
            assert min(uses[i] for i in members) >= 1


@settings(max_examples=60)
@given(counts, st.integers(1, 5), st.integers(1, 4))
def test_at_most_p_minus_one_groups_are_left_out(per_identity, p, k):
    if p > len(per_identity):
        return
    sampler = IdentitySampler(labels(per_identity), identities=p, images=k, seed=1)
    batches = sampler.epoch(0)
    groups = [min(max(1, n // k), len(sampler)) for n in per_identity]
    assert sum(groups) - len(batches) * p < max(p, 1) or max(groups) == len(sampler)


@settings(max_examples=40)
@given(counts, st.integers(1, 3), st.integers(1, 4), st.integers(0, 5))
def test_the_processes_share_the_same_batches_and_any_start_resumes(per_identity, half, k, start):
    if 2 * half > len(per_identity):
        return
    pids = labels(per_identity)
    whole = IdentitySampler(pids, identities=2 * half, images=k, seed=3)
    parts = [IdentitySampler(pids, identities=2 * half, images=k, seed=3, rank=r, world=2) for r in range(2)]
    expected = list(whole.batches(4))[start:]
    shares = [list(part.batches(4, start)) for part in parts]
    assert len(shares[0]) == len(shares[1]) == len(expected)
    for full, left, right in zip(expected, *shares, strict=True):
        assert len(left) == len(right)
        np.testing.assert_array_equal(full, np.concatenate([left, right]))


def test_epochs_differ_and_are_reproducible_whatever_the_global_generator():
    pids = labels([8] * 20)
    sampler = IdentitySampler(pids, identities=4, images=4, seed=5)
    np.random.seed(0)  # noqa: NPY002 - the point is that it does not matter
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    first = sampler.epoch(2)
    assert (np.random.get_state()[1] == state).all()  # noqa: NPY002
    np.random.seed(1)  # noqa: NPY002
    np.testing.assert_array_equal(first, IdentitySampler(pids, identities=4, images=4, seed=5).epoch(2))
    assert not np.array_equal(first, sampler.epoch(3))
    assert not np.array_equal(first, IdentitySampler(pids, identities=4, images=4, seed=6).epoch(2))


def test_an_epoch_of_equal_identities_uses_every_image_once():
    pids = labels([8] * 16)
    batches = IdentitySampler(pids, identities=4, images=4, seed=0).epoch(0)
    assert sorted(batches.ravel().tolist()) == list(range(128))


def test_one_large_identity_is_in_every_batch():
    # 40 groups for one identity and one for each of five others: the large identity limits the epoch to 5 batches of 2.
    sampler = IdentitySampler(labels([40, 1, 1, 1, 1, 1]), identities=2, images=1, seed=0)
    pids = labels([40, 1, 1, 1, 1, 1])
    batches = sampler.epoch(0)
    assert len(batches) == 5
    assert all(-3 in pids[batch] for batch in batches)


def test_identities_meet_each_other_evenly():
    pids = labels([4] * 8)
    sampler = IdentitySampler(pids, identities=2, images=4, seed=0)
    together = np.zeros((8, 8))
    for epoch in range(600):
        for batch in sampler.epoch(epoch):
            a, b = ((np.unique(pids[batch]) + 3) // 7).tolist()
            together[a, b] += 1
    pairs = together[np.triu_indices(8, 1)]
    assert pairs.sum() == 2400
    assert pairs.min() > 55  # 85.7 expected for each of the 28 pairs
    assert pairs.max() < 120


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"identities": 0}, "at least 1"),
        ({"images": 0}, "at least 1"),
        ({"seed": -1}, "negative"),
        ({"world": 3, "rank": 0}, "divide"),
        ({"world": 2, "rank": 2}, "rank 2"),
        ({"identities": 21}, "set train.batch.identities=20 or lower"),
    ],
)
def test_bad_settings_name_a_remedy(changes, message):
    with pytest.raises(ConfigError, match=message):
        IdentitySampler(labels([4] * 20), **{"identities": 4, "images": 4, "seed": 0, **changes})


def test_an_epoch_at_the_size_of_msmt17():
    pids = np.repeat(np.arange(1041), 31)
    sampler = IdentitySampler(pids, identities=16, images=4, seed=0)
    assert len(sampler.epoch(0)) == 1041 * 7 // 16


# A change of these batches changes every trained model: raise the version of the train stage with it.
UNEVEN = labels([9, 1, 4, 2, 7, 5, 1, 12])


def test_an_epoch_is_pinned_for_a_seed():
    sampler = IdentitySampler(UNEVEN, identities=3, images=2, seed=11)
    assert sampler.epoch(4).tolist() == [
        [16, 22, 12, 31, 24, 29],
        [11, 32, 37, 1, 33, 6],
        [30, 27, 17, 25, 20, 35],
        [23, 23, 3, 0, 40, 38],
        [15, 19, 18, 28, 4, 26],
        [36, 39, 21, 9, 7, 2],
    ]


@pytest.mark.parametrize(
    ("per_identity", "identities", "shape", "digest"),
    [
        (
            [3, 17, 8, 1, 40, 22, 9, 9, 5, 31] * 6,
            8,
            (3, 26, 32),
            "85ee25c97a3b69d307eedfd14ea366f3e91b6adbcc99d53da8ed6df1a2750305",
        ),
        ([4] * 300, 1, (3, 300, 4), "c8c1bf65f7902a003b58ec283670a8b7a7484b5e908c41befd6a45bd18d1cc02"),
    ],
)
def test_the_epochs_of_larger_sets_are_pinned(per_identity, identities, shape, digest):
    sampler = IdentitySampler(labels(per_identity), identities=identities, images=4, seed=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # identities without groups left are expected, and not worth a warning
        epochs = np.stack([sampler.epoch(number) for number in range(3)])
    assert epochs.shape == shape
    assert hashlib.sha256(epochs.astype("<i8").tobytes()).hexdigest() == digest


def test_the_first_identity_of_an_epoch_is_drawn_by_its_share_of_the_groups():
    pids = labels([2, 4, 10])
    sampler = IdentitySampler(pids, identities=1, images=2, seed=0)
    first = Counter(int(pids[sampler.epoch(number)[0, 0]]) for number in range(1200))
    assert [first[pid] / 1200 for pid in (-3, 4, 11)] == pytest.approx([1 / 8, 2 / 8, 5 / 8], abs=0.05)


def test_every_problem_is_named_with_its_remedy():
    with pytest.raises(ConfigError) as caught:
        IdentitySampler(labels([4] * 3), identities=4, images=0, seed=-2, rank=1, world=1)
    assert str(caught.value).splitlines() == [
        "batch sampler: 4 problems",
        "  - P x K is 4 x 0; both must be at least 1",
        "  - seed is -2; it must not be negative",
        "  - a batch needs 4 different identities but the training split has 3; set train.batch.identities=3 "
        "or lower, or add training identities",
        "  - rank 1 of 1 processes: their number must divide the 4 identities",
    ]
    with pytest.raises(ConfigError) as caught:
        IdentitySampler(np.zeros((2, 3)), identities=1, images=1, seed=0)
    assert str(caught.value) == "batch sampler: pids has shape (2, 3); give one identity per image, [N]"


@pytest.mark.parametrize(("found", "advised"), [(1, 2), (2, 2), (3, 3)])
def test_the_advised_number_of_identities_fills_a_batch(found, advised):
    with pytest.raises(ConfigError, match=f"set train.batch.identities={advised} or lower, or add"):
        IdentitySampler(labels([4] * found), identities=4, images=2, seed=0)


# Both ways to draw the identities of an epoch --------------------------------------------------------------

SCHEDULED = (scheduled_by_keys, scheduled_by_groups)


def batch_chances(left, batches, p):
    """Return the probability of each set of identities as the next batch, from the definition."""
    first = [i for i, n in enumerate(left) if n >= batches]
    others = [i for i in range(len(left)) if i not in first]
    kept, drawn = ((), first) if len(first) > p else (first, others)
    chances = Counter()
    for order in permutations(drawn, p - len(kept)):
        chance, weights = 1.0, {i: left[i] for i in drawn}
        for identity in order:
            total = sum(weights.values())
            chance *= weights.pop(identity) / total if total else 0
        chances[frozenset((*kept, *order))] += chance
    return chances


def epoch_chances(left, batches, p):
    """Return the probability of each sequence of batches."""
    if not batches:
        return {(): 1.0}
    chances = Counter()
    for batch, chance in batch_chances(left, batches, p).items():
        if chance:
            after = [n - (i in batch) for i, n in enumerate(left)]
            for rest, further in epoch_chances(after, batches - 1, p).items():
                chances[(batch, *rest)] += chance * further
    return chances


@pytest.mark.parametrize("scheduled", SCHEDULED)
@pytest.mark.parametrize(
    ("groups", "p", "batches"),
    [
        ([3, 1, 2, 2], 2, 4),
        ([4, 1, 1, 1, 1], 2, 4),
        ([3, 3, 1, 2, 1, 2], 3, 4),
        ([2, 1, 2, 2, 1], 3, 2),  # four identities have as many groups as there are batches
        ([1, 1, 1, 2], 2, 2),
    ],
)
def test_epochs_have_the_probabilities_of_their_definition(scheduled, groups, p, batches):
    expected, rng, n = epoch_chances(groups, batches, p), np.random.default_rng(0), 4000
    assert sum(expected.values()) == pytest.approx(1)
    drawn = Counter(tuple(map(frozenset, scheduled(np.array(groups), p, batches, rng).tolist())) for _ in range(n))
    assert set(drawn) <= set(expected)
    squares = sum((drawn[epoch] - n * chance) ** 2 / (n * chance) for epoch, chance in expected.items())
    freedom = len(expected) - 1
    assert squares < freedom + 4 * np.sqrt(2 * freedom), "chi-squared, four standard deviations"


@pytest.mark.parametrize("scheduled", SCHEDULED)
def test_the_order_in_a_batch_does_not_depend_on_the_groups(scheduled):
    rng, groups = np.random.default_rng(1), np.array([1, 1, 3, 1, 2, 1])
    places = Counter(scheduled(groups, 3, 3, rng)[0].tolist().index(2) for _ in range(3000))
    assert [places[place] / 3000 for place in range(3)] == pytest.approx([1 / 3] * 3, abs=0.03)


@settings(max_examples=150)
@given(counts, st.integers(1, 5), st.integers(0, 3))
def test_by_groups_an_epoch_takes_every_identity_at_most_as_often_as_it_has_groups(groups, p, seed):
    batches = expected_length(groups, p, 1)
    if p > len(groups) or not batches:
        return
    groups = np.minimum(groups, batches)
    schedule = scheduled_by_groups(groups, p, batches, np.random.default_rng(seed))
    assert schedule.shape == (batches, p)
    assert all(len(set(batch)) == p for batch in schedule.tolist())
    assert (np.bincount(schedule.ravel(), minlength=len(groups)) <= groups).all()


def test_a_set_with_many_identities_is_drawn_by_groups_in_time_that_grows_with_its_images():
    pids = np.repeat(np.arange(21_000), 8)
    sampler = IdentitySampler(pids, identities=4, images=4, seed=0)
    assert 21_000 * len(sampler) > MOST_KEYS
    batches = sampler.epoch(0)
    assert len(batches) == 21_000 * 2 // 4
    assert sorted(batches.ravel().tolist()) == list(range(len(pids)))
    assert all(len(set(row)) == 4 for row in pids[batches][:, ::4].tolist())
