"""Build torch process groups by hand, from parts that torch 2.6 to 2.15 share.

``torch.distributed.init_process_group`` keeps its groups in global state; the classes below it do not.
They are private in part and have changed: ``Options`` of a process group went in 2.6, sequence numbers
moved to the backends, ``abort`` came late. What is there is looked at, never the version number.
"""

from __future__ import annotations

import contextlib
import os
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from pgplan.errors import BackendError

if TYPE_CHECKING:
    import torch
    from torch._C._distributed_c10d import Store
    from torch.distributed import ProcessGroup

LOOPBACK = ("127.0.0.1", "localhost", "::1")

# NCCL's watchdog ends the process when a peer's death breaks a communicator. We watch the peers ourselves
# and want to say who died: 2 means that the watchdog aborts the communicator and leaves the process alone.
_WATCHDOG_CLEANS_UP_ONLY = ("TORCH_NCCL_ASYNC_ERROR_HANDLING", "2")


def build_group(
    backend: str,
    store: Store,
    *,
    rank: int,
    size: int,
    timeout: timedelta,
    device: torch.device,
    hostname: str | None,
) -> ProcessGroup:
    """Make a process group of one backend, known to nobody but the caller.

    Args:
        backend: ``"gloo"`` or ``"nccl"``.
        store: Where the ranks find each other; no other group may use the same keys.
        rank: This process, from 0.
        size: The number of ranks.
        timeout: How long an operation may take.
        device: Where this rank's tensors live; ``cpu`` for gloo.
        hostname: The address whose interface the group's own connections use; ``None`` leaves it to torch.

    Raises:
        BackendError: If this torch does not have the backend, or it cannot serve the device.
    """
    wanted = {"gloo": "cpu", "nccl": "cuda"}.get(backend)
    if wanted is None:
        raise BackendError(f"backend is {backend!r}; give 'gloo' or 'nccl'")
    if device.type != wanted or (wanted == "cuda" and device.index is None):
        raise BackendError(
            f"backend {backend!r} serves {wanted} devices and device is {device}; give {wanted}:<index>"
        )
    make = _gloo if backend == "gloo" else _nccl
    return _wrap(make(store, rank, size, timeout, hostname), store, rank, size, device)


def _gloo(store: Store, rank: int, size: int, timeout: timedelta, hostname: str | None) -> Any:
    import torch.distributed as dist

    if not dist.is_gloo_available():
        raise BackendError("this torch is built without gloo; install one that has it")
    gloo: Any = dist.ProcessGroupGloo
    if hostname is None:
        return gloo(store, rank, size, timeout)
    options = gloo._Options()
    options._timeout = timeout
    # Without this gloo listens on whatever address the host name resolves to.
    options._devices = [gloo.create_device(hostname=hostname)]
    return gloo(store, rank, size, options)


def _nccl(store: Store, rank: int, size: int, timeout: timedelta, hostname: str | None) -> Any:
    import torch
    import torch.distributed as dist

    if not dist.is_nccl_available():
        raise BackendError(f"torch {torch.__version__} is built without NCCL; give backend='gloo'")
    if not torch.cuda.is_available():
        raise BackendError("backend 'nccl' needs a GPU and torch sees none; give backend='gloo'")
    os.environ.setdefault(*_WATCHDOG_CLEANS_UP_ONLY)
    if hostname in LOOPBACK:
        os.environ.setdefault("NCCL_SOCKET_IFNAME", "lo")
    options = dist.ProcessGroupNCCL.Options()
    options._timeout = timeout
    return dist.ProcessGroupNCCL(store, rank, size, options)


def _wrap(backend: Any, store: Store, rank: int, size: int, device: torch.device) -> ProcessGroup:
    """Put a backend into a ``ProcessGroup``, which is what torch's collectives take."""
    import torch
    from torch.distributed import ProcessGroup

    # The stubs do not know these classes as they are made here.
    make: Any = ProcessGroup
    kind = getattr(ProcessGroup.BackendType, "NCCL" if device.type == "cuda" else "GLOO")
    options = [make.Options(device.type)] if hasattr(make, "Options") else []
    group = make(store, rank, size, *options)
    if hasattr(group, "_set_default_backend"):
        group._set_default_backend(kind)
    if hasattr(backend, "_set_sequence_number_for_group"):
        backend._set_sequence_number_for_group()
    if device.type == "cuda":
        # Else torch guesses the device from the rank, and from 2.15 from LOCAL_RANK. A backend takes it over
        # when it is registered.
        with contextlib.suppress(AttributeError):
            group.bound_device_id = device
    group._register_backend(torch.device(device.type), kind, backend)
    if device.type == "cuda" and hasattr(backend, "eager_connect_single_device"):
        backend.eager_connect_single_device(device)
    return group  # type: ignore[no-any-return]


def backend_of(group: ProcessGroup, device: torch.device) -> Any:
    """Return the backend object of a group made here."""
    return group._get_backend(device)


def break_group(group: ProcessGroup, device: torch.device, *, rank: int) -> None:
    """End every wait of this process on a group, with an error; safe while another thread waits.

    NCCL has a way to abort. gloo has none, but a receive that times out closes every connection of its
    group, and that wakes all who wait on one.
    """
    import torch

    backend = backend_of(group, device)
    if device.type == "cuda":
        abort = getattr(backend, "abort", None) or getattr(backend, "_abort", None)
        if abort is not None:
            abort()
        return
    size = backend.size()
    if size > 1:
        with contextlib.suppress(RuntimeError):
            backend.recv([torch.empty(1)], (rank + 1) % size, _BREAK_TAG).wait(timedelta(milliseconds=1))


_BREAK_TAG = 0x70677061  # nobody sends with it


def shut_down(group: ProcessGroup) -> None:
    """End a group's connections and threads."""
    if hasattr(group, "shutdown"):
        group.shutdown()
