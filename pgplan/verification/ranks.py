"""What each rank of a verification does: check, lay out, measure."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pgplan.distributed.tensor_plane import TensorPlane
from pgplan.errors import GroupError
from pgplan.launcher import Worker
from pgplan.planning import Plan, split_ranges
from pgplan.verification.checking import check_layers
from pgplan.verification.figures import FlowMeasurement, Spread, StageMeasurement
from pgplan.verification.findings import Findings, Row
from pgplan.verification.hops import check_handoff
from pgplan.verification.kv_cache import is_fp8
from pgplan.verification.memory import DeviceMemory
from pgplan.verification.passes import Pass
from pgplan.verification.pieces import CHECKED_TOKENS, Step, largest_hop, steps_of
from pgplan.verification.place import Place
from pgplan.verification.products import kernels_entry
from pgplan.verification.reading import read_rate
from pgplan.verification.replaying import capture_checked, check_replays
from pgplan.verification.room import Room
from pgplan.verification.scaling import shortened
from pgplan.verification.stage import Contents, Stage
from pgplan.verification.stopwatch import Stopwatch

if TYPE_CHECKING:
    import torch


def verify_rank(worker: Worker, *, plan: str, alone: int | None = None) -> Row:
    """Verify one rank's part of a plan; an entry for the launcher.

    Args:
        worker: The rank's process.
        plan: The plan as JSON.
        alone: The stage to be, when the ranks are one stage and not a pipeline.
    """
    import torch

    whole = Plan.from_json(plan)
    if worker.backend == "gloo":
        # The ranks share the cores; more threads than cores only wait for each other.
        torch.set_num_threads(max(1, (torch.get_num_threads() or 1) // worker.world_size))
    with (
        TensorPlane(worker.group, backend=worker.backend or "gloo", device=worker.device) as plane,
        torch.inference_mode(),
    ):
        return _Rank(worker, plane, whole, alone).run().to_data()


class _Rank:
    """Go through a verification, phase by phase."""

    def __init__(self, worker: Worker, plane: TensorPlane, plan: Plan, alone: int | None) -> None:
        import torch

        self.worker, self.plan = worker, plan
        self._found = Findings()
        self._phase("connect")
        if plane.device.type == "cuda":
            torch.cuda.set_device(plane.device)
        self.memory = DeviceMemory(plane.device)
        self.memory.open_libraries()
        without_nccl = self.memory.process_bytes()[1]
        self.place = Place(worker, plane, pp_size=plan.pp_size, tp_size=plan.tp_size, alone=alone)
        before = self.memory.allocated_bytes()
        self.dtype: torch.dtype = getattr(torch, plan.model.dtype)
        self.prefill_step, self.decode_step = steps_of(plan)
        self.watch = Stopwatch(self.place, self.memory.on_gpu)
        self.place.connect(
            max_tokens=largest_hop(plan),
            hidden_size=plan.model.hidden_size,
            dtype=self.dtype,
        )
        self._nccl_bytes = self.memory.process_bytes()[1] - without_nccl
        # Another stage's output, to compute from before the pipeline runs.
        shape = (self.prefill_step.tokens, plan.model.hidden_size)
        count = 0 if self.place.is_first else 2
        self._inputs = tuple(torch.randn(shape, device=plane.device, dtype=self.dtype) for _ in range(count))
        self.memory.release()
        buffers = self.memory.allocated_bytes(self._inputs) - before
        self.room = Room(self.place, self.memory, plan, buffer_bytes=buffers)

    def run(self) -> Findings:
        """Do everything; ends early, on all ranks alike, when something does not fit."""
        with self._named_if_memory_ends():
            self._check()
            stage = self._lay_out()
            pool = self._lay_out_cache(stage) if stage is not None else None
            if stage is not None and pool is not None:
                self._measure(stage, pool)
        self._found.problem = self.room.problem
        self._phase("end")
        # What this rank has sent last may still be on its way out of its buffers.
        self.worker.group.barrier()
        return self._found

    @contextmanager
    def _named_if_memory_ends(self) -> Iterator[None]:
        """Say which stage it was that had no memory left, and in what."""
        import torch

        try:
            yield
        except torch.OutOfMemoryError as error:
            raise GroupError(
                f"stage {self.place.stage} ran out of memory in {self._found.phase}, with "
                f"{self.memory.describe()}; lower memory_utilization or max_num_batched_tokens"
            ) from error

    def _phase(self, name: str) -> None:
        self._found.begin(name)
        self.worker.phase(name)

    # --- is it right? ---------------------------------------------------------------------------------

    def _check(self) -> None:
        self._phase("check")
        place, plan = self.place, self.plan
        self._found.kernels = kernels_entry(
            plan.model,
            tp_size=plan.tp_size,
            device=place.device.type,
            kv_is_fp8=is_fp8(plan.workload.kv_dtype),
            widens_latents=Contents.of(plan, place.stage).widens_latents,
        )
        if place.is_pipeline or plan.pp_size == 1 or plan.tp_size > 1:
            model, split = shortened(plan.model, plan.split)
            start, stop = split_ranges(split)[place.stage]
            contents = Contents.of(plan, place.stage)
            self._found.add(check_layers(place, model, replace(contents, layers=tuple(range(start, stop)))))
        self._found.add(
            check_handoff(place, tokens=CHECKED_TOKENS, hidden_size=plan.model.hidden_size, dtype=self.dtype)
        )
        self.memory.release()

    # --- does it fit? ---------------------------------------------------------------------------------

    def _lay_out(self) -> Stage | None:
        self._phase("weights")
        contents = Contents.of(self.plan, self.place.stage)
        place, model = self.place, self.plan.model
        shards = place.shards(depth=model.num_layers)
        return self.room.lay_out_weights(
            lambda: Stage(model, contents, shards, reduce=place.reduce, gather=place.gather)
        )

    def _lay_out_cache(self, stage: Stage) -> torch.Tensor | None:
        self._phase("kv cache")
        return self.room.lay_out_cache(stage.cache_elements(rows=self._rows, tokens=self._tokens))

    @property
    def _rows(self) -> int:
        """Count the sequences that the cache must hold."""
        return max(self.plan.microbatches * self.plan.decode_batch, self.prefill_step.sequences)

    @property
    def _tokens(self) -> int:
        """Count the tokens that the cache must hold of each."""
        return max(step.start + step.length for step in (self.prefill_step, self.decode_step))

    # --- how long does it take? -----------------------------------------------------------------------

    def _measure(self, stage: Stage, pool: torch.Tensor) -> None:
        caches = stage.make_cache(pool, rows=self._rows, tokens=self._tokens)
        prefill = Pass(stage, caches, self.prefill_step, streams=self._inputs)
        self._phase("prefill")
        peak_bytes = self._peak_bytes(stage, prefill)
        self.room.allow_graphs()
        graphs, errors = None, []
        if self.memory.on_gpu:
            graphs, error = capture_checked(prefill, self.memory)
            errors.append(error)
        prefill_s = self.watch.time(prefill, budgets=2)

        self._phase("decode")
        decodes = self._decode_passes(stage, caches, graphs)
        if self.memory.on_gpu:
            _, error = capture_checked(decodes[-1], self.memory, pool=graphs)
            self._found.add(check_replays(self.place, [*errors, error], stage.model.dtype))
        decode_s = self.watch.time(decodes[0])

        self._phase("pipeline")
        self._found.prefill = self._flow("prefill", [prefill], prefill_s, in_flight=self._chunks_in_flight)
        self._found.decode = self._flow("decode", decodes, decode_s, in_flight=self.plan.microbatches)
        process_bytes, context_bytes = self.memory.process_bytes()

        # Memory is read before: a receiver asks for each hop, a way back that no engine has and NCCL opens.
        self._phase("hand-off")
        handoff_prefill, handoff_decode = map(self.watch.hop, (self.prefill_step, self.decode_step))
        # Last, as the cache's memory is read as if it were weights.
        read_bytes_per_s = read_rate(pool)
        self._found.stage = StageMeasurement(
            stage=self.place.stage,
            device=self.memory.name,
            weight_bytes=self.room.weight_bytes,
            kv_bytes=self.room.kv_bytes,
            prefill_peak_bytes=peak_bytes,
            buffer_bytes=self.room.buffer_bytes,
            process_bytes=process_bytes,
            context_bytes=context_bytes,
            nccl_bytes=self._nccl_bytes,
            prefill_tokens=self.prefill_step.tokens,
            decode_batch=self.decode_step.tokens,
            prefill=prefill_s,
            decode=decode_s,
            handoff_prefill=handoff_prefill,
            handoff_decode=handoff_decode,
            read_bytes_per_s=read_bytes_per_s,
        )

    def _flow(self, name: str, passes: list[Pass], each: Spread, *, in_flight: int) -> FlowMeasurement | None:
        """Run the full pipeline and note this rank's idle share."""
        found = self.watch.flow(passes, each, in_flight=in_flight)
        if found is None:
            return None
        measured, self._found.idle[name] = found
        return measured

    @property
    def _chunks_in_flight(self) -> int:
        prompts = self.plan.workload.concurrency * self.plan.workload.prompt_tokens
        return min(self.plan.pp_size, -(-prompts // self.plan.prefill_tokens))

    def _peak_bytes(self, stage: Stage, prefill: Pass) -> int:
        """Return the most that a chunk, or sampling for as many rows as an engine profiles, allocates."""
        import torch

        # Its rows are there before, as what the chunk left.
        settings = self.plan.settings
        rows = min(settings.max_num_seqs, settings.max_num_batched_tokens) if self.place.is_last else 0
        x = torch.zeros((rows, stage.model.hidden_size), dtype=stage.dtype, device=stage.device)
        # Kernels are compiled, and tables made, at their first use.
        prefill.run()
        prefill.out = ()
        self.memory.release()
        before = self.memory.allocated_bytes()
        self.memory.start_peak()
        prefill.run()
        prefill.out = ()
        if self.place.is_last and self.memory.on_gpu:
            self.memory.release()
            stage.draw(x)
        peak_bytes = self.memory.peak_bytes() - before
        del x
        self.memory.release()
        return max(0, peak_bytes)

    def _decode_passes(self, stage: Stage, caches: list[list[torch.Tensor]], graphs: Any) -> list[Pass]:
        """Return one pass for each microbatch in flight, each over its own part of the cache.

        All but the last are captured.
        """
        step, passes, pool = self.decode_step, [], graphs
        for index in range(self.plan.microbatches):
            first = index * step.sequences
            own = Step(sequences=step.sequences, length=1, start=step.start, first_row=first)
            passes.append(Pass(stage, caches, own))
            if self.memory.on_gpu and index < self.plan.microbatches - 1:
                pool = passes[-1].capture(pool)
        return passes
