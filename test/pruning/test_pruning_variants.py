"""The variants that the paper compares: what each prunes, matched counts, seeds, uniform draws."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dtp_ros.errors import ConfigError
from dtp_ros.pruning.detect import _generator, variant_mask

RANDOM = ["random_all", "random_unimportant"]


def mask_of(size, *members):
    mask = torch.zeros(size, dtype=torch.bool)
    mask[list(members)] = True
    return mask


DETECTED = mask_of(12, 0, 5, 9)
REGION = mask_of(12, 1, 2, 6, 7)


def indices(mask):
    return mask.nonzero().squeeze(1).tolist()


@st.composite
def detections(draw):
    """Disjoint D and I on up to 40 tokens: (detected, region)."""
    roles = draw(st.lists(st.sampled_from("DIU"), min_size=1, max_size=40))
    return torch.tensor([r == "D" for r in roles]), torch.tensor([r == "I" for r in roles])


triples = st.tuples(st.integers(0, 2**31 - 1), st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))


def test_off_prunes_nothing():
    assert indices(variant_mask("off", DETECTED, REGION, 0, 0, 0)) == []


@pytest.mark.parametrize("variant", ["dtp", "no_gaussian"])
def test_the_method_prunes_what_it_detected(variant):
    assert torch.equal(variant_mask(variant, DETECTED, REGION, 3, 1, 4), DETECTED)


@pytest.mark.parametrize(("variant", "candidates"), [("random_all", list(range(12))), ("random_unimportant", None)])
def test_random_draw_follows_its_definition(variant, candidates):
    # The same in plain lists: the first three of a permutation of the candidates in ascending order.
    candidates = candidates or [0, 3, 4, 5, 8, 9, 10, 11]
    for triple in itertools.product((0, 7), (0, 1, 500), (0, 6)):
        order = torch.randperm(len(candidates), generator=_generator(*triple)).tolist()
        expected = sorted(candidates[i] for i in order[:3])
        assert indices(variant_mask(variant, DETECTED, REGION, *triple)) == expected


@given(sets=detections(), triple=triples, variant=st.sampled_from(RANDOM))
def test_random_variants_match_in_count_and_stay_among_candidates(sets, triple, variant):
    detected, region = sets
    mask = variant_mask(variant, detected, region, *triple)
    assert mask.dtype is torch.bool
    assert mask.shape == detected.shape
    assert mask.sum() == detected.sum()
    if variant == "random_unimportant":
        assert not (mask & region).any()


@given(sets=detections(), triple=triples, variant=st.sampled_from(RANDOM), other=st.integers(0, 99))
def test_random_variants_depend_on_the_triple_alone(sets, triple, variant, other):
    detected, region = sets
    before = torch.random.get_rng_state()
    first = variant_mask(variant, detected, region, *triple)
    assert torch.equal(torch.random.get_rng_state(), before)  # the global generator is not touched
    torch.manual_seed(other)
    assert torch.equal(variant_mask(variant, detected, region, *triple), first)


@pytest.mark.parametrize("variant", RANDOM)
@pytest.mark.parametrize("moving", ["seed", "step", "token"])
def test_each_of_seed_step_and_token_changes_the_draw(variant, moving):
    detected, region = mask_of(64, *range(10)), mask_of(64, *range(40, 60))
    draws = {
        tuple(indices(variant_mask(variant, detected, region, **({"seed": 1, "step": 2, "token": 3} | {moving: i}))))
        for i in range(50)
    }
    assert len(draws) == 50  # of more than 10**9 possible ones


@pytest.mark.parametrize("variant", RANDOM)
def test_random_draw_is_uniform(variant):
    candidates = [v for v in range(12) if variant == "random_all" or not REGION[v]]
    draws = 3000
    counts = sum(variant_mask(variant, DETECTED, REGION, 0, i // 7, i % 7).int() for i in range(draws))
    expected = draws * 3 / len(candidates)
    chi_square = sum((counts[v] - expected) ** 2 / expected for v in candidates)
    assert chi_square < 31.3  # 99.9 % quantile at 11 degrees of freedom; draws without replacement vary less
    assert counts.sum() == 3 * draws


def test_seeds_rarely_collide():
    # 125,000 neighbouring triples: 1.8 collisions are to be expected of 32 random bits.
    triples = itertools.product(range(5), range(1000), range(25))
    states = {_generator(*t).initial_seed() for t in triples}
    assert len(states) >= 125_000 - 10
    # Torch keeps 32 bits of a seed: what differs above them is the same generator.
    assert max(states) < 2**32


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"variant": "random"}, "variant = 'random' .*off, dtp, no_gaussian, random_all, random_unimportant"),
        ({"detected": torch.zeros(12)}, "detected has the type torch.float32"),
        ({"region": mask_of(11)}, r"region has the shape \[11\] .*N_v = 12"),
        ({"seed": -1}, "seed = -1"),
        ({"seed": 2**31}, "seed = 2147483648"),
        ({"step": -1}, "step = -1"),
        ({"token": 2**32}, "token = 4294967296"),
    ],
)
def test_refuses(changes, says):
    arguments = {
        "variant": "random_all", "detected": DETECTED, "region": REGION, "seed": 0, "step": 0, "token": 0,
    }  # fmt: skip
    with pytest.raises(ConfigError, match=says):
        variant_mask(**(arguments | changes))
