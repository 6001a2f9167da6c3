"""The additive fast path against the general optimiser and exhaustive search."""

import itertools
import math
import random
from fractions import Fraction

import pytest

from pgplan.errors import SplitError
from pgplan.split import SplitProblem, minimise_max, minimise_max_additive


def least_maximum(costs, stages):
    """Return the least possible maximum by trying every split."""
    return min(
        max(sum(costs[start:stop]) for start, stop in itertools.pairwise((0, *cuts, len(costs))))
        for cuts in itertools.combinations(range(1, len(costs)), stages - 1)
    )


def test_slowest_stage_is_minimal_on_2000_random_cases():
    rng = random.Random(42)
    for _ in range(2000):
        size = rng.randint(1, 10)
        stages = rng.randint(1, size)
        draw = rng.choice([lambda: rng.randint(0, 9), rng.random, lambda: rng.choice([0, 1, 1e-9, 1e9])])
        costs = [draw() for _ in range(size)]
        first, last = rng.choice([(0, 0), (draw(), draw())])
        solution = minimise_max_additive(costs, stages, first=first, last=last)
        exact = [Fraction(cost) for cost in costs]
        exact[0] += Fraction(first)
        exact[-1] += Fraction(last)
        assert len(solution.split) == stages
        assert sum(solution.split) == size
        assert min(solution.split) >= 1
        cuts = itertools.accumulate(solution.split, initial=0)
        sums = [sum(exact[start:stop]) for start, stop in itertools.pairwise(cuts)]
        assert max(sums) == least_maximum(exact, stages), (costs, stages, first, last)
        assert solution.stage_costs == tuple(map(float, sums))


def test_equals_the_general_optimiser_on_a_large_case():
    rng = random.Random(3)
    costs = [rng.randint(50, 1500) for _ in range(300)]
    prefix = [0, *itertools.accumulate(costs)]

    def stage_cost(stage, start, stop):
        return prefix[stop] - prefix[start] + 900 * (stage == 0) + 2600 * (stage == 19)

    classes = (0, *[1] * 18, 2)
    general = SplitProblem(num_layers=300, num_stages=20, stage_cost=stage_cost, stage_classes=classes)
    additive = minimise_max_additive(costs, 20, first=900, last=2600)
    assert minimise_max(general).max_cost == additive.max_cost


def test_ten_thousand_layers_over_256_stages():
    rng = random.Random(0)
    costs = [rng.uniform(50, 1500) for _ in range(10_000)]
    solution = minimise_max_additive(costs, 256)
    assert sum(solution.split) == 10_000
    assert min(solution.split) >= 1
    # Independent lower-bound check: just below the answer, 256 greedy stages do not reach the end.
    exact = [Fraction(cost) for cost in costs]
    cuts = itertools.accumulate(solution.split, initial=0)
    slowest = max(sum(exact[start:stop]) for start, stop in itertools.pairwise(cuts))
    stages, load = 1, Fraction(0)
    for cost in exact:
        if load + cost >= slowest:
            stages, load = stages + 1, Fraction(0)
        load += cost
    assert stages > 256


def test_cuts_are_even_where_the_bottleneck_leaves_room():
    assert minimise_max_additive([1] * 12, 4).split == (3, 3, 3, 3)
    assert minimise_max_additive([9] + [1] * 12, 4).split == (1, 4, 4, 4)


def test_integers_stay_integers_and_floats_stay_floats():
    assert minimise_max_additive([1, 2, 3], 2).stage_costs == (3, 3)
    assert all(isinstance(cost, int) for cost in minimise_max_additive([1, 2, 3], 2).stage_costs)
    assert minimise_max_additive([0.1, 0.2, 0.3], 3).stage_costs == (0.1, 0.2, 0.3)


def test_floats_of_any_size_are_added_without_rounding():
    # In floating point 1e16 + 1.0 is 1e16 and 1e308 + 5e-324 is 1e308, so that all three splits would tie.
    for large, small in ((1e16, 1.0), (1e308, 5e-324)):
        assert minimise_max_additive([large, small, small, large, 0.0], 2).split == (2, 3)
        assert minimise_max_additive([0.0, large, small, small, large], 2).split == (3, 2)
        assert minimise_max_additive([0.0, large, small, large], 2, last=small).split == (3, 1)


@pytest.mark.parametrize("wrong", [-1, -0.5, math.nan, math.inf])
def test_costs_that_are_no_costs_are_refused(wrong):
    with pytest.raises(SplitError, match="finite and not negative"):
        minimise_max_additive([1, wrong, 1], 2)
    with pytest.raises(SplitError, match="finite and not negative"):
        minimise_max_additive([1, 1, 1], 2, last=wrong)


def test_more_stages_than_layers_are_refused():
    with pytest.raises(SplitError, match="2 layers cannot fill 3 stages"):
        minimise_max_additive([1, 1], 3)
