"""Let processes form groups, exchange objects and move tensors, without any global state.

The names and signatures are those of vLLM's ``vllm/distributed/utils.py``, so that code written against that
file runs on this one. On purpose it differs there:

- Objects travel as data (msgpack, large buffers out of band), not as pickles; what is not data is an error
  at the sender. ``register`` lets dataclasses, named tuples and enums travel; ``allow_pickle=True`` exists
  for groups whose members are known. bytearray arrives as bytes, a tensor on the CPU and detached.
- ``create`` binds the given address only, IPv4 or IPv6, never every interface, and off loopback it needs a
  token. Beside it there is ``from_environment``, over sockets that the launcher hands down.
- A message belongs to its sender and its reader; two senders do not collide. An unread message is kept within
  ``max_unread_bytes``; one that expired is an error for its reader, and the next one still arrives.
- ``barrier`` ends at its timeout, and one given up by a rank is given up by all. Every error of a wait names
  the ranks, and is a ``RuntimeError`` and, as the case may be, a ``TimeoutError`` or a ``ConnectionError``.
- When a peer dies, every wait on every rank ends at once and names it. A rank that closes its group has left:
  what it sent can still be read, and broadcasts and barriers go on without it.
- If a rank does not come to ``create``, every rank that did fails and names it.
- ``all_reduce`` refuses operations that it does not know. ``recv`` wants the tensor to fit what was sent.
- ``expire_data`` frees what arrived and was not read, and returns how many bytes that was. There is no
  ``store``; ``close``, ``descriptors`` and the context manager are new.
- ``all_gather_obj`` is one operation, not ``world_size`` broadcasts: ``broadcast_obj`` does not answer it.
- A failed ``ensure_divisibility`` is a ``ValueError`` too, and holds under ``python -O``.

Importing this package loads none of its modules; a name is loaded when it is used, and torch only by the
names that move tensors.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pgplan.distributed.auth import new_token
    from pgplan.distributed.basics import USE_SCHED_YIELD, divide, ensure_divisibility, sched_yield
    from pgplan.distributed.bootstrap import socket_mesh
    from pgplan.distributed.extensions import register
    from pgplan.distributed.group import StatelessProcessGroup
    from pgplan.distributed.handoff import Handoff, recv_stage, send_stage
    from pgplan.distributed.tensor_collectives import TensorGroup
    from pgplan.distributed.tensor_groups import (
        init_gloo_process_group,
        stateless_destroy_torch_distributed_process_group,
        stateless_init_torch_distributed_process_group,
    )
    from pgplan.distributed.tensor_plane import TensorPlane
    from pgplan.distributed.tensor_split import (
        gather_along_last_dim,
        scatter_along_last_dim,
        split_tensor_along_last_dim,
    )
    from pgplan.split import get_pp_indices

__all__ = [
    "USE_SCHED_YIELD",
    "Handoff",
    "StatelessProcessGroup",
    "TensorGroup",
    "TensorPlane",
    "divide",
    "ensure_divisibility",
    "gather_along_last_dim",
    "get_pp_indices",
    "init_gloo_process_group",
    "new_token",
    "recv_stage",
    "register",
    "scatter_along_last_dim",
    "sched_yield",
    "send_stage",
    "socket_mesh",
    "split_tensor_along_last_dim",
    "stateless_destroy_torch_distributed_process_group",
    "stateless_init_torch_distributed_process_group",
]

_HOMES = {
    "pgplan.distributed.auth": ("new_token",),
    "pgplan.distributed.basics": ("USE_SCHED_YIELD", "divide", "ensure_divisibility", "sched_yield"),
    "pgplan.distributed.bootstrap": ("socket_mesh",),
    "pgplan.distributed.extensions": ("register",),
    "pgplan.distributed.group": ("StatelessProcessGroup",),
    "pgplan.distributed.handoff": ("Handoff", "recv_stage", "send_stage"),
    "pgplan.distributed.tensor_collectives": ("TensorGroup",),
    "pgplan.distributed.tensor_groups": (
        "init_gloo_process_group",
        "stateless_destroy_torch_distributed_process_group",
        "stateless_init_torch_distributed_process_group",
    ),
    "pgplan.distributed.tensor_plane": ("TensorPlane",),
    "pgplan.distributed.tensor_split": (
        "gather_along_last_dim",
        "scatter_along_last_dim",
        "split_tensor_along_last_dim",
    ),
    "pgplan.split": ("get_pp_indices",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    """Load what is asked for, when it is asked for."""
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME_OF[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
