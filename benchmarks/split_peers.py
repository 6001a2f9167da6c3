"""What ``split.py`` compares: pgplan's partitioners, and those of the peers from their own packages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise

from pgplan.split import SplitProblem, minimise_max, minimise_max_additive

Partition = Callable[[Sequence[int], int], list[int]]
"""Costs and the number of stages -> the stage of each layer; -1 for a layer that was left out."""


def stages_of(sizes: Sequence[int]) -> list[int]:
    """Return the stage of each layer."""
    return [stage for stage, size in enumerate(sizes) for _ in range(size)]


def range_problem(costs: Sequence[int], stages: int) -> SplitProblem:
    """Return the same costs as a function of ranges, of which the optimiser knows nothing."""
    prefix = [0, *accumulate(costs)]

    def stage_cost(stage: int, start: int, stop: int) -> int:
        return prefix[stop] - prefix[start]

    return SplitProblem(
        num_layers=len(costs), num_stages=stages, stage_cost=stage_cost, stage_classes=(0,) * stages
    )


def additive(costs: Sequence[int], stages: int) -> list[int]:
    return stages_of(minimise_max_additive(costs, stages).split)


def ranges(costs: Sequence[int], stages: int) -> list[int]:
    return stages_of(minimise_max(range_problem(costs, stages)).split)


def torchgpipe() -> Partition:
    from torchgpipe.balance import blockpartition

    return lambda costs, stages: stages_of(
        [len(block) for block in blockpartition.solve(list(costs), stages)]
    )


def deepspeed() -> Partition:
    from deepspeed.runtime.utils import partition_balanced

    def partition(costs: Sequence[int], stages: int) -> list[int]:
        return stages_of([stop - start for start, stop in pairwise(partition_balanced(costs, stages))])

    return partition


def accelerate() -> Partition:
    import torch
    from accelerate import infer_auto_device_map
    from accelerate.utils import get_balanced_memory

    class Block(torch.nn.Module):
        """A layer that weighs as many bytes as it costs."""

        def __init__(self, cost: int) -> None:
            super().__init__()
            weight = torch.empty(cost, dtype=torch.uint8, device="meta")
            self.weight = torch.nn.Parameter(weight, requires_grad=False)

    models: dict[tuple[int, ...], torch.nn.Module] = {}

    def partition(costs: Sequence[int], stages: int) -> list[int]:
        key = tuple(costs)
        if key not in models:
            models.clear()
            models[key] = torch.nn.Sequential(*map(Block, costs))
        memory = get_balanced_memory(
            models[key], dict.fromkeys(range(stages), 1 << 60), no_split_module_classes=["Block"]
        )
        found = infer_auto_device_map(models[key], memory, no_split_module_classes=["Block"])
        devices = [found.get(str(layer), found.get("", -1)) for layer in range(len(costs))]
        return [device if isinstance(device, int) else -1 for device in devices]

    return partition


def linear(layers: int, stages: int) -> float:
    return layers


# Each with how its time grows with layers and stages.
Peers = dict[str, tuple[Partition, Callable[[int, int], float]]]
OURS: Peers = {"pgplan additive": (additive, linear), "pgplan ranges": (ranges, linear)}
LOADERS = {
    "torchgpipe": (torchgpipe, linear),
    "deepspeed": (deepspeed, lambda layers, stages: layers**2 * stages),
    "accelerate": (accelerate, lambda layers, stages: layers**2),
}


def load_peers() -> Peers:
    peers: Peers = {}
    for name, (load, growth) in LOADERS.items():
        try:
            peers[name] = (load(), growth)
        except ImportError as error:
            print(f"{name} is absent: {error}")
    return peers
