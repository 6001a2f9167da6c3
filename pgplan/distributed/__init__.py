"""Process groups without global state."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pgplan.distributed.auth import new_token
    from pgplan.distributed.basics import USE_SCHED_YIELD, divide, ensure_divisibility, sched_yield
    from pgplan.distributed.bootstrap import socket_mesh
    from pgplan.distributed.codec import register
    from pgplan.distributed.group import StatelessProcessGroup

_HOMES = {
    "StatelessProcessGroup": "group",
    "new_token": "auth",
    "register": "codec",
    "socket_mesh": "bootstrap",
    "USE_SCHED_YIELD": "basics",
    "divide": "basics",
    "ensure_divisibility": "basics",
    "sched_yield": "basics",
    "get_pp_indices": "..split",
    "init_gloo_process_group": "tensor_groups",
    "stateless_destroy_torch_distributed_process_group": "tensor_groups",
    "stateless_init_torch_distributed_process_group": "tensor_groups",
    "gather_along_last_dim": "tensor_split",
    "scatter_along_last_dim": "tensor_split",
    "split_tensor_along_last_dim": "tensor_split",
    "recv_stage": "handoff",
    "send_stage": "handoff",
}


__all__ = [
    "USE_SCHED_YIELD",
    "StatelessProcessGroup",
    "divide",
    "ensure_divisibility",
    "new_token",
    "register",
    "sched_yield",
    "socket_mesh",
]


def __getattr__(name: str) -> Any:
    """Load what is asked for, when it is asked for."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = _HOMES[name]
    return getattr(importlib.import_module(home if home.startswith(".") else f".{home}", __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
