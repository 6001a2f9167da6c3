"""Costs that ``split.py`` has partitioned, and the optimum that it holds the answers against.

The optimum is found without the optimiser: by bisection over whole numbers, asking each time how many stages
are needed if each is filled to the brim.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any


def llm_costs(size: int) -> list[int]:
    """Return layers of about 1000, every fourth heavier, with the embedding and the head on the outer two."""
    rng = random.Random(0)
    costs = [1000 + rng.randint(0, 99) + 350 * (layer % 4 == 0) for layer in range(size)]
    costs[0] += 1800
    costs[-1] += 2600
    return costs


def equal_costs(size: int) -> list[int]:
    """Return equal layers, with the embedding and the head on the outer two."""
    return [2800, *[1000] * (size - 2), 3600]


def random_costs(size: int) -> list[int]:
    """Return layers between 50 and 1500."""
    rng = random.Random(0)
    return [rng.randint(50, 1500) for _ in range(size)]


def small_case(rng: random.Random) -> tuple[list[int], int]:
    """Return a few random costs and a number of stages; every second time costs as an LLM has them."""
    size, stages = rng.randint(8, 24), rng.randint(3, 8)
    if rng.random() < 0.5:
        return [rng.randint(1, 100) for _ in range(size)], stages
    costs = [rng.choice([10, 10, 16]) for _ in range(size)]
    costs[0] += rng.randint(0, 30)
    costs[-1] += rng.randint(0, 60)
    return costs, stages


def judge(costs: Sequence[int], stages: int, assigned: Sequence[int], optimum: int) -> dict[str, Any]:
    """Return slowest stage over optimum, the number of empty stages, and whether all layers are placed."""
    sums = [0] * stages
    valid = len(assigned) == len(costs) and list(assigned) == sorted(assigned)
    for cost, stage in zip(costs, assigned, strict=False):
        if 0 <= stage < stages:
            sums[stage] += cost
        else:
            valid = False
    empty = stages - len(set(assigned) & set(range(stages)))
    return {"ratio": max(sums) / optimum, "empty": empty, "valid": valid}


def least_maximum(costs: Sequence[int], stages: int) -> int:
    """Return the least possible maximum of whole costs."""

    def stages_needed(bound: int) -> int:
        needed, load = 1, 0
        for cost in costs:
            if load + cost > bound:
                needed, load = needed + 1, 0
            load += cost
        return needed

    low, high = max(costs), sum(costs)
    while low < high:
        bound = (low + high) // 2
        low, high = (low, bound) if stages_needed(bound) <= stages else (bound + 1, high)
    return low
