"""The optimiser against exhaustive search, and its answers to impossible requests."""

import itertools
import math
import random
from collections import Counter

import pytest

from pgplan.errors import InfeasibleError, SplitError
from pgplan.split import (
    SplitInfeasibleError,
    SplitProblem,
    lexicographic,
    minimise_max,
    minimise_max_additive,
)

BEYOND_LIMITS, NO_SPLIT = "beyond limits", "no split"


def exhaustive(problem):
    """Try all splits; of equal sorted costs take the lightest last stage, then the lightest last but one."""
    best, verdict = None, NO_SPLIT
    for cuts in itertools.combinations(range(1, problem.num_layers), problem.num_stages - 1):
        ranges = list(itertools.pairwise((0, *cuts, problem.num_layers)))
        split = tuple(stop - start for start, stop in ranges)
        pins = problem.pins or split
        obeys_pins = all(pin in (None, count) for pin, count in zip(pins, split, strict=True))
        if not obeys_pins or problem.forbidden_cuts & set(cuts):
            continue
        costs = tuple(problem.stage_cost(stage, *bounds) for stage, bounds in enumerate(ranges))
        if math.inf in costs:
            verdict = BEYOND_LIMITS
            continue
        candidate = (sorted(costs, reverse=True), split[::-1], costs)
        best = candidate if best is None else min(best, candidate)
    return (best[1][::-1], best[2]) if best else verdict


def solve(problem):
    try:
        solution = minimise_max(problem)
    except SplitInfeasibleError:
        return BEYOND_LIMITS
    except SplitError:
        return NO_SPLIT
    assert solution.lexicographic
    return solution.split, solution.stage_costs


def random_stage_cost(rng, layers, stages):
    """Return a stage cost of one of four shapes, whether it is monotone, and stage classes or None."""
    weights = [rng.choice([1, 1, 2, 3, rng.uniform(0, 5)]) for _ in range(layers)]
    extras = [rng.choice([0, 3])] + [0] * (stages - 2) + [rng.choice([0, 3])]
    slowness = [rng.choice([0.5, 1, 1, 2]) for _ in range(stages)]
    limits = [rng.choice([math.inf, sum(weights) / stages * rng.uniform(1, 3)]) for _ in range(stages)]
    kinds = [rng.randrange(3) for _ in range(layers)]
    table = {}

    def sums(stage, start, stop):
        return sum(weights[start:stop]) + extras[stage]

    def limited(stage, start, stop):
        cost = sums(stage, start, stop) * slowness[stage]
        return cost if cost <= limits[stage] else math.inf

    def grouped(stage, start, stop):  # as the KV groups of a hybrid model: the largest group counts
        return max(Counter(kinds[start:stop]).values()) * slowness[stage]

    def arbitrary(stage, start, stop):
        return table.setdefault((stage, start, stop), rng.choice([1, 2, 3, rng.random(), math.inf]))

    shape = rng.choice([sums, limited, grouped, arbitrary])
    return shape, shape is not arbitrary, tuple(extras[:stages]) if shape is sums else None


def random_problem(rng):
    layers = rng.randint(1, 10)
    stages = rng.randint(1, layers)
    stage_cost, monotone, classes = random_stage_cost(rng, layers, stages)
    cuts = sorted(rng.sample(range(1, layers), stages - 1))
    pins = tuple(
        stop - start + (rng.random() < 0.05) if rng.random() < 0.4 else None
        for start, stop in itertools.pairwise((0, *cuts, layers))
    )
    return SplitProblem(
        num_layers=layers,
        num_stages=stages,
        stage_cost=stage_cost,
        pins=pins if rng.random() < 0.4 else None,
        forbidden_cuts=frozenset(cut for cut in range(1, layers) if rng.random() < rng.choice([0, 0.3])),
        monotone=monotone,
        stage_classes=classes,
    )


@pytest.mark.parametrize("digits", [256, 3], ids=["numbers", "lists"])
def test_optimum_equals_exhaustive_search_on_4000_random_cases(monkeypatch, digits):
    # Few different costs are kept as the digits of a number, many as lists.
    monkeypatch.setattr(lexicographic, "_DIGITS", digits)
    rng = random.Random(20261122)
    seen = Counter()
    for _ in range(4000):
        problem = random_problem(rng)
        expected = exhaustive(problem)
        assert solve(problem) == expected, problem
        seen[expected if isinstance(expected, str) else "solved"] += 1
    # The generator must go on producing all three kinds.
    assert seen["solved"] >= 2500
    assert seen[BEYOND_LIMITS] >= 200
    assert seen[NO_SPLIT] >= 200


def additive_problem(costs, stages, **options):
    prefix = [0, *itertools.accumulate(costs)]

    def stage_cost(stage, start, stop):
        return prefix[stop] - prefix[start]

    return SplitProblem(
        num_layers=len(costs),
        num_stages=stages,
        stage_cost=stage_cost,
        stage_classes=(0,) * stages,
        **options,
    )


# Inputs on which other partitioners are known to be wrong: their bounds, and the least possible maximum.
COUNTEREXAMPLES = {
    "torchgpipe 0.0.7, three times the optimum": (
        [22, *[10] * 11, 14],
        [0, 1, 2, 3, 4, 5, 6, 13],
        24,
    ),
    "torchgpipe 0.0.7, bounds past the list": (
        [13, 16, 10, 10, 10, 16, 16, 16, 10, 10, 61],
        [0, 1, 2, 6, 7, 8, 11, 11, 14],
        61,
    ),
    "DeepSpeed 0.19.8": (
        [16, 75, 88, 84, 2, 92, 14, 55, 10, 27, 16, 81, 2, 32, 61, 10, 28],
        [0, 2, 3, 5, 6, 8, 11, 14, 17],
        106,
    ),
    "DeepSpeed 0.19.8, its own objective": (
        [17, 10, 10, 16, 16, 16, 16, 31],
        [0, 2, 4, 6, 7, 8],
        32,
    ),
    "nanotron, empty last stage": (
        [19, *[10] * 17, 67],
        [0, 6, 12, 19, 19],
        69,
    ),
}


@pytest.mark.parametrize(("costs", "theirs", "optimum"), COUNTEREXAMPLES.values(), ids=COUNTEREXAMPLES)
def test_counterexamples_to_other_partitioners(costs, theirs, optimum):
    stages = len(theirs) - 1
    problem = additive_problem(costs, stages)
    solution = minimise_max(problem)
    assert (solution.split, solution.stage_costs) == exhaustive(problem)
    assert solution.max_cost == minimise_max_additive(costs, stages).max_cost == optimum
    assert min(solution.split) >= 1
    slowest = max(sum(costs[start:stop]) for start, stop in itertools.pairwise(theirs))
    assert slowest >= optimum


def test_embedding_and_head_make_the_outer_stages_shorter():
    def stage_cost(stage, start, stop):
        return 1000 * (stop - start) + {0: 1800, 3: 2600}.get(stage, 0)

    solution = minimise_max(SplitProblem(num_layers=80, num_stages=4, stage_cost=stage_cost))
    assert solution.split == (19, 21, 21, 19)
    assert solution.stage_costs == (20800, 21000, 21000, 21600)


def test_equally_good_splits_are_decided_for_the_lightest_last_stages():
    assert minimise_max(additive_problem([1] * 62, 4)).split == (16, 16, 15, 15)
    assert minimise_max(additive_problem([0] * 5, 3)).split == (3, 1, 1)


def test_second_slowest_stage_counts_behind_a_slow_one():
    # The last layer alone is the bottleneck; a min-max search could stop at (1, 7, 1) or (7, 1, 1).
    assert minimise_max(additive_problem([1] * 8 + [50], 3)).split == (4, 4, 1)


def test_costs_that_differ_by_one_ulp_are_told_apart():
    above = math.nextafter(3.0, 4.0)
    costs = {(0, 2): above, (2, 4): 1.0, (0, 1): 1.0, (1, 4): 3.0, (0, 3): 5.0, (3, 4): 1.0}
    problem = SplitProblem(
        num_layers=4, num_stages=2, stage_cost=lambda stage, *bounds: costs.get(bounds, 0.5), monotone=False
    )
    assert minimise_max(problem).split == (1, 3)


def test_integer_costs_beyond_float_precision_stay_exact():
    big = 2**60
    costs = [big + 1, big, big, big + 2, big]
    problem = additive_problem(costs, 3)
    solution = minimise_max(problem)
    assert (solution.split, solution.stage_costs) == exhaustive(problem)


def test_negative_costs_are_costs():
    # As when KV tokens are maximised: cost = -tokens.
    def stage_cost(stage, start, stop):
        return -(1000 // (stop - start))

    solution = minimise_max(SplitProblem(num_layers=10, num_stages=3, stage_cost=stage_cost))
    assert solution.split == (4, 3, 3)
    assert solution.max_cost == -250


def test_each_range_is_asked_for_once_per_class():
    asked = Counter()

    def stage_cost(stage, start, stop):
        asked[min(stage, 1), start, stop] += 1
        return float(stop - start) + 2.5 * (stage == 0)

    classes = (0, *[1] * 15)
    minimise_max(SplitProblem(num_layers=126, num_stages=16, stage_cost=stage_cost, stage_classes=classes))
    assert max(asked.values()) == 1
    assert len(asked) < 126 * 127 / 2 / 4


@pytest.mark.parametrize("grouped", [False, True])
def test_beyond_the_exact_size_no_single_cut_can_be_moved_for_the_better(grouped):
    rng = random.Random(7)
    costs = [rng.randint(50, 1500) for _ in range(400)]

    def stage_cost(stage, start, stop):
        if grouped:  # costs in large steps, equal for many cuts
            return -(-(stop - start) // 4)
        return sum(costs[start:stop])

    solution = minimise_max(SplitProblem(num_layers=400, num_stages=40, stage_cost=stage_cost))
    assert not solution.lexicographic
    assert solution.max_cost == (3 if grouped else minimise_max_additive(costs, 40).max_cost)
    cuts = list(itertools.accumulate(solution.split, initial=0))
    for stage, (start, cut, stop) in enumerate(zip(cuts, cuts[1:], cuts[2:], strict=False)):

        def pair(at, stage=stage, start=start, stop=stop):
            return sorted((stage_cost(stage, start, at), stage_cost(stage + 1, at, stop)), reverse=True)

        assert pair(cut) == min(map(pair, range(start + 1, stop)))


def test_shortfall_says_how_many_layers_the_stages_hold():
    def stage_cost(stage, start, stop):
        return stop - start if stop - start <= 20 else math.inf

    with pytest.raises(SplitInfeasibleError, match="4 stages hold at most 80 of 93 layers") as caught:
        minimise_max(SplitProblem(num_layers=93, num_stages=4, stage_cost=stage_cost))
    assert isinstance(caught.value, InfeasibleError)
    shortfall = caught.value.shortfall
    assert (shortfall.stage, shortfall.placed_layers, shortfall.num_layers) == (4, 80, 93)


@pytest.mark.parametrize("monotone", [True, False])
def test_shortfall_names_the_stage_that_holds_nothing(monotone):
    def stage_cost(stage, start, stop):
        return math.inf if stage == 2 else float(stop - start)

    with pytest.raises(SplitInfeasibleError, match="no range of layers fits on stage 2") as caught:
        minimise_max(SplitProblem(num_layers=9, num_stages=4, stage_cost=stage_cost, monotone=monotone))
    assert caught.value.shortfall.stage == 2


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_stages": 9}, "8 layers cannot fill 9 stages"),
        ({"num_stages": 0}, "the number of stages (pp_size) must be a whole number of at least 1, not 0"),
        ({"pins": (4, 4)}, "pins has 2 entries but there are 3 stages"),
        ({"pins": (8, None, 0)}, "stage 2 is pinned to 0; pin 1 or more"),
        ({"pins": (4, None, 4)}, "no split of 8 layers over 3 stages obeys the pins 4,*,4"),
        ({"pins": (3, None, None), "forbidden_cuts": frozenset({3})}, "forbidden cuts 3"),
        ({"forbidden_cuts": frozenset({8})}, "one of 1 to 7 but 8 is forbidden"),
        ({"forbidden_cuts": frozenset(range(1, 7))}, "obeys the forbidden cuts"),
        ({"stage_classes": (0,)}, "stage_classes has 1 entries"),
        ({"stage_cost": lambda stage, start, stop: math.nan}, "must be a number but stage 2 gives nan"),
        ({"stage_cost": lambda stage, start, stop: -(stop - start)}, "pass monotone=False"),
    ],
)
def test_wrong_problems_are_refused_on_one_line(options, words):
    good = {"num_layers": 8, "num_stages": 3, "stage_cost": lambda stage, start, stop: stop - start}
    with pytest.raises(SplitError) as caught:
        minimise_max(SplitProblem(**(good | options)))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
