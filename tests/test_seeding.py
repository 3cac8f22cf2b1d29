"""Randomness as a function of counters: distinct counters, distinct streams, which never change."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from genlab import seeding
from genlab.seeding import BatchNoise, ImageNoise, Noise, fold_in, generator, numpy_generator

WORDS = st.text("abc", max_size=4)
PLACES = st.lists(st.integers(0, 200) | WORDS, max_size=4).map(tuple)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ((1, 23), (12, 3)),
        ((1, 2), (2, 1)),
        ((1,), (1, 0)),
        ((0,), ()),
        ((1,), (-1,)),
        ((1,), (1 << 32,)),
        ((1,), ("1",)),
        (("a", "bc"), ("ab", "c")),
        (("ab",), ("a", "b")),
        (("a", ""), ("a",)),
        (("a", 1), (1, "a")),
        (("a1",), ("a", 1)),
    ],
)
def test_counters_do_not_run_into_one_another(
    one: tuple[int | str, ...], other: tuple[int | str, ...]
) -> None:
    assert fold_in(0, *one) != fold_in(0, *other)
    draws = [torch.rand(4, generator=generator(0, *place)).tolist() for place in (one, other)]
    assert not set(draws[0]) & set(draws[1])
    draws = [numpy_generator(0, *place).random(4).tolist() for place in (one, other)]
    assert not set(draws[0]) & set(draws[1])


@given(st.integers(0, 200), PLACES, st.integers(0, 200), PLACES)
def test_two_places_are_one_only_if_seed_and_counters_are_equal(
    seed: int, place: tuple[int | str, ...], other_seed: int, other: tuple[int | str, ...]
) -> None:
    is_same = (seed, place) == (other_seed, other)
    assert (fold_in(seed, *place) == fold_in(other_seed, *other)) is is_same
    assert 0 <= fold_in(seed, *place) < 1 << 63


def test_streams_have_their_golden_values() -> None:
    """With other streams, no earlier run can be repeated or resumed exactly."""
    assert fold_in(0, "order", 3) == 5_636_622_967_974_382_022
    assert fold_in(7, "flip", 1, 23, 0) == 4_347_433_850_202_320_834
    drawn = torch.randint(1 << 31, (3,), generator=generator(7, "sample", 2))
    assert drawn.tolist() == [197346056, 144137452, 1081945745]
    assert numpy_generator(7, "order", 3).integers(0, 1 << 31, 3).tolist() == [
        1685450429,
        298608191,
        264000860,
    ]
    seeding.reseed(7, 0, 1, 2, 0)
    assert torch.randint(1 << 31, (3,)).tolist() == [668450328, 1640737769, 1220243950]


def drawn(noise: Noise) -> list[torch.Tensor]:
    """Draws of every kind, of which the later ones depend on where the earlier ones stopped."""
    return [
        noise.normal(2, 3),
        noise.uniform(),
        noise.spread(),
        noise.normal(),
        noise.uniform(4),
        noise.spread(),
    ]


@pytest.mark.parametrize(
    "noise", [BatchNoise(6, 3), BatchNoise(6), ImageNoise(3, indices=range(6))]
)
def test_noise_has_one_row_for_each_image(noise: Noise) -> None:
    shapes = [tuple(part.shape) for part in drawn(noise)]
    assert shapes == [(6, 2, 3), (6,), (6,), (6,), (6, 4), (6,)]
    dtypes = {part.dtype for part in (noise.uniform(2), noise.spread())}
    assert dtypes == {torch.float64} and noise.normal(2).dtype == torch.float32


@pytest.mark.parametrize("world", [2, 3, 6])
def test_processes_share_the_draws_of_a_batch_and_their_number_changes_nothing(world: int) -> None:
    whole = drawn(BatchNoise(12, 5))
    for rank in range(world):
        part = drawn(BatchNoise(12 // world, 5, rank=rank, world=world))
        for mine, of_all in zip(part, whole, strict=True):
            assert torch.equal(mine, of_all[rank::world])


def test_the_noise_of_a_batch_depends_on_its_seed_alone() -> None:
    torch.manual_seed(0)
    first = drawn(BatchNoise(4, 9))
    torch.manual_seed(1)
    again, other = drawn(BatchNoise(4, 9)), drawn(BatchNoise(4, 10))
    for a, b, c in zip(first, again, other, strict=True):
        assert torch.equal(a, b) and not torch.equal(a, c)


def test_noise_without_a_seed_follows_the_default_generator() -> None:
    torch.manual_seed(0)
    first = drawn(BatchNoise(4))
    torch.manual_seed(0)
    assert all(torch.equal(a, b) for a, b in zip(first, drawn(BatchNoise(4)), strict=True))


@given(st.permutations(range(8)), st.integers(1, 7))
def test_the_noise_of_an_image_does_not_depend_on_its_batch(order: list[int], cut: int) -> None:
    together = drawn(ImageNoise(3, "test", indices=range(8)))
    for indices in (order[:cut], order[cut:]):
        part = drawn(ImageNoise(3, "test", indices=indices))
        for mine, of_all in zip(part, together, strict=True):
            assert torch.equal(mine, of_all[indices])


def test_the_noise_of_an_image_depends_on_seed_purpose_and_index() -> None:
    first = ImageNoise(3, "val", indices=[4]).normal(5)
    for other in (
        ImageNoise(4, "val", indices=[4]),
        ImageNoise(3, "test", indices=[4]),
        ImageNoise(3, "val", indices=[5]),
    ):
        assert not torch.equal(other.normal(5), first)


def test_images_have_unrelated_noise() -> None:
    normal = ImageNoise(0, indices=range(4000)).normal(3)
    assert float(normal.mean()) == pytest.approx(0, abs=5 / math.sqrt(12_000))
    assert float(normal.var()) == pytest.approx(1, abs=5 * math.sqrt(2 / 12_000))
    neighbours = (normal[1:] * normal[:-1]).mean()
    assert float(neighbours) == pytest.approx(0, abs=5 / math.sqrt(12_000))


@pytest.mark.parametrize("images", [1, 2, 16, 100])
def test_spread_puts_one_number_of_a_batch_in_each_equal_part(images: int) -> None:
    noise = BatchNoise(images, 0)
    for _ in range(20):
        parts = (noise.spread() * images).long().sort().values
        assert torch.equal(parts, torch.arange(images))


@pytest.mark.parametrize("images", [16, 100, 500])
@pytest.mark.parametrize("first", [0, 37, 1500])
def test_spread_over_any_run_of_images_is_nearly_even(images: int, first: int) -> None:
    """Kronecker's sequence of the golden ratio: a discrepancy of O(log N / N)."""
    u = ImageNoise(0, indices=range(first, first + images)).spread().sort().values
    above = torch.arange(1, images + 1, dtype=torch.float64) / images - u
    discrepancy = float(torch.maximum(above, 1 / images - above).max())
    assert discrepancy < (1 + math.log(images)) / images
    gaps = torch.cat([u.diff(), u[:1] + 1 - u[-1:]])
    assert float(gaps.max()) < 2.7 / images


def test_each_number_of_a_spread_is_uniform() -> None:
    """Over seeds, whatever its place: the mean of u and of u^2, and the least and largest."""
    seeds = 3000
    in_batch = torch.stack([BatchNoise(5, seed).spread() for seed in range(seeds)])
    of_images = torch.stack(
        [ImageNoise(seed, indices=[0, 7, 1234]).spread() for seed in range(seeds)]
    )
    for u in (*in_batch.T, *of_images.T):
        assert 0 <= float(u.min()) < 0.01 and 0.99 < float(u.max()) < 1
        assert float(u.mean()) == pytest.approx(1 / 2, abs=4 * math.sqrt(1 / 12 / seeds))
        assert float(u.square().mean()) == pytest.approx(1 / 3, abs=4 * math.sqrt(4 / 45 / seeds))


def test_two_spreads_of_a_batch_are_independent() -> None:
    pairs = [(noise.spread()[0], noise.spread()[0]) for noise in map(_batch_of_4, range(2000))]
    u, v = torch.tensor(pairs).T - 0.5
    assert float((u * v).mean()) == pytest.approx(0, abs=4 / 12 / math.sqrt(2000))


def _batch_of_4(seed: int) -> BatchNoise:
    return BatchNoise(4, seed)
