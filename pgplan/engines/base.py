"""What an engine is to pgplan: its default split, placement, memory budget, KV rule and syntax.

A fact about one engine stands in that engine's file and nowhere else; a new engine is one new file, a line
in ``registry.py`` and one golden test.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pgplan.engines.exporter import Exporter, find_setting, listed
from pgplan.engines.log_format import LogFormat
from pgplan.errors import EngineError, WorkloadError
from pgplan.hardware import Cluster
from pgplan.model.spec import LayerSpec, ModelSpec
from pgplan.workload import Workload

if TYPE_CHECKING:
    from pgplan.planning.record import Plan


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """State the engine's limits as they will be in force: what the user gave, else the engine's default.

    Args:
        memory_utilization: The share of GPU memory that the engine may take.
        max_model_len: The longest context that it admits, in tokens.
        max_num_batched_tokens: Tokens per step; a longer prompt is prefilled in chunks of as many.
        max_num_seqs: Running requests.
        block_size: Tokens per KV-cache block (SGLang: per page).
        kv_element_bytes: Bytes per element of the KV cache.
        draft_tokens: Tokens that the model's own draft layers propose per step; 0: they are not loaded.
    """

    memory_utilization: float
    max_model_len: int
    max_num_batched_tokens: int
    max_num_seqs: int
    block_size: int
    kv_element_bytes: int
    draft_tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Tell on which stages an engine builds the embedding and the output head.

    Args:
        embedding: ``"first"``, ``"first and last"`` (tied weights) or ``"every"``.
        head: ``"last"``, ``"every"``, or ``"none"`` where logits use the embedding.
        tied: Whether head and embedding share one tensor when both are on a stage.
    """

    embedding: Literal["first", "first and last", "every"]
    head: Literal["last", "every", "none"]
    tied: bool

    def has_embedding(self, stage: int, pp_size: int) -> bool:
        """Tell whether ``stage`` holds the embedding table."""
        at_end = self.embedding == "first and last" and stage == pp_size - 1
        return stage == 0 or at_end or self.embedding == "every"

    def has_head(self, stage: int, pp_size: int) -> bool:
        """Tell whether ``stage`` holds a head of its own, beside any embedding it shares one with."""
        built = self.head == "every" or (self.head == "last" and stage == pp_size - 1)
        return built and not (self.tied and self.has_embedding(stage, pp_size))


@dataclass(frozen=True, slots=True, kw_only=True)
class StageMemory:
    """Give an engine the bytes of one stage that its KV rule asks for, on one rank.

    Args:
        memory_bytes: What the device has.
        weight_bytes: Everything that is there once the model is loaded.
        transient_bytes: The peak of activations, logits included.
        process_bytes: CUDA context and NCCL.
        cublas_bytes: What the first cuBLAS call adds.
        fixed_bytes: What the KV cache takes however much it holds (``KVRule.fixed_bytes``).
    """

    memory_bytes: int
    weight_bytes: int
    transient_bytes: int
    process_bytes: int
    cublas_bytes: int
    fixed_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class KVCapacity:
    """Hold what the KV cache of a split amounts to.

    Args:
        tokens: Tokens that it holds, as the engine prints it.
        requests: Requests of the longest admitted context that fit at once.
        budget_bytes: Bytes left for it, per stage.
        used_bytes: Bytes that each stage puts to use.
        stage_tokens: What each stage could hold alone.
        bytes_per_token: Bytes per token of context, per stage.
        tightest: The stage that limits.
        problem: Why the engine would refuse to start; ``None``: it starts.
        state_requests: Requests whose recurrent state fits, where it has a pool of its own.
    """

    tokens: int
    requests: float
    budget_bytes: tuple[int, ...]
    used_bytes: tuple[int, ...]
    stage_tokens: tuple[int, ...]
    bytes_per_token: tuple[int, ...]
    tightest: int
    problem: str | None
    state_requests: int | None = None


class KVRule(ABC):
    """Decide how many tokens the KV cache of a split holds, for one model, ``tp_size`` and settings."""

    # Whether the smallest budget of all stages holds for every one of them. Then the capacity of a split is
    # the smallest budget over the largest bytes per unit, and a search must look at splits as a whole.
    coupled = False

    @abstractmethod
    def budget_bytes(self, memory: StageMemory) -> int:
        """Return the bytes that a stage has for its KV cache, seen alone."""

    @abstractmethod
    def bytes_per_unit(self, start: int, stop: int) -> float:
        """Return the bytes that one unit (block or token) takes in the layers ``[start, stop)``."""

    @abstractmethod
    def units(self, start: int, stop: int, budget_bytes: int) -> int:
        """Return how many units (blocks or tokens) the layers ``[start, stop)`` hold in ``budget_bytes``."""

    @abstractmethod
    def units_needed(self, *, requests: int, tokens_each: int) -> int:
        """Return the units that ``requests`` requests of ``tokens_each`` tokens need."""

    @abstractmethod
    def admits(self, start: int, stop: int, budget_bytes: int) -> bool:
        """Tell whether the layers can hold one request of the longest context, by the engine's own test."""

    def fixed_bytes(self, start: int, stop: int) -> int:
        """Return the bytes of the layers ``[start, stop)`` that are set aside before any token is counted."""
        del start, stop
        return 0

    def sequence_bytes(self, start: int, stop: int) -> int:
        """Return the bytes that a request takes in the layers ``[start, stop)``, however long it grows."""
        del start, stop
        return 0

    def state_bytes(self, start: int, stop: int, budget_bytes: int, *, requests: int) -> int:
        """Return the bytes of recurrent state with ``requests`` requests running."""
        del budget_bytes
        return requests * self.sequence_bytes(start, stop)

    @abstractmethod
    def capacity(self, ranges: Sequence[tuple[int, int]], memory: Sequence[StageMemory]) -> KVCapacity:
        """Return the capacity of a whole split."""


class Engine(Exporter):
    """Describe one engine in one version: an exporter whose memory is known, so that plans are made for it.

    Attributes:
        override_variable: The environment variable that holds its split.
        stage_flags: What its launch line calls ``pp_size``.
        log_format: What its start-up log looks like.
        host_step_s: Seconds of work on the host per decode step, beside the GPU's, that explain what the
            engine was measured to serve; ``None``: not known.
        host_basis: What that rests on, for people.
    """

    override_variable: str
    stage_flags: tuple[str, ...]
    log_format: LogFormat
    host_step_s: float | None = None
    host_basis = ""

    @abstractmethod
    def default_split(self, num_layers: int, pp_size: int) -> tuple[int, ...]:
        """Return the split that the engine takes by itself."""

    @abstractmethod
    def placement(self, model: ModelSpec, *, pp_size: int) -> Placement:
        """Return where it puts embedding and head of this architecture."""

    @abstractmethod
    def check(self, model: ModelSpec, cluster: Cluster, workload: Workload) -> None:
        """Refuse what it would refuse, or start and then fail on."""

    @abstractmethod
    def settings(self, model: ModelSpec, cluster: Cluster, workload: Workload) -> EngineSettings:
        """Return its limits in force."""

    @abstractmethod
    def kv_rule(self, model: ModelSpec, settings: EngineSettings, cluster: Cluster) -> KVRule:
        """Return its rule for the size of the KV cache."""

    @abstractmethod
    def microbatches(self, workload: Workload, settings: EngineSettings, *, pp_size: int) -> tuple[int, int]:
        """Return the microbatches in flight during decode, and the requests in the largest of them."""

    def steps_at_once(self, model: ModelSpec, *, pp_size: int) -> int:
        """Return how many steps the engine has in the pipeline at once, where there is work for as many."""
        del model
        return pp_size

    def settings_of(self, plan: Plan) -> EngineSettings:
        """Return the limits in force for a plan, which may have been made under another engine."""
        if plan.engine_name == self.name:
            return plan.settings
        return self.settings(plan.model, plan.cluster, plan.workload)

    def find_split(self, text: str, *, num_layers: int, pp_size: int) -> Sequence[int | str] | None:
        """Read the override variable; a launch line without it means the default split."""
        # Kubernetes writes name and value on two lines.
        text = re.sub(r"name:\s*[\"']?(\w+)[\"']?\s+value:", r"\1:", text)
        given = find_setting(text, self.override_variable)
        if given is None and re.fullmatch(r"[\d,\s]+", text):
            given = text
        if given is not None:
            return listed(given)
        stages = find_setting(text, *self.stage_flags)
        if stages is None:
            return None
        if stages != str(pp_size):
            raise EngineError(f"the text has {stages} stages but pp_size is {pp_size}; give pp_size {stages}")
        return self.default_split(num_layers, pp_size)

    def derived_bytes(self, layer: LayerSpec, *, tp_size: int, element_bytes: int) -> int:
        """Return bytes that loading derives from a layer's weights and keeps beside them."""
        del layer, tp_size, element_bytes
        return 0

    def notes(self, model: ModelSpec, *, pp_size: int) -> tuple[str, ...]:
        """Return what a reader should know of this engine with this model."""
        del model, pp_size
        return ()


def context_limit(model: ModelSpec, workload: Workload) -> int:
    """Return the longest context: the user's, else the model's.

    Raises:
        WorkloadError: If the request or the limit is longer than the model's context.
    """
    longest = model.max_position_embeddings
    limit = workload.max_model_len or longest
    if limit > longest:
        raise WorkloadError(
            f"max_model_len is {limit} but {model.name} has a context of {longest} tokens; give at most that"
        )
    if workload.tokens_per_request > limit:
        raise WorkloadError(
            f"prompt_tokens + output_tokens is {workload.tokens_per_request} but {model.name} has a context "
            f"of {limit} tokens; shorten the request"
        )
    return limit


def chunked_microbatches(
    workload: Workload, settings: EngineSettings, *, pp_size: int, limit: int
) -> tuple[int, int]:
    """Return microbatches in flight and requests in each, as prefill chunks form them.

    Requests that are prefilled in one chunk go on decoding together. As many chunks form as the prompts
    fill, but no more than ``pp_size`` microbatches are in flight, so 256 requests of 32 tokens under a
    limit of 4096 tokens make 2 microbatches of 128 and leave a pipeline of 4 half empty, as vLLM 0.24 on
    H200s did; with prompts of 64 tokens they make 4 microbatches of 64.
    """
    running = min(workload.concurrency, settings.max_num_seqs)
    per_chunk = max(1, settings.max_num_batched_tokens // workload.prompt_tokens)
    chunks = -(-running // per_chunk)
    in_flight = max(1, min(pp_size, chunks, running))
    return in_flight, min(limit, -(-running // in_flight))


def lack_of_memory(budgets: Sequence[int], *, why: str) -> str | None:
    """Say at which stage nothing is left for the KV cache, of several at the one that lacks most; or None.

    >>> lack_of_memory([5 << 30, -(1 << 29), -(1 << 30)], why="weights exceed its share")
    'stage 2 has no memory for KV cache: weights exceed its share by 1.00 GiB, the most of 2 stages without'
    """
    least, lacking = min(budgets), sum(budget <= 0 for budget in budgets)
    if not lacking:
        return None
    others = f", the most of {lacking} stages without" if lacking > 1 else ""
    stage = budgets.index(least)
    return f"stage {stage} has no memory for KV cache: {why} by {-least / 2**30:.2f} GiB{others}"
