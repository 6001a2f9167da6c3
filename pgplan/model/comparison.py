"""Compare the weights that a configuration describes with the tensors of a checkpoint, place by place."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from pgplan.model.stored import StoredModule
from pgplan.model.weights import Weight

Modules = dict[str, StoredModule]


@dataclass(slots=True)
class Comparison:
    """Hold what the comparison of one place found.

    Args:
        pairs: Weights and the modules that store them: one of each, unless one side fuses what the
            other does not.
        differences: What makes the two different models.
        extra: Modules that belong to no known weight.
    """

    pairs: list[tuple[list[Weight], list[StoredModule]]] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)
    extra: list[StoredModule] = field(default_factory=list)


def compare(weights: Iterable[Weight], found: Modules, *, where: str = "") -> Comparison:
    """Compare the weights of one layer (or of what stands outside) with the modules found there.

    Args:
        weights: The weights as the configuration describes them.
        found: Modules by the name that they have inside their place.
        where: What messages call the place, e.g. ``"layer 3 "``.
    """
    result, found = Comparison(), dict(found)
    wanted: dict[str, list[Weight]] = {}
    for weight in weights:
        wanted.setdefault(module_of(weight), []).append(weight)
    for name in [name for name in wanted if name in found]:
        ours, module = wanted.pop(name), found.pop(name)
        difference = _difference(ours, module)
        if difference:
            result.differences.append(f"{where}{name} {difference}")
        else:
            result.pairs.append(([*ours], [module]))
    found = {name: module for name, module in found.items() if not module.is_buffer}
    # Renamed, or fused on one side only: then the sum must agree, at first under one parent module.
    for parent in (*dict.fromkeys(map(_parent, wanted)), None):
        _pool(wanted, found, parent, result)
    result.differences += [f"{where}{name} is not in the checkpoint" for name in wanted]
    result.extra += [module for module in found.values() if module.tensors]
    return result


def module_of(weight: Weight) -> str:
    """Return the checkpoint's name of the module that a weight lies in, fused or not."""
    return weight.name.partition("[")[0]


def matrix_elements(weights: Iterable[Weight]) -> int:
    """Count the elements of all weights without their biases."""
    return sum(weight.copies * weight.rows * weight.cols for weight in weights)


def _parent(name: str) -> str:
    return name.rpartition(".")[0]


def _pool(wanted: dict[str, list[Weight]], found: Modules, parent: str | None, result: Comparison) -> None:
    """Pair all that is left under ``parent`` (``None``: anywhere) if both sides have as many elements."""
    ours = [name for name in wanted if parent is None or _parent(name) == parent]
    theirs = [name for name in found if parent is None or _parent(name) == parent]
    weights = [weight for name in ours for weight in wanted[name]]
    stored = sum(found[name].elements(0) + found[name].bias_elements for name in theirs)
    if weights and stored == sum(weight.parameters for weight in weights):
        result.pairs.append((weights, [found.pop(name) for name in theirs]))
        for name in ours:
            del wanted[name]


def _difference(weights: list[Weight], module: StoredModule) -> str:
    """Say in what a module differs from the weights of its name; nothing where it does not."""
    expected = matrix_elements(weights)
    biases = sum(weight.copies * weight.rows for weight in weights if weight.bias)
    if not _agree(weights, module, expected):
        shapes = " x ".join(map(str, module.weights[0].shape)) if module.weights else "no weight"
        stored = f"{len(module.weights)} of {shapes}" if len(module.weights) > 1 else shapes
        return f"is {stored} in the checkpoint, {_shapes(weights)} by the configuration"
    if module.bias_elements != biases:
        return (
            f"has {module.bias_elements or 'no'} biases in the checkpoint, {biases or 'none'} by the "
            f"configuration"
        )
    return ""


def _agree(weights: list[Weight], module: StoredModule, expected: int) -> bool:
    if module.elements(expected) != expected:
        return False
    first = weights[0]
    if len(weights) > 1 or module.is_packed or len(module.weights) != first.copies or not first.is_matrix:
        return True
    # One matrix per tensor: both sides must agree too (some store it the other way round).
    sides = {first.rows, first.cols}
    return all(set(tensor.shape) == sides for tensor in module.weights if len(tensor.shape) == 2)


def _shapes(weights: list[Weight]) -> str:
    return " and ".join(
        (f"{weight.copies} of " if weight.copies > 1 else "")
        + (f"{weight.rows} x {weight.cols}" if weight.is_matrix else str(weight.rows))
        for weight in weights
    )
