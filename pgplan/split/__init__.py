"""Where the cuts of a pipeline may go, and where they go best. Costs are numbers here; models are unknown.

- rules: the engines' default layer counts, and the layer ranges vLLM and SGLang read from them;
- override: the split as a user writes it, ``20,*,*,19``, parsed strictly;
- problem: what the optimiser is asked (:class:`SplitProblem`) and what it answers;
- ranges: the costs of ranges of layers, each asked for once; forbidden cuts;
- search: the least possible slowest stage, and the cuts that respect it;
- lexicographic: of those splits the one whose next slowest stage is fastest, and so on;
- optimise: the three together (:func:`minimise_max`), exact for any stage costs;
- additive: the fast path where a stage costs the sum of its layers.
"""

from pgplan.split.additive import minimise_max_additive
from pgplan.split.optimise import LEXICOGRAPHIC_SIZE, minimise_max
from pgplan.split.override import Pins, check_stage_count, format_split, parse_split
from pgplan.split.problem import (
    SplitInfeasibleError,
    SplitProblem,
    SplitShortfall,
    SplitSolution,
    StageCost,
)
from pgplan.split.rules import (
    extras_before_last,
    extras_first_stages,
    extras_last_stages,
    get_pp_indices,
    remainder_on_last,
    sglang_pp_indices,
)

__all__ = [
    "LEXICOGRAPHIC_SIZE",
    "Pins",
    "SplitInfeasibleError",
    "SplitProblem",
    "SplitShortfall",
    "SplitSolution",
    "StageCost",
    "check_stage_count",
    "extras_before_last",
    "extras_first_stages",
    "extras_last_stages",
    "format_split",
    "get_pp_indices",
    "minimise_max",
    "minimise_max_additive",
    "parse_split",
    "remainder_on_last",
    "sglang_pp_indices",
]
