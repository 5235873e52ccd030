# SPDX-License-Identifier: Apache-2.0
import math
import random
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recipes_lib import randomness
from recipes_lib.randomness import generator, normal, permutation, sample_keys, seeded_libraries, step_key, uniform

MASK = (1 << 64) - 1


def splitmix64(seed: int, count: int) -> list[int]:
    """The published algorithm in Python's own integers."""
    state, found = seed & MASK, []
    for _ in range(count):
        state = (state + 0x9E3779B97F4A7C15) & MASK
        z = state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        found.append(z ^ (z >> 31))
    return found


def test_the_reference_gives_the_published_first_numbers_of_seed_0():
    assert splitmix64(0, 2) == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4]


@given(st.integers(min_value=-(1 << 63), max_value=(1 << 63) - 1))
def test_mixing_equals_the_published_algorithm(value):
    state = torch.tensor(value) + randomness._GOLDEN
    assert int(randomness._mix(state)) & MASK == splitmix64(value, 1)[0]


def test_uniform_is_the_high_24_bits_of_splitmix64_started_at_key_and_purpose():
    keys = sample_keys(3, 1, torch.arange(4))
    first = randomness._absorb(keys, zlib.crc32(b"crop"))
    expected = [[(bits >> 40) * 2.0**-24 for bits in splitmix64(int(state), 5)] for state in first]
    torch.testing.assert_close(uniform(keys, "crop", 5), torch.tensor(expected), rtol=0, atol=0)


def test_keys_are_fixed_for_good():
    # golden: a change here would change every run of every reader
    assert sample_keys(0, 0, torch.arange(3)).tolist() == [
        -5641641520953569510,
        -2974705421975079135,
        218361061309483298,
    ]
    assert step_key(0, 0, "mask") == 7053673687937915323
    assert permutation(0, 0, 6).tolist() == [4, 0, 3, 2, 1, 5]


@given(st.integers(0, 1 << 40), st.integers(0, 1000), st.lists(st.integers(0, 1 << 40), min_size=1, max_size=8))
@settings(max_examples=50)
def test_a_samples_draws_do_not_depend_on_the_rest_of_its_batch(seed, epoch, indices):
    together = uniform(sample_keys(seed, epoch, torch.tensor(indices)), "crop", 3)
    alone = [uniform(sample_keys(seed, epoch, torch.tensor([index])), "crop", 3)[0] for index in indices]
    assert torch.equal(together, torch.stack(alone))


def test_a_draw_does_not_depend_on_how_many_follow_it():
    keys = sample_keys(0, 0, torch.arange(5))
    assert torch.equal(uniform(keys, "crop", 9)[:, :4], uniform(keys, "crop", 4))


def test_seed_epoch_index_and_purpose_each_change_the_draw():
    base = uniform(sample_keys(0, 0, torch.tensor([0])), "crop", 8)
    others = [
        uniform(sample_keys(1, 0, torch.tensor([0])), "crop", 8),
        uniform(sample_keys(0, 1, torch.tensor([0])), "crop", 8),
        uniform(sample_keys(0, 0, torch.tensor([1])), "crop", 8),
        uniform(sample_keys(0, 0, torch.tensor([0])), "flip", 8),
    ]
    assert all((base - other).abs().max() > 0.01 for other in others)


def test_seed_and_epoch_do_not_exchange():
    one, two = (sample_keys(*pair, torch.arange(10)) for pair in ((1, 2), (2, 1)))
    assert not torch.equal(one, two)


def test_a_million_keys_are_all_different():
    keys = torch.cat([sample_keys(seed, epoch, torch.arange(100_000)) for seed in range(2) for epoch in range(5)])
    assert keys.unique().numel() == 1_000_000


def test_uniform_lies_in_0_to_1_and_fills_it_evenly():
    draws = uniform(sample_keys(7, 3, torch.arange(50_000)), "crop", 2)
    assert draws.min() >= 0
    assert draws.max() < 1
    counts = torch.histc(draws, 20, 0, 1)
    chi_square = ((counts - 5000) ** 2 / 5000).sum()
    assert chi_square < 43.8  # 0.999 quantile of 19 degrees of freedom


def test_neighbouring_samples_and_draws_are_uncorrelated():
    draws = uniform(sample_keys(0, 0, torch.arange(50_000)), "crop", 2)
    rows = torch.stack([draws[:-1, 0], draws[1:, 0], draws[:-1, 1]])
    correlations = torch.corrcoef(rows) - torch.eye(3)
    assert correlations.abs().max() < 4 / math.sqrt(50_000)


def test_normal_has_the_moments_of_a_standard_normal_and_no_infinity():
    draws = normal(sample_keys(0, 0, torch.arange(40_000)), "noise", 3)
    assert draws.shape == (40_000, 3)
    assert torch.isfinite(draws).all()
    assert abs(draws.mean()) < 0.015
    assert abs(draws.std() - 1) < 0.01
    assert abs((draws**4).mean() - 3) < 0.1


def test_two_generators_of_one_purpose_and_step_agree_and_others_do_not():
    def draw(*key):
        return torch.rand(4, generator=generator(*key))

    assert torch.equal(draw(0, 5, "mask"), draw(0, 5, "mask"))
    for other in ((1, 5, "mask"), (0, 6, "mask"), (0, 5, "dropout")):
        assert not torch.equal(draw(0, 5, "mask"), draw(*other))


@pytest.mark.parametrize("value", [0, 1, -1, 2**62 + 12345, 2**63 - 1, -(2**63)])
def test_one_number_is_mixed_as_a_tensor_of_it_is(value):
    state = torch.tensor([0, 5, -7, 2**63 - 1, -(2**63)])
    ours = randomness._absorb(state, value)
    assert torch.equal(ours, randomness._absorb(state, torch.tensor(value)))
    assert [randomness._mix_number(number) for number in state.tolist()] == randomness._mix(state).tolist()


def test_seeding_a_device_gives_what_torchs_own_seeding_gives():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2**62 + 3)
        wanted = torch.randn(4)
        randomness.seed_torch(2**62 + 3, torch.device("cpu"))
        assert torch.equal(torch.randn(4), wanted)


def test_step_keys_are_seeds_that_torch_accepts():
    assert all(0 <= step_key(seed, step, "x") < 1 << 63 for seed in range(20) for step in range(50))


@pytest.mark.parametrize("size", [1, 2, 97])
def test_an_epochs_order_visits_every_image_once_and_changes_with_the_epoch(size):
    orders = [permutation(3, epoch, size) for epoch in range(2)]
    assert all(order.sort().values.tolist() == list(range(size)) for order in orders)
    assert size < 97 or not torch.equal(*orders)


def test_nothing_touches_the_global_generator():
    before = torch.get_rng_state()
    uniform(sample_keys(0, 0, torch.arange(3)), "crop", 2)
    permutation(0, 0, 10)
    generator(0, 0, "mask")
    assert torch.equal(torch.get_rng_state(), before)


def test_other_libraries_draw_from_the_key_inside_the_context_and_go_on_afterwards():
    def draw():
        return random.random(), np.random.rand()  # noqa: NPY002

    before = random.getstate()
    with seeded_libraries(2**40 + 3):
        first = draw()
    assert random.getstate() == before
    outside = draw()
    with seeded_libraries(2**40 + 3):
        assert draw() == first
    with seeded_libraries(4):
        assert draw() != first
    assert outside != first
