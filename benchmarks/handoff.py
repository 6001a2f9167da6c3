"""Measure the hand-off between pipeline stages beside raw torch calls, interleaved in the same processes.

    python benchmarks/handoff.py                 # every layout that the machine's GPUs allow
    python benchmarks/handoff.py --quick         # fewer sizes and repetitions
    python benchmarks/handoff.py --backend gloo  # on the CPU, to try the script itself
    python benchmarks/handoff.py --nodes         # two nodes, played by two GPUs

Layouts: pp 2 x tp 1 (2 GPUs), pp 2 x tp 2 and pp 4 x tp 1 (4), pp 8 x tp 1, pp 4 x tp 2 and pp 2 x tp 4 (8),
as far as there are GPUs. A hop is two bf16 tensors of width 2048; what is timed, on the first stage's host
clock, is a round trip: the hop by one of the methods, then an empty answer that is the same for all of them.
Repetitions of the methods take turns, each time in another order; differences and ratios are taken within one
turn, and their median is given with a 95 % interval. Ratios are of bandwidths, not of round trips: the median
answer without a hop is taken off both times.

    raw          one ProcessGroup.send/recv of the whole hop; with tp 2 also of slices + one raw all-gather
    raw awaited  the same, but the sender's stream waits for each send at once, so it cannot compute meanwhile
    raw apart    a send/recv for each tensor
    pgplan       send_stage/recv_stage, written into its own buffers (with tp 2 whole and sliced)
    coalesced    send_stage/recv_stage of tensors that lie anywhere, in one coalesced call
    two tensors  shapes as an object over the metadata plane, memory allocated, then two sends

``streamed`` is the time per hop when many follow each other without an answer. Every size and method is also
sent once with random bytes that the last stage makes again from the same seed, and compared bit by bit.

``--nodes`` runs pp 2 x tp 2 on two GPUs. Both stages use both; NCCL is told that each stage is a host of its
own: between the stages bytes go through sockets on the loopback interface, within a stage over NVLink. Two
processes on one GPU take turns, so small hops say nothing there; large ones wait for the sockets.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

from handoff_methods import KIB, MIB  # noqa: E402
from handoff_table import SMALL_BYTES, show, summarise, verdicts  # noqa: E402
from recording import RESULTS, machine, save  # noqa: E402

from pgplan.launcher import launch  # noqa: E402
from pgplan.launcher.backends import choose_backend, visible_gpus  # noqa: E402

LAYOUTS = ((2, 1), (2, 2), (4, 1), (8, 1), (4, 2), (2, 4))
SIZES = [8 * KIB, 32 * KIB, 64 * KIB, 128 * KIB, 256 * KIB, MIB, 4 * MIB, 16 * MIB, 64 * MIB, 256 * MIB]
QUICK_SIZES = [8 * KIB, 128 * KIB, MIB, 16 * MIB]
NODES_SIZES = [MIB, 4 * MIB, 16 * MIB, 64 * MIB]
NODES_REPETITIONS = 25


def repetitions_for(size: int, *, quick: bool) -> int:
    count = 1000 if size <= SMALL_BYTES else 300
    return max(10, count // 10) if quick else count


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backend", choices=["auto", "nccl", "gloo"], default="auto")
    parser.add_argument("--ranks", type=int, help="use at most so many GPUs, or processes with gloo")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--fresh", action="store_true", help="forget what was measured before")
    parser.add_argument("--nodes", action="store_true", help="play two nodes on two GPUs")
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    if options.nodes:
        return between_nodes(options.output or RESULTS / "handoff.nodes.json")
    options.output = options.output or RESULTS / "handoff.json"
    choice = choose_backend(options.backend, ranks=2)
    print(f"backend: {choice.why}")
    gloo = choice.name == "gloo"
    ranks = options.ranks or (4 if gloo else visible_gpus())
    sizes = [s for s in (QUICK_SIZES if options.quick else SIZES) if not gloo or s <= 16 * MIB]
    counts = [repetitions_for(size, quick=options.quick or gloo) for size in sizes]
    kept = json.loads(options.output.read_text()) if options.output.exists() and not options.fresh else {}
    content = {"machine": machine(), "backend": choice.name, "layouts": kept.get("layouts", {})}
    for pp_size, tp_size in LAYOUTS:
        layout = f"pp {pp_size} x tp {tp_size}"
        if pp_size * tp_size > ranks:
            continue
        if layout not in content["layouts"]:
            sizing = {"pp_size": pp_size, "tp_size": tp_size, "sizes": sizes, "repetitions": counts}
            result = launch(
                "handoff_ranks:measure",
                ranks=pp_size * tp_size,
                backend=choice.name,  # type: ignore[arg-type]
                timeout=280,
                args=sizing | {"gloo": gloo},
            )
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


def between_nodes(output: Path) -> int:
    """Measure pp 2 x tp 2 on two GPUs that play two nodes."""
    pp_size, tp_size = 2, 2
    if visible_gpus() < tp_size:
        sys.exit(f"two nodes are played on {tp_size} GPUs, and {visible_gpus()} are visible")
    counts = [NODES_REPETITIONS] * len(NODES_SIZES)
    # No backend: the launcher would want a GPU of its own for each rank, which NCCL does not.
    result = launch(
        "handoff_ranks:measure_between_nodes",
        ranks=pp_size * tp_size,
        timeout=280,
        args={"pp_size": pp_size, "tp_size": tp_size, "sizes": NODES_SIZES, "repetitions": counts},
    )
    layout = f"pp {pp_size} x tp {tp_size}"
    summary = summarise(result.results, tp_size=tp_size)
    save(output, {"machine": machine(), "backend": "nccl", "layouts": {layout: summary}})
    show(layout, summary)
    wrong = 0
    for good, text in verdicts(layout, summary, pp_size=pp_size, judged=False):
        wrong += not good
        print("as it should be:" if good else "NOT as it should be:", text)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
