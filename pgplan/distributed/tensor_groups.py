"""Make torch process groups for tensors without ``torch.distributed``'s global state.

The functions have the names and signatures that vLLM's ``vllm/distributed/utils.py`` made known. On the
group that they return, ``group.broadcast``, ``send``, ``recv``, ``allgather`` and all the others work, from
any rank; ``torch.distributed.all_reduce(tensor, group=group)`` and ``barrier(group=group)`` do too, but
torch's own ``broadcast`` and ``send`` look the group up in the global state and refuse it.

``pgplan.distributed.tensor_plane`` makes groups that have no listener and know who died.
"""

from __future__ import annotations

import contextlib
import socket
import time
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal, overload

from pgplan.distributed.tensor_backends import LOOPBACK, build_group, shut_down
from pgplan.errors import GroupError, GroupTimeoutError, PeerLostError

if TYPE_CHECKING:
    import torch
    from torch._C._distributed_c10d import PrefixStore, Store, TCPStore
    from torch.distributed import ProcessGroup

_DEFAULT_TIMEOUT = {"gloo": timedelta(minutes=30), "nccl": timedelta(minutes=10)}
_JOINED, _MISSING = b"joined", b"missing"
_VERDICT_S = 1.0  # how long rank 0 keeps the store for the others to read who is missing


@overload
def stateless_init_torch_distributed_process_group(
    host: str,
    port: int,
    rank: int,
    world_size: int,
    backend: str,
    group_name: str | None = None,
    return_store: Literal[False] = False,
    listen_socket: socket.socket | None = None,
    timeout: timedelta | None = None,
    *,
    device: torch.device | str | None = None,
) -> ProcessGroup: ...
@overload
def stateless_init_torch_distributed_process_group(
    host: str,
    port: int,
    rank: int,
    world_size: int,
    backend: str,
    group_name: str | None = None,
    *,
    return_store: Literal[True],
    listen_socket: socket.socket | None = None,
    timeout: timedelta | None = None,
    device: torch.device | str | None = None,
) -> tuple[ProcessGroup, Store]: ...
def stateless_init_torch_distributed_process_group(
    host: str,
    port: int,
    rank: int,
    world_size: int,
    backend: str,
    group_name: str | None = None,
    return_store: bool = False,
    listen_socket: socket.socket | None = None,
    timeout: timedelta | None = None,
    *,
    device: torch.device | str | None = None,
) -> ProcessGroup | tuple[ProcessGroup, Store]:
    """Make a process group that only the caller knows, over a store at ``host:port``.

    Rank 0 (or who passes ``listen_socket``) serves the store, bound to ``host`` alone. torch's store has no
    authentication: whoever can connect can disturb the group, so give an address that only the ranks reach.

    Args:
        host: The address to meet at, IPv4 or IPv6; gloo's own connections use its interface, too.
        port: The port to meet at.
        rank: This process, from 0.
        world_size: The number of ranks.
        backend: ``"gloo"`` or ``"nccl"``.
        group_name: Also register the group under this name, for functional collectives and compilation.
        return_store: Whether to return the store beside the group.
        listen_socket: A socket already bound to ``host:port``; the store owns it from here on.
        timeout: For meeting and for each operation; by default torch's: gloo 30 minutes, NCCL 10 minutes.
        device: This rank's GPU for NCCL; by default torch's current one.

    Raises:
        GroupTimeoutError: If ranks did not come in time; every rank that did come names them.
        PeerLostError: If rank 0 left before the group was complete.
        BackendError: If the backend is not there.
    """
    import torch
    from torch._C._distributed_c10d import PrefixStore

    timeout = timeout or _DEFAULT_TIMEOUT.get(backend, timedelta(minutes=10))
    if device is None:
        device = torch.device("cuda", torch.cuda.current_device()) if backend == "nccl" else "cpu"
    store = _meet(host, port, rank, world_size, timeout, listen_socket)
    group = build_group(
        backend,
        PrefixStore(f"tcp://{host}:{port}/{group_name or ''}", store),
        rank=rank,
        size=world_size,
        timeout=timeout,
        device=torch.device(device),
        hostname=_own_address(host),
    )
    if group_name is not None:
        from torch._C._distributed_c10d import _register_process_group

        group._set_group_name(group_name)  # type: ignore[arg-type, unused-ignore]
        _register_process_group(group_name, group)  # type: ignore[arg-type, unused-ignore]
    return (group, store) if return_store else group


def init_gloo_process_group(
    prefix_store: PrefixStore, group_rank: int, group_size: int, timeout: timedelta
) -> ProcessGroup:
    """Make a gloo group over a store that the caller has.

    gloo listens on the interface that leads to the store's host; over a FileStore, on the loopback.

    >>> from datetime import timedelta
    >>> from torch.distributed import HashStore, PrefixStore
    >>> group = init_gloo_process_group(PrefixStore("mine", HashStore()), 0, 1, timedelta(seconds=5))
    >>> group.size()
    1
    >>> stateless_destroy_torch_distributed_process_group(group)
    """
    import torch

    return build_group(
        "gloo",
        prefix_store,
        rank=group_rank,
        size=group_size,
        timeout=timeout,
        device=torch.device("cpu"),
        hostname=_own_address(_host_of(prefix_store)),
    )


def stateless_destroy_torch_distributed_process_group(pg: ProcessGroup) -> None:
    """End a group made here: its connections, its threads and its name, if it was given one."""
    from torch._C._distributed_c10d import _unregister_process_group

    shut_down(pg)
    with contextlib.suppress(RuntimeError):  # a group without a name is not registered
        _unregister_process_group(pg.group_name)


# Meeting -------------------------------------------------------------------------------------------------


def _meet(
    host: str, port: int, rank: int, world_size: int, timeout: timedelta, listener: socket.socket | None
) -> Store:
    """Open the store and wait until every rank has; who waits in vain says for whom."""
    deadline_s = time.monotonic() + timeout.total_seconds()
    where = f"the group of {world_size} at {host}:{port}"
    if rank == 0 and listener is None:
        listener = _listen(host, port)
    try:
        store = _open_store(host, port, timeout, listener)
    except RuntimeError as error:
        raise GroupTimeoutError(
            f"{where}: rank 0 does not answer within {timeout.total_seconds():g} s; "
            "start it, or check host and port"
        ) from error
    try:
        _wait_for_all(store, rank, world_size, deadline_s, where)
    except RuntimeError as error:
        if isinstance(error, GroupError):
            raise
        raise PeerLostError(f"{where}: rank 0, which serves the store, left before all were there") from error
    store.set_timeout(timeout)
    return store


def _listen(host: str, port: int) -> socket.socket:
    # TCPStore itself listens on every interface, whatever host it is given.
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen()
    except OSError as error:
        listener.close()
        raise GroupError(
            f"cannot listen on {host}:{port}: {error.strerror}; give a free port of this host"
        ) from error
    return listener


def _open_store(host: str, port: int, timeout: timedelta, listener: socket.socket | None) -> TCPStore:
    from torch._C._distributed_c10d import TCPStore

    options: dict[str, Any] = {"timeout": timeout, "wait_for_workers": False}
    if listener is None:
        return TCPStore(host, port, is_master=False, **options)
    with listener:
        port = listener.getsockname()[1]
        # The store closes its descriptor also when its constructor fails: give it one of its own each time.
        duplicate = listener.dup().detach
        try:
            return TCPStore(
                host, port, is_master=True, master_listen_fd=duplicate(), use_libuv=True, **options
            )
        except RuntimeError:  # pytorch#150215: once only the other server took a descriptor
            return TCPStore(
                host, port, is_master=True, master_listen_fd=duplicate(), use_libuv=False, **options
            )


def _wait_for_all(store: Store, rank: int, world_size: int, deadline_s: float, where: str) -> None:
    """Announce this rank and wait for the others, or for somebody's verdict on who is missing.

    The first whose time is over marks the ranks that are missing. A mark ends the others' waits as well, so
    all fail together and with the same names; a rank that comes later finds itself marked.
    """
    keys = [f"pgplan/{r}" for r in range(world_size)]
    if store.compare_set(keys[rank], "", _JOINED.decode()) == _MISSING:
        raise GroupTimeoutError(
            f"{where} was given up because this rank, {rank}, came too late; start all again"
        )
    try:
        store.wait(keys, timedelta(seconds=max(0.001, deadline_s - time.monotonic())))
    except RuntimeError:
        for key in keys:
            store.compare_set(key, "", _MISSING.decode())
    missing = [r for r, key in enumerate(keys) if store.get(key) == _MISSING]
    if not missing:
        return
    store.add("pgplan/told", 1)
    if rank == 0:
        give_up_s = time.monotonic() + _VERDICT_S
        while store.add("pgplan/told", 0) < world_size - len(missing) and time.monotonic() < give_up_s:
            time.sleep(0.01)
    names = ", ".join(map(str, missing))
    raise GroupTimeoutError(f"{where} is not complete: rank {names} did not come in time; look at its log")


def _own_address(host: str | None) -> str | None:
    """Return this machine's address on the way to a host; ``None`` if the host is not known."""
    if host is None or host in LOOPBACK:
        return host
    family, kind, protocol, _, address = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.connect(address)  # a datagram socket: nothing is sent
        return str(probe.getsockname()[0])


def _host_of(store: Any) -> str | None:
    from torch._C._distributed_c10d import FileStore, HashStore, TCPStore

    while hasattr(store, "underlying_store"):
        store = store.underlying_store
    if isinstance(store, TCPStore):
        return str(store.host)
    return LOOPBACK[0] if isinstance(store, (FileStore, HashStore)) else None
