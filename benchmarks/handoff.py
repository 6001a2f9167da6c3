"""Measure the hand-off between pipeline stages beside raw torch calls, interleaved in the same processes.

    python benchmarks/handoff.py                 # every layout that the machine's GPUs allow
    python benchmarks/handoff.py --quick         # fewer sizes and repetitions
    python benchmarks/handoff.py --backend gloo  # on the CPU, to try the script itself

Layouts: pp 2 x tp 1 (2 GPUs), pp 2 x tp 2 and pp 4 x tp 1 (4 GPUs). A hop is two bf16 tensors of width 2048;
what is timed, on the first stage's host clock, is a round trip: the hop by one of the methods, then an
empty answer that is the same for all of them. Repetitions of the methods take turns, each time in another
order; differences and ratios are taken within one turn, and their median is given with a 95 % interval.

    raw          one ProcessGroup.send/recv of the whole hop; with tp 2 also of slices + one raw all-gather
    pgplan       send_stage/recv_stage, written into its own buffers (with tp 2 whole and sliced)
    coalesced    send_stage/recv_stage of tensors that lie anywhere, in one coalesced call
    two tensors  shapes as an object over the metadata plane, memory allocated, then two sends

``streamed`` is the time per hop when many follow each other without an answer. Every size and method is also
sent once with random bytes that the receiver makes again from the same seed, and compared bit by bit.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

from faults import machine, save  # noqa: E402

from pgplan.launcher import Worker, launch  # noqa: E402
from pgplan.launcher.backends import choose_backend, visible_gpus  # noqa: E402

WIDTH, TENSORS, ITEM_BYTES = 2048, 2, 2
TOKEN_BYTES = WIDTH * TENSORS * ITEM_BYTES  # 8 KiB
KIB, MIB = 1 << 10, 1 << 20
SIZES = [8 * KIB, 32 * KIB, 64 * KIB, 128 * KIB, 256 * KIB, MIB, 4 * MIB, 16 * MIB, 64 * MIB, 256 * MIB]
QUICK_SIZES = [8 * KIB, 128 * KIB, MIB, 16 * MIB]
SMALL_BYTES, LARGE_BYTES = 256 * KIB, 16 * MIB
EXTRA_US, SHARE = (
    5.0,
    0.97,
)  # what a small hop may take more, and of raw bandwidth what a large one must reach
Method = Callable[[int], Any]


# In the ranks ----------------------------------------------------------------------------------------------


class Bench:
    """Hold what one rank needs to make hops by every method, between the first stage and the last."""

    def __init__(self, worker: Worker, *, pp_size: int, tp_size: int, max_bytes: int):
        import torch

        from pgplan.distributed.handoff import Handoff
        from pgplan.distributed.tensor_plane import TensorPlane

        self.metadata = worker.group
        self.plane = plane = TensorPlane(worker.group, backend=str(worker.backend), device=worker.device)
        self.max_tokens = max_bytes // TOKEN_BYTES
        options: dict[str, Any] = {
            "pp_size": pp_size,
            "tp_size": tp_size,
            "max_tokens": self.max_tokens,
            "hidden_size": WIDTH,
            "dtype": torch.bfloat16,
        }
        self.measured = Handoff(plane, **options).sliced_from_bytes if tp_size > 1 else None
        self.hops = {
            "pgplan": Handoff(plane, sliced=False, **options),
            "coalesced": Handoff(plane, sliced=False, joined=False, **options),
        }
        if tp_size > 1:
            self.hops["pgplan sliced"] = Handoff(plane, sliced=True, **options)
        hops = self.hops["pgplan"]
        self.stage, self.tp_rank, self.tp_size, self.pp_size = hops.stage, hops.tp_rank, tp_size, pp_size
        rank = plane.rank
        self.before = plane.group([rank - tp_size, rank]) if self.stage > 0 else None
        self.beside = plane.group([self.stage * tp_size + r for r in range(tp_size)]) if tp_size > 1 else None
        self.after = plane.group([rank, rank + tp_size]) if self.stage < pp_size - 1 else None
        ends = [self.tp_rank, (pp_size - 1) * tp_size + self.tp_rank]
        self.answers = plane.group(ends) if rank in ends else None
        self.raw = torch.zeros(max_bytes, dtype=torch.uint8, device=plane.device)
        # The raw methods take turns between two buffers of their own, as a hand-off does: with a single one
        # that other methods read as well, hops of up to 64 MiB would come from the GPU's cache.
        self.raw_turns = itertools.cycle([self.raw.clone(), self.raw.clone()])
        self.answer_byte = torch.zeros(4, dtype=torch.uint8, device=plane.device)
        self.other = self.raw.clone()

    def methods(self) -> dict[str, Method]:
        """Return the methods by name."""
        methods: dict[str, Method] = {"raw": self.hop_raw, "pgplan": self.hop_pgplan}
        methods |= {"coalesced": self.hop_coalesced, "two tensors": self.hop_two_tensors}
        if self.tp_size > 1:
            methods |= {"raw sliced": self.hop_raw_sliced, "pgplan sliced": self.hop_pgplan_sliced}
        return methods

    # Each method passes what stage 0 holds in self.raw down to the last stage, and returns it there as bytes.

    def hop_raw(self, size: int) -> Any:
        """Send the hop as one message with torch's own calls."""
        data = next(self.raw_turns)[:size]
        if self.before:
            self.before.pg.recv([data], 0, 0).wait()
        if self.after:
            self.after.pg.send([data], 1, 0).wait()
        return data

    def hop_raw_sliced(self, size: int) -> Any:
        """Send each rank's slice and gather, with torch's own calls."""
        data = next(self.raw_turns)[:size]
        part = data.view(self.tp_size, -1)[self.tp_rank]
        if self.before and self.beside:
            self.before.pg.recv([part], 0, 0).wait()
            self.beside.pg._allgather_base(data, part).wait()
        if self.after:
            self.after.pg.send([part], 1, 0).wait()
        return data

    def hop_pgplan(self, size: int, name: str = "pgplan") -> Any:
        """Send the hop from pgplan's own buffers."""
        from pgplan.distributed.handoff import recv_stage, send_stage

        hops, tokens = self.hops[name], size // TOKEN_BYTES
        arrived = recv_stage(hops, tokens).wait() if self.before else None
        if self.after:
            # A stage would compute into these; what they hold does not matter to the clock.
            send_stage(hops, *hops.outgoing(tokens))
        return arrived

    def hop_pgplan_sliced(self, size: int) -> Any:
        """Send each rank's slice from pgplan's own buffers."""
        return self.hop_pgplan(size, "pgplan sliced")

    def hop_coalesced(self, size: int) -> Any:
        """Send tensors that lie anywhere in one coalesced call."""
        from pgplan.distributed.handoff import recv_stage, send_stage

        hops, tokens = self.hops["coalesced"], size // TOKEN_BYTES
        tensors = recv_stage(hops, tokens).wait() if self.before else self.pieces(self.raw, size)
        if self.after:
            send_stage(hops, *tensors)
        return tensors

    def hop_two_tensors(self, size: int) -> Any:
        """Send shapes as an object and each tensor for itself, as generic code does."""
        import torch

        if self.before:
            shapes = self.metadata.recv_obj(self.plane.rank - self.tp_size)
            tensors = [torch.empty(s, dtype=getattr(torch, d), device=self.plane.device) for s, d in shapes]
            for tensor in tensors:
                self.before.pg.recv([tensor], 0, 0).wait()
        else:
            tensors = list(self.pieces(self.raw, size))
        if self.after:
            shapes = [(tuple(t.shape), str(t.dtype).removeprefix("torch.")) for t in tensors]
            self.metadata.send_obj(shapes, self.plane.rank + self.tp_size)
            for tensor in tensors:
                self.after.pg.send([tensor], 1, 0).wait()
        return tensors

    def pieces(self, data: Any, size: int) -> tuple[Any, ...]:
        """View bytes as the tensors of a hop."""
        import torch

        return data[:size].view(torch.bfloat16).view(TENSORS, -1, WIDTH).unbind()

    # Timing ------------------------------------------------------------------------------------------------

    def round_trip(self, method: Method, size: int) -> float:
        """Time one hop and its answer, in seconds; only the first stage's time means something."""
        self.plane.synchronize()
        began = time.perf_counter()
        method(size)
        if self.answers:
            if self.answers.rank == 0:
                self.answers.pg.recv([self.answer_byte], 1, 0).wait()
            else:
                self.answers.pg.send([self.answer_byte], 0, 0).wait()
        self.plane.synchronize()
        return time.perf_counter() - began

    def streamed(self, method: Method, size: int, count: int) -> float:
        """Time many hops in a row, per hop, in seconds, on this rank."""
        self.metadata.barrier()
        began = time.perf_counter()
        for _ in range(count):
            method(size)
        self.plane.synchronize()
        return (time.perf_counter() - began) / count

    def bit_equal(self, name: str, method: Method, size: int) -> bool:
        """Send random bytes and compare them where they arrive."""
        import torch

        # On the CPU, where every process makes the same numbers from a seed.
        seed = torch.Generator().manual_seed(size)
        expected = torch.randint(0, 256, (size,), dtype=torch.uint8, generator=seed).to(self.plane.device)
        self.raw[:size].copy_(expected if self.stage == 0 else expected.flip(0))
        for _ in range(2):
            next(self.raw_turns)[:size].copy_(self.raw[:size])
        if self.stage == 0 and name.startswith("pgplan"):
            from pgplan.distributed.handoff import send_stage

            hops = self.hops[name]
            outputs = hops.outgoing(size // TOKEN_BYTES)
            for output, value in zip(outputs, self.pieces(expected, size), strict=True):
                output.copy_(value)
            send_stage(hops, *outputs)
            arrived = None
        elif 0 < self.stage < self.pp_size - 1 and name.startswith("pgplan"):
            from pgplan.distributed.handoff import recv_stage, send_stage

            hops = self.hops[name]
            came, outputs = recv_stage(hops, size // TOKEN_BYTES).wait(), hops.outgoing(size // TOKEN_BYTES)
            for output, value in zip(outputs, came, strict=True):
                output.copy_(value)
            send_stage(hops, *outputs)
            arrived = None
        else:
            arrived = method(size)
        self.plane.synchronize()
        if self.stage < self.pp_size - 1 or arrived is None:
            return True
        pieces = [arrived] if isinstance(arrived, torch.Tensor) else arrived
        got = torch.cat([piece.reshape(-1).view(torch.uint8) for piece in pieces])
        return torch.equal(got, expected)


def measure(
    worker: Worker, *, pp_size: int, tp_size: int, sizes: list[int], repetitions: list[int], gloo: bool
) -> dict[str, Any]:
    """Measure one layout: the entry of every rank."""
    bench = Bench(worker, pp_size=pp_size, tp_size=tp_size, max_bytes=max(sizes))
    methods, found = bench.methods(), {}
    for index, (size, count) in enumerate(zip(sizes, repetitions, strict=True)):
        worker.progress(index, len(sizes))
        equal = {name: bench.bit_equal(name, method, size) for name, method in methods.items()}
        for method in methods.values():
            for _ in range(5):
                bench.round_trip(method, size)
        order, turns = random.Random(size), {name: [] for name in methods}
        for _ in range(count):
            for name in order.sample(list(methods), len(methods)):
                turns[name].append(bench.round_trip(methods[name], size))
        answer = [bench.round_trip(lambda _: None, size) for _ in range(count)]
        sent = {}
        for name, hops in bench.hops.items():
            before = hops.sent_bytes
            methods[name](size)
            bench.plane.synchronize()
            sent[name] = hops.sent_bytes - before
        stream_count = max(5, min(50, count // 10))
        streamed = {
            name: statistics.median(bench.streamed(method, size, stream_count) for _ in range(5))
            for name, method in methods.items()
        }
        found[str(size)] = {
            "turns": turns if bench.stage == 0 else {},
            "answer": answer if bench.stage == 0 else [],
            "equal": equal,
            "sent": sent if bench.stage == 0 else {},
            "streamed": streamed,
        }
    result = {"sizes": found, "sliced_from_bytes": bench.measured}
    if tp_size == 1 and pp_size == 2:
        result["default_group"] = beside_default_group(bench, worker, sizes, repetitions)
        if not gloo:
            result["overlap"] = overlap(bench, max(s for s in sizes if s <= 64 * MIB))
    worker.progress(len(sizes), len(sizes))
    bench.plane.close()
    return result


def beside_default_group(
    bench: Bench, worker: Worker, sizes: list[int], repetitions: list[int]
) -> dict[str, Any]:
    """Hold the stateless group against torch.distributed's default group: making it, and round trips."""
    import torch
    import torch.distributed as dist
    from torch._C._distributed_c10d import PrefixStore

    plane, peer = bench.plane, 1 - worker.rank
    began = time.perf_counter()
    group = plane.group()
    warm = torch.zeros(4, device=plane.device)
    group.all_reduce(warm)
    plane.synchronize()
    stateless_s = time.perf_counter() - began
    began = time.perf_counter()
    options = {"device_id": plane.device} if plane.device.type == "cuda" else {}
    store = PrefixStore("default", plane._store)
    dist.init_process_group(worker.backend, store=store, rank=worker.rank, world_size=2, **options)
    dist.all_reduce(warm)
    plane.synchronize()
    made = {"stateless_s": stateless_s, "default_s": time.perf_counter() - began}

    def stateless_hop(size: int) -> None:
        if worker.rank == 0:
            group.pg.send([bench.raw[:size]], peer, 0).wait()
        else:
            group.pg.recv([bench.raw[:size]], peer, 0).wait()

    def default_hop(size: int) -> None:
        if worker.rank == 0:
            dist.send(bench.raw[:size], peer)
        else:
            dist.recv(bench.raw[:size], peer)

    found = {}
    methods = {"stateless": stateless_hop, "default": default_hop}
    for size, count in zip(sizes, repetitions, strict=True):
        turns: dict[str, list[float]] = {name: [] for name in methods}
        for turn in range(-5, count):
            for name in sorted(methods, reverse=turn % 2 == 0):
                taken = bench.round_trip(methods[name], size)
                if turn >= 0:
                    turns[name].append(taken)
        found[str(size)] = turns if worker.rank == 0 else {}
    dist.destroy_process_group()
    return {"made": made, "turns": found}


def overlap(bench: Bench, size: int) -> dict[str, float]:
    """Time matrix products and hops, each alone and both together, in seconds."""
    import torch

    a = torch.randn(4096, 4096, device=bench.plane.device, dtype=torch.bfloat16)

    def compute() -> None:
        for _ in range(10):
            a @ a

    def hops() -> None:
        for _ in range(10):
            bench.hop_pgplan(size)

    def both() -> None:
        if bench.before:
            from pgplan.distributed.handoff import recv_stage

            for _ in range(10):
                arrival = recv_stage(bench.hops["pgplan"], size // TOKEN_BYTES)
                a @ a
                arrival.wait()
        else:
            for _ in range(10):
                bench.hop_pgplan(size)
                a @ a

    times = {}
    for name, act in (("compute", compute), ("hops", hops), ("both", both)):
        taken = []
        for _ in range(10):
            bench.plane.synchronize()
            bench.metadata.barrier()
            began = time.perf_counter()
            act()
            bench.plane.synchronize()
            taken.append(time.perf_counter() - began)
        times[name] = statistics.median(taken)
    return {"size_bytes": size, **times}


# In the parent ---------------------------------------------------------------------------------------------


def interval(values: list[float]) -> tuple[float, float, float]:
    """Return the median and its 95 % interval, from the order statistics."""
    ordered, n = sorted(values), len(values)
    half = 0.98 * math.sqrt(n)
    low, high = max(0, math.floor(n / 2 - half)), min(n - 1, math.ceil(n / 2 + half))
    return statistics.median(ordered), ordered[low], ordered[high]


def summarise(ranks: tuple[dict[str, Any], ...], *, tp_size: int) -> dict[str, Any]:
    """Bring what the ranks saw into one table; of the tp ranks that send, the slowest counts in each turn."""
    table = {}
    senders = ranks[:tp_size]
    for size_text, first in ranks[0]["sizes"].items():
        size = int(size_text)
        turns = {
            name: [
                max(times)
                for times in zip(*(r["sizes"][size_text]["turns"][name] for r in senders), strict=True)
            ]
            for name in first["turns"]
        }
        answer = statistics.median(first["answer"])
        rows = {}
        for name, times in turns.items():
            base = turns["raw sliced" if name == "pgplan sliced" else "raw"]
            difference = interval([t - b for t, b in zip(times, base, strict=True)])
            hop_s = max(1e-9, statistics.median(times) - answer)
            base_hop_s = max(1e-9, statistics.median(base) - answer)
            streamed_s = max(r["sizes"][size_text]["streamed"][name] for r in ranks)
            base_name = "raw sliced" if name == "pgplan sliced" else "raw"
            base_streamed_s = max(r["sizes"][size_text]["streamed"][base_name] for r in ranks)
            rows[name] = {
                "round_trip_us": statistics.median(times) * 1e6,
                "over_raw_us": [value * 1e6 for value in difference],
                "hop_us": hop_s * 1e6,
                "bandwidth_of_raw": base_hop_s / hop_s,
                "streamed_us": streamed_s * 1e6,
                "streamed_GB_per_s": size / streamed_s / 1e9,
                "streamed_of_raw": base_streamed_s / streamed_s,
                "bit_equal": all(r["sizes"][size_text]["equal"][name] for r in ranks),
                "sent_bytes_per_rank": first["sent"].get(name),
            }
        table[size_text] = {"repetitions": len(first["answer"]), "answer_us": answer * 1e6, "methods": rows}
    summary: dict[str, Any] = {"sizes": table, "sliced_from_bytes": ranks[0]["sliced_from_bytes"]}
    for extra in ("default_group", "overlap"):
        if extra in ranks[0]:
            summary[extra] = ranks[0][extra]
    if "default_group" in summary:
        made, by_size = summary["default_group"]["made"], {}
        for size_text, turns in summary["default_group"]["turns"].items():
            difference = interval([s - d for s, d in zip(turns["stateless"], turns["default"], strict=True)])
            by_size[size_text] = {
                "stateless_us": statistics.median(turns["stateless"]) * 1e6,
                "default_us": statistics.median(turns["default"]) * 1e6,
                "stateless_over_default_us": [value * 1e6 for value in difference],
            }
        summary["default_group"] = {"made": made, "round_trips": by_size}
    return summary


def verdicts(
    layout: str, summary: dict[str, Any], *, pp_size: int, judged: bool
) -> Iterator[tuple[bool, str]]:
    """Hold a layout against what the hand-off has to show; a chain of stages makes ``pp_size - 1`` hops."""
    for size_text, entry in summary["sizes"].items():
        size = int(size_text)
        for name, row in entry["methods"].items():
            if not row["bit_equal"]:
                yield False, f"{layout}, {human(size)}, {name}: the bytes differ"
        for name in ("pgplan", "pgplan sliced"):
            row = entry["methods"].get(name)
            if row is None or not judged:
                continue
            if size < SMALL_BYTES:
                median, low, high = (value / (pp_size - 1) for value in row["over_raw_us"])
                said = f"{median:+.1f} us over raw per hop [{low:+.1f}, {high:+.1f}]"
                yield median <= EXTRA_US, f"{layout}, {human(size)}, {name}: {said}"
            elif size >= LARGE_BYTES:
                share = row["bandwidth_of_raw"]
                yield share >= SHARE, f"{layout}, {human(size)}, {name}: {share:.1%} of raw bandwidth"
        sliced = entry["methods"].get("pgplan sliced")
        if sliced:
            half = sliced["sent_bytes_per_rank"] * 2 == entry["methods"]["pgplan"]["sent_bytes_per_rank"]
            yield (
                half,
                f"{layout}, {human(size)}: sliced sends {sliced['sent_bytes_per_rank']} bytes per rank",
            )


def human(size: int) -> str:
    return f"{size // MIB} MiB" if size >= MIB else f"{size // KIB} KiB"


def show(layout: str, summary: dict[str, Any]) -> None:
    print(f"\n{layout}")
    print(
        f"{'size':>8} {'method':<14} {'round trip':>11} {'over raw, 95 %':>26} {'of raw':>7} {'streamed':>18}"
    )
    for size_text, entry in summary["sizes"].items():
        for name, row in entry["methods"].items():
            median, low, high = row["over_raw_us"]
            print(
                f"{human(int(size_text)):>8} {name:<14} {row['round_trip_us']:8.1f} us "
                f"{median:+8.1f} [{low:+6.1f}, {high:+6.1f}] {row['bandwidth_of_raw']:7.1%} "
                f"{row['streamed_us']:8.1f} us {row['streamed_GB_per_s']:6.1f} GB/s"
                + ("" if row["bit_equal"] else "  BYTES DIFFER")
            )
    if summary["sliced_from_bytes"] is not None or "tp 2" in layout:
        print(f"pgplan slices from {summary['sliced_from_bytes']} bytes on, by what it measured")
    if "overlap" in summary:
        o = summary["overlap"]
        parts = ", ".join(f"{name} {o[name] * 1e6:.0f} us" for name in ("compute", "hops", "both"))
        print(f"overlap at {human(o['size_bytes'])}: {parts}")
    if "default_group" in summary:
        made = summary["default_group"]["made"]
        print(f"made: stateless group {made['stateless_s']:.3f} s, default group {made['default_s']:.3f} s")
        for size_text, row in summary["default_group"]["round_trips"].items():
            median, low, high = row["stateless_over_default_us"]
            print(
                f"{human(int(size_text)):>8} stateless {row['stateless_us']:8.1f} us, "
                f"over the default group {median:+6.1f} [{low:+6.1f}, {high:+6.1f}]"
            )


def repetitions_for(size: int, *, quick: bool) -> int:
    count = 1000 if size <= SMALL_BYTES else 300 if size <= 4 * MIB else 100
    return max(10, count // 10) if quick else count


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backend", choices=["auto", "nccl", "gloo"], default="auto")
    parser.add_argument("--ranks", type=int, help="use at most so many GPUs, or processes with gloo")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--fresh", action="store_true", help="forget what was measured before")
    parser.add_argument(
        "-o", "--output", type=Path, default=Path(__file__).with_name("results") / "handoff.json"
    )
    options = parser.parse_args()
    choice = choose_backend(options.backend, ranks=2)
    print(f"backend: {choice.why}")
    gloo = choice.name == "gloo"
    ranks = options.ranks or (4 if gloo else visible_gpus())
    sizes = [s for s in (QUICK_SIZES if options.quick else SIZES) if not gloo or s <= 16 * MIB]
    counts = [repetitions_for(size, quick=options.quick or gloo) for size in sizes]
    kept = json.loads(options.output.read_text()) if options.output.exists() and not options.fresh else {}
    content = {"machine": machine(), "backend": choice.name, "layouts": kept.get("layouts", {})}
    for pp_size, tp_size in ((2, 1), (2, 2), (4, 1)):
        layout = f"pp {pp_size} x tp {tp_size}"
        if pp_size * tp_size > ranks:
            continue
        if layout not in content["layouts"]:
            args = {
                "pp_size": pp_size,
                "tp_size": tp_size,
                "sizes": sizes,
                "repetitions": counts,
                "gloo": gloo,
            }
            result = launch(
                "handoff:measure", ranks=pp_size * tp_size, backend=choice.name, timeout=280, args=args
            )  # fmt: skip
            content["layouts"][layout] = summarise(result.results, tp_size=tp_size)
            save(options.output, content)
        show(layout, content["layouts"][layout])
    print()
    wrong = 0
    for layout, summary in content["layouts"].items():
        stages = int(layout.split()[1])
        for good, text in verdicts(layout, summary, pp_size=stages, judged=not gloo):
            wrong += not good
            print("as it should be:" if good else "NOT as it should be:", text)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
