"""torchtitan: module names per stage, or the two weights that stand for embedding and head.

Read in 0.3.0 (``torchtitan/distributed/pipeline_parallel.py``). A name that is missing from the list of
modules silently drops the layer there, so what is written here is complete by construction and what is read
is checked for it. The head is called ``lm_head`` from 0.3 on and ``output`` before.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import product
from typing import TYPE_CHECKING, Literal

from pgplan.engines.exporter import Exporter, find_setting, whole_numbers
from pgplan.errors import EngineError
from pgplan.split import format_split

if TYPE_CHECKING:
    from pgplan.planning.record import Plan

_FIRST, _LAST = "pipeline_parallel_first_stage_less_layers", "pipeline_parallel_last_stage_less_layers"


class TorchTitan(Exporter):
    """Write fields of the parallelism section.

    Args:
        version: Of torchtitan.
        form: ``modules``: any split; ``weights``: the few that the two weights can say.
        schedule: A schedule with one stage per rank.
    """

    name = "torchtitan"
    title = "torchtitan"
    default_version = "0.3"
    oldest_version = "0.2"
    writes = "fields of `parallelism`"
    syntax = "module_fqns_per_model_part or the two less_layers weights"
    checked = "0.3.0: its generator of module names, run; its fields"

    def __init__(
        self,
        version: str | None = None,
        *,
        form: Literal["modules", "weights"] = "modules",
        schedule: str = "1F1B",
    ) -> None:
        super().__init__(version)
        self.form, self.schedule = form, schedule

    def default_split(self, num_layers: int, pp_size: int) -> tuple[int, ...] | None:
        """Count embedding and head as a layer each; extras go to the first stages."""
        return weighted_split(num_layers, pp_size, first=1, last=1)

    def export(self, plan: Plan) -> str:
        """Return the fields, as Python or (before 0.3) as TOML."""
        fields: dict[str, object] = {
            "pipeline_parallel_degree": len(plan.split),
            "tensor_parallel_degree": plan.tp_size,
            "pipeline_parallel_schedule": f'"{self.schedule}"',
        }
        if self.form == "weights":
            first, last = self.weights(plan.split)
            fields |= {_FIRST: first, _LAST: last}
        else:
            parts = [_row(names) for names in self.modules(plan.split)]
            fields["module_fqns_per_model_part"] = "\n".join(["[", *parts, "]"])
        python = self.release >= (0, 3)
        section = [] if python else ["[parallelism]"]
        lines = [f"{'parallelism.' if python else ''}{name} = {value}" for name, value in fields.items()]
        return "\n".join([self.header(plan), *section, *lines]) + "\n"

    def modules(self, split: Sequence[int]) -> list[list[str]]:
        """Return the names of the modules of each stage, every one exactly once."""
        layers = iter(range(sum(split)))
        stages = [[f"layers.{next(layers)}" for _ in range(count)] for count in split]
        stages[0].insert(0, "tok_embeddings")
        stages[-1] += ["norm", "lm_head" if self.release >= (0, 3) else "output"]
        return stages

    def weights(self, split: Sequence[int]) -> tuple[int, int]:
        """Return the smallest weights of the ends that lead to a split.

        Raises:
            EngineError: If none do.

        >>> TorchTitan().weights((19, 21, 21, 19))
        (2, 1)
        """
        most = range(max(split) + 1)
        for first, last in sorted(product(most, most), key=lambda pair: (sum(pair), pair)):
            if weighted_split(sum(split), len(split), first=first, last=last) == tuple(split):
                return first, last
        raise EngineError(
            f"the less_layers weights of torchtitan cannot say {format_split(split)}: they lighten the ends "
            f"and spread the rest evenly, extras first; use module names (form 'modules')"
        )

    def find_split(self, text: str, *, num_layers: int, pp_size: int) -> Sequence[int | str] | None:
        """Read the module names, else the weights, of which each is 1 by default."""
        listing = re.search(r"module_fqns_per_model_part[\"']?\s*[=:]\s*\[(.*?\])\s*,?\s*\]", text, re.DOTALL)
        if listing:
            return _count_layers(listing[1], num_layers=num_layers)
        first, last = find_setting(text, _FIRST), find_setting(text, _LAST)
        if first is None and last is None and find_setting(text, "pipeline_parallel_degree") != str(pp_size):
            return None
        weights = whole_numbers([first or "1", last or "1"], what="the less_layers weights")
        split = weighted_split(num_layers, pp_size, first=weights[0], last=weights[1])
        if split is None:
            raise EngineError(
                f"torchtitan wants each weight to be at most the layers of a stage, got {weights[0]} and "
                f"{weights[1]} for {num_layers} layers over {pp_size} stages; give smaller weights"
            )
        return split


def weighted_split(num_layers: int, pp_size: int, *, first: int, last: int) -> tuple[int, ...] | None:
    """Return what torchtitan makes of the weights of embedding and head; ``None``: it refuses.

    >>> weighted_split(80, 4, first=1, last=1)
    (20, 21, 20, 19)
    """
    if pp_size == 1:
        return (num_layers,)
    base, extras = divmod(num_layers + first + last, pp_size)
    if base == 0 or max(first, last) > base:
        return None
    counts = [base + (stage < extras) for stage in range(pp_size)]
    counts[0] -= first
    counts[-1] -= last
    return tuple(counts)


def _row(names: Sequence[str]) -> str:
    return "    [" + ", ".join(f'"{name}"' for name in names) + "],"


def _count_layers(listing: str, *, num_layers: int) -> list[int]:
    """Count the layers of each stage, and refuse lists that leave one out or reorder them."""
    stages = [re.findall(r"[\"']layers\.(\d+)[\"']", stage) for stage in re.findall(r"\[([^\]]*)\]", listing)]
    named = [int(layer) for stage in stages for layer in stage]
    if named != list(range(num_layers)):
        lost = sorted(set(range(num_layers)) - set(named))
        what = f"lacks layers.{lost[0]}" if lost else "names layers twice, out of order or beyond the model"
        raise EngineError(
            f"module_fqns_per_model_part names each of the {num_layers} layers once, in order, but {what}; "
            f"torchtitan would not notice: mend the list"
        )
    return [len(stage) for stage in stages]
