"""Randomness as a function of counters: distinct counters, distinct streams, which never change."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from genlab import seeding
from genlab.seeding import fold_in, generator, numpy_generator

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
