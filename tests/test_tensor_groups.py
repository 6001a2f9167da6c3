from __future__ import annotations

import socket
from datetime import timedelta
from typing import Any

import pytest

from pgplan.errors import BackendError, GroupError, GroupTimeoutError
from pgplan.launcher import launch

torch = pytest.importorskip("torch")
RANKS = 3
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "IPv4": ("by_host_and_port", {"host": "127.0.0.1"}),
    "IPv6": ("by_host_and_port", {"host": "::1"}),
    "named": ("by_host_and_port", {"host": "localhost", "name": "mine"}),
    "missing": ("missing_at_the_meeting", {"missing": 2}),
}


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [sock.getsockname()[1] for sock in sockets]
    for sock in sockets:
        sock.close()
    return ports


@pytest.fixture(scope="module")
def met() -> dict[str, list[Any]]:
    """What each rank saw, by case."""
    ports = free_ports(len(CASES))
    cases = [
        (entry, {**args, "port": port}) for (entry, args), port in zip(CASES.values(), ports, strict=True)
    ]
    results = launch("tensor_entries:several", ranks=RANKS, args={"cases": cases}, timeout=120).results
    return {case: [seen[index] for seen in results] for index, case in enumerate(CASES)}


@pytest.mark.parametrize("case", ["IPv4", "IPv6", "named"])
def test_the_bare_group_works_with_torch_s_own_calls(met: dict[str, list[Any]], case: str) -> None:
    for seen in met[case]:
        assert seen["sum"] == [3.0, 3.0]  # 0 + 1 + 2
        assert seen["broadcast"] == [2.0, 2.0]  # from the last rank
        assert not seen["registered"]


@pytest.mark.parametrize(("case", "addresses"), [("IPv4", {"127.0.0.1"}), ("IPv6", {"::1"})])
def test_nobody_listens_but_where_asked(met: dict[str, list[Any]], case: str, addresses: set[str]) -> None:
    # Rank 0 serves the store; every rank's gloo takes connections from its peers.
    assert [len(seen["listening"]) for seen in met[case]] == [2, 1, 1]
    assert {address for seen in met[case] for address in seen["listening"]} == addresses


def test_every_rank_that_came_names_the_one_that_did_not(met: dict[str, list[Any]]) -> None:
    *came, _ = met["missing"]
    for told in came:
        assert told.startswith("GroupTimeoutError: the group of 3 at 127.0.0.1:")
        assert "is not complete: rank 2 did not come in time" in told


def init(host: str, port: int, backend: str, *, rank: int = 0, world_size: int = 1, **options: Any) -> Any:
    from pgplan.distributed import stateless_init_torch_distributed_process_group

    options.setdefault("timeout", timedelta(seconds=2))
    return stateless_init_torch_distributed_process_group(host, port, rank, world_size, backend, **options)


def test_a_port_that_is_taken_is_told_with_its_number() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(GroupError, match=f"cannot listen on 127.0.0.1:{port}: Address already in use"):
            init("127.0.0.1", port, "gloo")


def test_a_rank_0_that_never_comes_is_named() -> None:
    (port,) = free_ports(1)
    with pytest.raises(GroupTimeoutError, match=f"group of 2 at 127.0.0.1:{port}: rank 0 does not answer"):
        init("127.0.0.1", port, "gloo", rank=1, world_size=2, timeout=timedelta(seconds=1))


def test_a_listener_that_is_given_is_used_and_owned() -> None:
    from pgplan.distributed import stateless_destroy_torch_distributed_process_group

    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    group, store = init("127.0.0.1", port, "gloo", listen_socket=listener, return_store=True)
    assert listener.fileno() == -1
    store.set("key", "value")
    assert store.get("key") == b"value"
    stateless_destroy_torch_distributed_process_group(group)


def test_a_backend_that_is_not_there_is_named() -> None:
    (port,) = free_ports(1)
    with pytest.raises(BackendError, match="backend is 'mpi'; give 'gloo' or 'nccl'"):
        init("127.0.0.1", port, "mpi")
    if not torch.cuda.is_available():
        with pytest.raises(BackendError, match=r"built without NCCL|torch sees none"):
            init("127.0.0.1", port, "nccl", device="cuda:0")
