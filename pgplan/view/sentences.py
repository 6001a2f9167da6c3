"""What is said of a plan in words; every drawing, table and report says the same."""

from __future__ import annotations

from pgplan.planning.record import Plan
from pgplan.view.numbers import count, share, times


def plan_title(plan: Plan) -> str:
    """Say what is planned, e.g. ``"llama-3.1-70b on 4 x H200 SXM 141GB, vllm==0.33"``."""
    return f"{plan.model.name} on {plan.cluster.description}, {plan.engine}"


def plan_load(plan: Plan) -> str:
    """Say what is served, e.g. ``"64 requests of 2,048 + 256 tokens"``."""
    load = plan.workload
    return f"{times(load.concurrency, 'request')} of {load.prompt_tokens:,} + {load.output_tokens:,} tokens"


def plan_sentence(plan: Plan) -> str:
    """Say in one sentence what holds the plan back, or why it does not fit."""
    if plan.fits:
        return _sentences(plan.bottleneck.why)
    return f"Does not fit: {plan.problems[0] if plan.problems else plan.bottleneck.why}."


def plan_summary(plan: Plan) -> str:
    """Say what the plan holds and how fast it runs; if it does not fit, what else there is to know."""
    if not plan.fits and plan.kv_tokens <= 0:
        return _sentences("No KV cache", *plan.problems[1:])
    holds = (
        f"KV cache {count(plan.kv_tokens)} tokens ({_plus_minus(plan.memory_error)}), "
        f"{plan.kv_requests:,.1f} requests of {plan.settings.max_model_len:,} tokens"
    )
    if not plan.fits:
        return _sentences(holds, *plan.problems[1:])
    flight = f"{times(plan.microbatches, 'microbatch')} of {plan.decode_batch:,}"
    if not is_full(plan):
        flight = f"only {flight} for {plan.pp_size} stages: the pipeline is never full"
    return (
        f"{holds} · prefill {count(plan.prefill_tokens_per_s)} tokens/s · "
        f"decode {count(plan.decode_tokens_per_s)} tokens/s ({flight})"
    )


def _sentences(*remarks: str) -> str:
    return " ".join(f"{remark[:1].upper()}{remark[1:].removesuffix('.')}." for remark in remarks)


def is_full(plan: Plan) -> bool:
    """Tell whether decode runs at its cycle, or waits for microbatches to come round."""
    return plan.microbatches * plan.decode_cycle_s >= plan.decode_latency_s * (1 - 1e-9)


def plan_basis(plan: Plan) -> str:
    """Say how the figures were obtained and how far they may be off."""
    return (
        f"GPU times: {plan.tier}, may be off by {share(plan.time_error)}; "
        f"KV tokens by {share(plan.memory_error)}"
    )


def _plus_minus(error: float) -> str:
    return "exact" if error == 0 else f"±{share(error)}"
