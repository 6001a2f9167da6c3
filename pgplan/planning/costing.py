"""The problem that a plan answers: what any range of layers costs on any stage.

``Costing`` prepares a model, a cluster, a workload and an engine once; after that the bytes and seconds of
a range take a few look-ups, which is what lets the optimiser try thousands of ranges and a slider redraw
at once.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from itertools import accumulate
from typing import Any, TypeVar

from pgplan.cost import memory as sizes
from pgplan.cost.batch import Batch
from pgplan.cost.pricing import added_parts, weakest
from pgplan.cost.rates import Tier
from pgplan.cost.sharding import check_tp_size, layer_bytes, rank_bytes
from pgplan.cost.timing import Parts
from pgplan.engines import Engine, StageMemory
from pgplan.errors import PlanError
from pgplan.hardware import Calibration, Cluster
from pgplan.model.spec import LayerSpec, ModelSpec
from pgplan.planning.phases import PhaseTimes, make_phase, pricers_for, stage_links, sums
from pgplan.split import check_stage_count
from pgplan.workload import Workload

_T = TypeVar("_T")
# About two megabytes of stages.
_MOST_KEPT = 4096
_ELEMENT_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}


class Costing:
    """Know the bytes and seconds of every range of layers on every stage.

    Raises:
        PlanError: If the parts do not go together (stages and layers, ``tp_size`` and heads, an
            architecture or dtype that the engine refuses, a context that is too long).
    """

    def __init__(
        self,
        model: ModelSpec,
        cluster: Cluster,
        workload: Workload,
        engine: Engine,
        *,
        calibration: Calibration | None = None,
    ) -> None:
        check_stage_count(model.num_layers, cluster.pp_size)
        check_tp_size(model, tp_size=cluster.tp_size)
        if workload.draft_tokens and not model.drafts:
            raise PlanError(
                f"{model.name} has no layers that draft tokens, or none of known size, but draft_tokens is "
                f"{workload.draft_tokens}; give draft_tokens 0"
            )
        engine.check(model, cluster, workload)
        self.model, self.cluster, self.workload, self.engine = model, cluster, workload, engine
        self.settings = engine.settings(model, cluster, workload)
        self.kv_rule = engine.kv_rule(model, self.settings, cluster)
        self.placement = engine.placement(model, pp_size=cluster.pp_size)
        self.element_bytes = _ELEMENT_BYTES[model.dtype]
        self._prepare_memory()
        self.calibration = calibration
        self.pricers = pricers_for(model, cluster, calibration)
        self._times: dict[tuple[bool, int], PhaseTimes] = {}
        self._kept: dict[Hashable, Any] = {}
        self._memory: dict[tuple[int, tuple[int, ...], int], StageMemory] = {}
        self.stage_classes = self._stage_classes()

    def kept(self, key: Hashable, make: Callable[[], _T]) -> _T:
        """Return what was made under ``key`` before, else make it: of two splits most stages are equal."""
        if key in self._kept:
            return self._kept[key]  # type: ignore[no-any-return]
        if len(self._kept) >= _MOST_KEPT:
            self._kept.clear()
        found = self._kept[key] = make()
        return found

    # --- memory ---------------------------------------------------------------------------------------

    def _prepare_memory(self) -> None:
        model, tp_size = self.model, self.cluster.tp_size
        self._layer_sums = sums([self._kind_bytes(kind) for kind in model.kinds], model.pattern)
        self._parameter_sums = sums([kind.parameters for kind in model.kinds], model.pattern)
        self._kind_counts = [
            list(accumulate((index == kind for index in model.pattern), initial=0))
            for kind in range(len(model.kinds))
        ]
        # A dummy step of the largest chunk is what engines measure their peak with.
        self._kind_activation = [
            sizes.activation_bytes(
                model,
                kind,
                tokens=self.settings.max_num_batched_tokens,
                tp_size=tp_size,
                element_bytes=self.element_bytes,
            )
            for kind in model.kinds
        ]
        self._all_kinds = frozenset(range(len(model.kinds)))
        self._rotary: dict[frozenset[int], int] = {}
        beside = sum(rank_bytes(weight, tp_size=tp_size) for weight in model.beside_embedding)
        self.embedding_bytes = rank_bytes(model.embedding, tp_size=tp_size) + beside
        drafts = model.drafts if self.workload.draft_tokens else ()
        self.draft_bytes = sum(self._kind_bytes(layer) for layer in drafts)
        self.draft_parameters = sum(layer.parameters for layer in drafts)
        self.head_bytes = rank_bytes(model.head, tp_size=tp_size)
        self.norm_bytes = sum(rank_bytes(norm, tp_size=tp_size) for norm in model.final_norm)
        self.tower_bytes = sum(rank_bytes(weight, tp_size=tp_size) for weight in model.towers)
        rows = min(self.settings.max_num_seqs, self.settings.max_num_batched_tokens)
        self._logits_bytes = sizes.logits_bytes(model, rows=rows)
        self._outside = [self._outside_bytes(stage) for stage in range(self.cluster.pp_size)]
        ranks = self.cluster.pp_size * tp_size
        self._process_bytes = [sizes.process_bytes(gpu, ranks=ranks) for gpu in self.cluster.gpus]

    def _kind_bytes(self, layer: LayerSpec) -> int:
        """Return the bytes of a layer on one rank, with what the engine derives from its weights."""
        tp_size = self.cluster.tp_size
        derived = self.engine.derived_bytes(layer, tp_size=tp_size, element_bytes=self.element_bytes)
        return layer_bytes(layer, tp_size=tp_size) + derived

    def range_layer_bytes(self, start: int, stop: int) -> int:
        """Return the bytes of the weights of layers ``[start, stop)`` on one rank."""
        return self._layer_sums[stop] - self._layer_sums[start]

    def range_parameters(self, start: int, stop: int) -> int:
        """Count the parameters of layers ``[start, stop)``."""
        return self._parameter_sums[stop] - self._parameter_sums[start]

    def range_kinds(self, start: int, stop: int) -> frozenset[int]:
        """Return the kinds (indices) that occur in layers ``[start, stop)``."""
        if len(self._kind_counts) == 1:
            return self._all_kinds
        return frozenset(
            kind for kind, counts in enumerate(self._kind_counts) if counts[stop] > counts[start]
        )

    def range_counts(self, start: int, stop: int) -> tuple[int, ...]:
        """Return how many of layers ``[start, stop)`` are of each kind."""
        if len(self._kind_counts) == 1:
            return (stop - start,)
        return tuple([counts[stop] - counts[start] for counts in self._kind_counts])

    def alike(self, start: int, stop: int) -> tuple[int, int]:
        """Return the first range that equals ``[start, stop)`` in all but its place.

        Only where all layers are of one kind: elsewhere engines may keep the caches of equal layers apart.
        """
        return (0, stop - start) if len(self._kind_counts) == 1 else (start, stop)

    def outside_bytes(self, stage: int) -> tuple[int, int, int]:
        """Return the bytes of embedding, head (with final norm and draft layers) and towers on a stage."""
        return self._outside[stage]

    def _outside_bytes(self, stage: int) -> tuple[int, int, int]:
        last, pp_size = self.cluster.pp_size - 1, self.cluster.pp_size
        embedding = self.embedding_bytes if self.has_embedding(stage) else 0
        head = self.head_bytes if self.placement.has_head(stage, pp_size) else 0
        beside = self.norm_bytes + self.draft_bytes if stage == last else 0
        return embedding, head + beside, self.tower_bytes * (stage == 0)

    def has_embedding(self, stage: int) -> bool:
        """Tell whether a stage holds the embedding: the engine's placement, and draft layers need it too."""
        drafting = self.draft_bytes > 0 and stage == self.cluster.pp_size - 1
        return drafting or self.placement.has_embedding(stage, self.cluster.pp_size)

    def rotary_bytes(self, kinds: frozenset[int]) -> int:
        """Return the bytes of the rotary tables that layers of these kinds need."""
        if kinds not in self._rotary:
            self._rotary[kinds] = sizes.rotary_table_bytes(
                self.model, kinds, element_bytes=self.element_bytes
            )
        return self._rotary[kinds]

    def peaks(self, stage: int, kinds: frozenset[int]) -> tuple[int, int]:
        """Return the activation peak, and what logits need beyond it (last stage)."""
        activation = max(self._kind_activation[kind] for kind in kinds)
        last = stage == self.cluster.pp_size - 1
        return activation, max(0, self._logits_bytes - activation) if last else 0

    def stage_memory(self, stage: int, start: int, stop: int) -> StageMemory:
        """Return the bytes of a range on a stage, as the engine's KV rule asks for them."""
        # Of thousands of ranges that are asked for, few differ in what they hold.
        fixed_bytes = self.kv_rule.fixed_bytes(start, stop)
        key = (self.stage_classes[stage], self.range_counts(start, stop), fixed_bytes)
        found = self._memory.get(key)
        if found is None:
            found = self._memory[key] = self._stage_memory(stage, start, stop, fixed_bytes)
        return found

    def _stage_memory(self, stage: int, start: int, stop: int, fixed_bytes: int) -> StageMemory:
        kinds = self.range_kinds(start, stop)
        weights = self.range_layer_bytes(start, stop) + sum(self.outside_bytes(stage))
        return StageMemory(
            memory_bytes=self.cluster.gpus[stage].memory_bytes,
            weight_bytes=weights + self.rotary_bytes(kinds),
            transient_bytes=sum(self.peaks(stage, kinds)),
            process_bytes=self._process_bytes[stage],
            cublas_bytes=sizes.CUBLAS_BYTES,
            fixed_bytes=fixed_bytes,
        )

    def kv_budget_bytes(self, stage: int, start: int, stop: int) -> int:
        """Return the bytes that a range on a stage leaves for its KV cache, seen alone."""
        return self.kv_rule.budget_bytes(self.stage_memory(stage, start, stop))

    # --- time -----------------------------------------------------------------------------------------

    @property
    def steps_at_once(self) -> int:
        """Return how many steps the engine has in the pipeline at once."""
        return self.engine.steps_at_once(self.model, pp_size=self.cluster.pp_size)

    def microbatches(self, concurrency: int) -> tuple[int, int]:
        """Return microbatches in flight and requests in each when ``concurrency`` requests are served."""
        served = Workload(
            prompt_tokens=self.workload.prompt_tokens,
            output_tokens=self.workload.output_tokens,
            concurrency=max(1, concurrency),
        )
        return self.engine.microbatches(served, self.settings, pp_size=self.steps_at_once)

    @property
    def prefill_tokens(self) -> int:
        """Return the tokens of one prefill microbatch: a full chunk, if the prompts fill it."""
        return min(
            self.settings.max_num_batched_tokens, self.workload.concurrency * self.workload.prompt_tokens
        )

    def prefill_times(self) -> PhaseTimes:
        """Return the times of a prefill chunk."""
        tokens, prompt = self.prefill_tokens, self.workload.prompt_tokens
        # A causal token sees half its prompt on average, also when the prompt takes several chunks.
        return self._phase(
            decode=False, tokens=tokens, sequences=max(1, tokens // prompt), context=prompt / 2
        )

    def decode_times(self, batch: int) -> PhaseTimes:
        """Return the times of a decode step of ``batch`` requests, half-way through their output."""
        context = self.workload.prompt_tokens + self.workload.output_tokens / 2
        return self._phase(decode=True, tokens=batch, sequences=batch, context=context)

    def _phase(self, *, decode: bool, tokens: int, sequences: int, context: float) -> PhaseTimes:
        key = (decode, tokens)
        if key not in self._times:
            batch = Batch(
                tokens=tokens,
                sequences=sequences,
                context=context,
                cached=context,
                decode=decode,
                element_bytes=self.element_bytes,
                kv_element_bytes=self.settings.kv_element_bytes,
            )
            self._times[key] = make_phase(self.model, self.cluster, self.pricers, batch)
        return self._times[key]

    def stage_s(self, times: PhaseTimes, stage: int, start: int, stop: int) -> float:
        """Return the compute seconds of a range on a stage for one microbatch."""
        gpu = self.cluster.gpus[stage]
        sums = times.layer_sums[gpu]
        seconds = sums[stop] - sums[start]
        if stage == 0:
            seconds += times.first[gpu].seconds
        if stage == self.cluster.pp_size - 1:
            seconds += times.last[gpu].seconds
        return seconds

    def stage_detail(self, times: PhaseTimes, stage: int, start: int, stop: int) -> tuple[Parts, Tier, float]:
        """Return where the compute seconds of a range on a stage go, their weakest tier, and their error."""
        gpu, is_first, is_last = self.cluster.gpus[stage], stage == 0, stage == self.cluster.pp_size - 1
        counts = self.range_counts(start, stop)

        def add_up() -> tuple[Parts, Tier, float]:
            prices = [*zip(times.layers[gpu], counts, strict=True)]
            prices += [(times.first[gpu], 1)] * is_first + [(times.last[gpu], 1)] * is_last
            return (added_parts(prices), *weakest(prices))

        return self.kept((times.batch.decode, times.batch.tokens, gpu, is_first, is_last, counts), add_up)

    def _stage_classes(self) -> tuple[int, ...]:
        """Return a number per stage; equal numbers cost the same for equal ranges."""
        last = self.cluster.pp_size - 1
        links = [*stage_links(self.cluster), None]
        keys = [
            (gpu, stage == 0, stage == last, link)
            for stage, (gpu, link) in enumerate(zip(self.cluster.gpus, links, strict=True))
        ]
        # The search looks classes up thousands of times; hashing a device each time would show.
        numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
        return tuple(numbers[key] for key in keys)
