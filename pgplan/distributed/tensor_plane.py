"""Move tensors between the ranks of a metadata group: no listener of our own, and errors that say who died.

A ``TensorPlane`` stands on a ``StatelessProcessGroup`` of one host. It watches the sockets to its peers, and
when one of them closes, it ends every wait of every tensor group on this rank with ``PeerLostError``.
"""

from __future__ import annotations

import contextlib
import functools
import os
import secrets
import select
import threading
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING

from pgplan.distributed.tensor_backends import LOOPBACK, break_group, build_group, shut_down
from pgplan.distributed.tensor_collectives import TensorGroup
from pgplan.errors import GroupError, GroupTimeoutError, PeerLostError

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store
    from torch.distributed import ProcessGroup

    from pgplan.distributed.group import StatelessProcessGroup

# A peer's death breaks a connection of gloo's and its socket to us at the same moment; our notice of the
# second may come a little later, and much later only if the first had another cause.
_NOTICE_S = 0.5


class TensorPlane:
    """Make tensor groups among the ranks of a metadata group.

    Every rank of the metadata group makes the plane, and later closes it; a rank that goes before the
    others have closed theirs counts as lost.

    Args:
        group: The metadata plane; all its ranks are on this host.
        backend: ``"gloo"`` or ``"nccl"``.
        device: Where this rank's tensors live: ``"cpu"`` for gloo, ``"cuda:<index>"`` for NCCL.
        timeout_s: How long one operation may take.

    Attributes:
        metadata: The metadata plane.
        lost: The ranks that have gone.

    Raises:
        GroupError: If the ranks are not on one host.
    """

    def __init__(
        self, group: StatelessProcessGroup, *, backend: str, device: str, timeout_s: float = 600.0
    ) -> None:
        import torch

        self.rank, self.world_size = group.rank, group.world_size
        self.backend, self.device = backend, torch.device(device)
        self.timeout = timedelta(seconds=timeout_s)
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        self.metadata = group
        self._groups: list[TensorGroup] = []
        self.lost: set[int] = set()
        self._news = threading.Condition()
        self._store = _shared_store(group)
        self._watch = _Watch(group.descriptors(), self._lose)

    def group(self, ranks: Sequence[int] | None = None) -> TensorGroup:
        """Make a group of some ranks (all, if not given); each of them must call this, in the same order.

        With NCCL the communicator is made here, not at the first operation.
        """
        from torch._C._distributed_c10d import PrefixStore

        members = tuple(ranks) if ranks is not None else tuple(range(self.world_size))
        if self.rank not in members:
            raise GroupError(
                f"rank {self.rank} is not one of the group's ranks {members}; only those make it"
            )
        made_before = sum(group.ranks == members for group in self._groups)
        pg = self._make(members, PrefixStore(f"{members}/{made_before}", self._store))
        group = TensorGroup(pg, members, self)
        self._groups.append(group)
        return group

    def _make(self, members: tuple[int, ...], store: Store) -> ProcessGroup:
        """Make torch's group in a thread that is left behind if a rank goes: torch would wait for it."""
        import torch

        made: list[ProcessGroup | Exception] = []

        def make() -> None:
            try:
                if self.device.type == "cuda":
                    torch.cuda.set_device(self.device)
                made.append(
                    build_group(
                        self.backend,
                        store,
                        rank=members.index(self.rank),
                        size=len(members),
                        timeout=self.timeout,
                        device=self.device,
                        hostname=LOOPBACK[0],
                    )
                )
            except Exception as error:
                made.append(error)
            with self._news:
                self._news.notify_all()

        threading.Thread(target=make, name="pgplan-group", daemon=True).start()
        with self._news:
            self._news.wait_for(lambda: made or self.lost)
        if not made:
            self.check("making a group")
        if isinstance(made[0], RuntimeError) and not isinstance(made[0], GroupError):
            raise self.explain(made[0], "making a group", members) from made[0]
        if isinstance(made[0], Exception):
            raise made[0]
        return made[0]

    def check(self, doing: str) -> None:
        """Raise PeerLostError if a rank is known to be lost."""
        if self.lost:
            raise PeerLostError(f"{self._who()} lost while rank {self.rank} was {doing}; look at its log")

    def explain(self, error: RuntimeError, doing: str, ranks: Sequence[int]) -> GroupError:
        """Turn torch's complaint about an operation into an error that says who is to blame."""
        with self._news:
            self._news.wait_for(lambda: self.lost, _NOTICE_S)
        if self.lost:
            return PeerLostError(f"{self._who()} lost while rank {self.rank} was {doing}; look at its log")
        others = ", ".join(str(rank) for rank in ranks if rank != self.rank)
        if "time" in str(error).lower():
            return GroupTimeoutError(
                f"rank {self.rank} was {doing} for {self.timeout.total_seconds():g} s in vain; "
                f"it waits for rank {others}, which must do its part"
            )
        return GroupError(f"rank {self.rank} was {doing} with rank {others}: {error}")

    def synchronize(self) -> None:
        """Wait for everything that was given to the device; raises PeerLostError if a rank went meanwhile."""
        import torch

        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.check("waiting for its GPU")

    def close(self) -> None:
        """End all groups, together with the other ranks."""
        try:
            if not self.lost:
                self.metadata.barrier(self.timeout.total_seconds())
        finally:
            self._watch.close()
            for group in self._groups:
                shut_down(group.pg)
            self._groups.clear()

    def __enter__(self) -> TensorPlane:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            # Waiting for the others would hide the error; they learn of it when this rank goes.
            self._watch.close()

    def _lose(self, rank: int) -> None:
        with self._news:
            self.lost.add(rank)
            self._news.notify_all()
        for group in list(self._groups):
            with contextlib.suppress(RuntimeError):
                break_group(group.pg, self.device, rank=group.rank)

    def _who(self) -> str:
        lost = sorted(self.lost)
        return f"rank {lost[0]} was" if len(lost) == 1 else f"ranks {', '.join(map(str, lost))} were"


def _shared_store(group: StatelessProcessGroup) -> Store:
    """Make a store that all ranks of this host share, with neither a port nor a file to leave behind.

    It is torch's FileStore on a file in rank 0's memory, which the others reach through /proc: only the
    same user can, and it is gone when rank 0 is.
    """
    from torch._C._distributed_c10d import FileStore, PrefixStore

    mark, path = secrets.token_hex(16), _memory_file() if group.rank == 0 else ""
    path, mark = group.broadcast_obj([path, mark], src=0)
    store: Store | None = None
    with contextlib.suppress(RuntimeError, OSError):
        if group.rank == 0 or os.path.realpath(path).startswith("/memfd:pgplan-store"):
            file = FileStore(path, -1)
            file.set_timeout(timedelta(seconds=5))
            store = PrefixStore(mark, file)
            if group.rank == 0:
                store.set("here", mark)
    group.barrier()
    seen = False
    with contextlib.suppress(RuntimeError):
        seen = store is not None and store.get("here") == mark.encode()
    strangers = [rank for rank, sees in enumerate(group.all_gather_obj(seen)) if not sees]
    if strangers or store is None:
        names = ", ".join(map(str, strangers))
        raise GroupError(
            f"rank {names} does not share a host with rank 0; use "
            "stateless_init_torch_distributed_process_group(host, port, ...) between hosts"
        )
    return store


@functools.cache
def _memory_file() -> str:
    """Return the path to a file in this process's memory, the same one for as long as the process lives.

    A FileStore goes to its file once more when it is freed, whenever that is. Were the file closed with its
    plane, the next plane's would have the same path, and the old store would write into it and hang.
    """
    return f"/proc/{os.getpid()}/fd/{os.memfd_create('pgplan-store')}"


class _Watch:
    """Notice peers that go, in a thread that only looks at their sockets and never reads from them.

    Args:
        descriptors: The socket of each peer, by rank.
        on_gone: Called with the rank of each peer that has gone.
    """

    def __init__(self, descriptors: Mapping[int, int], on_gone: Callable[[int], None]) -> None:
        self._on_gone = on_gone
        # Duplicates, because the group may close its own while the thread looks.
        self._ranks = {os.dup(descriptor): rank for rank, descriptor in descriptors.items()}
        self._stop_reader, self._stop = os.pipe()
        self._poll = select.poll()
        self._poll.register(self._stop_reader, select.POLLIN)
        for descriptor in self._ranks:
            self._poll.register(descriptor, select.POLLRDHUP)
        self._thread = threading.Thread(target=self._run, name="pgplan-watch", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while True:
            for descriptor, _ in self._poll.poll():
                if descriptor == self._stop_reader:
                    return
                self._poll.unregister(descriptor)
                self._on_gone(self._ranks[descriptor])

    def close(self) -> None:
        """Stop looking; safe to call twice."""
        if self._thread.is_alive():
            os.write(self._stop, b".")
            self._thread.join()
            for descriptor in (self._stop, self._stop_reader, *self._ranks):
                os.close(descriptor)
