"""Real plans for the tests of views and widgets: small, large, mixed, starved, and some that do not fit."""

from __future__ import annotations

from functools import cache

from pgplan.hardware import Cluster
from pgplan.planning import Plan, plan
from pgplan.workload import Workload

_H200 = "H200 SXM 141GB"
_SHORT = Workload(max_model_len=8192)


def _uniform(gpu: str, stages: int, *, tp_size: int = 1) -> Cluster:
    return Cluster.uniform(gpu, pp_size=stages, tp_size=tp_size)


_MAKERS = {
    "one": lambda: plan("llama-3.1-8b", _uniform(_H200, 1), workload=_SHORT),
    "two": lambda: plan("llama-3.1-70b", _uniform(_H200, 2), workload=_SHORT),
    "four": lambda: plan("llama-3.1-70b", _uniform(_H200, 4), workload=_SHORT),
    "default": lambda: plan("llama-3.1-70b", _uniform(_H200, 4), workload=_SHORT, split="default"),
    "uneven": lambda: plan("llama-3.1-70b", _uniform(_H200, 4), workload=_SHORT, split="14,26,22,18"),
    "sglang": lambda: plan("llama-3.1-70b", _uniform(_H200, 4), workload=_SHORT, engine="sglang"),
    # Two requests cannot keep four stages busy.
    "starved": lambda: plan(
        "llama-3.1-70b", _uniform(_H200, 4), workload=Workload(max_model_len=8192, concurrency=2)
    ),
    # 70 billion parameters in bf16 are 131 GiB; four A100 of 40 GB have 4 x 33 GiB of budget.
    "too big": lambda: plan("llama-3.1-70b", _uniform("A100 40GB SXM4", 4), split="22,22,19,17"),
    # The weights fit on the L40S, but stage 0 has next to nothing left for the cache.
    "no room": lambda: plan("llama-3.1-70b", _uniform("L40S", 4), workload=_SHORT, split="24,24,16,16"),
    "mixed": lambda: plan(
        "llama-3.1-70b", Cluster.mixed([_H200, _H200, "L40S", "A100 80GB SXM4"]), workload=_SHORT
    ),
    # Long names on the left and long words beside the memory bars at once.
    "mixed too big": lambda: plan(
        "mixtral-8x22b",
        Cluster.mixed([_H200, _H200, "A100 80GB SXM4", "A100 80GB SXM4"]),
        workload=Workload(max_model_len=16384),
        split="default",
    ),
    "tied": lambda: plan("gemma-3-27b", _uniform("L40S", 4), workload=_SHORT),
    "eight": lambda: plan("llama-3.1-405b", _uniform(_H200, 8, tp_size=2), workload=_SHORT),
    "sixteen": lambda: plan("llama-3.1-405b", _uniform(_H200, 16), workload=_SHORT),
    "sixty-four": lambda: plan("llama-3.1-405b", _uniform("H100 SXM5 80GB", 64), workload=_SHORT),
    "mixed sixty-four": lambda: plan(
        "llama-3.1-405b", Cluster.mixed([_H200] * 32 + ["L40S"] * 32), workload=_SHORT
    ),
}
NAMES = tuple(_MAKERS)


@cache
def sample(name: str) -> Plan:
    """Return the plan of that name; made once."""
    return _MAKERS[name]()
