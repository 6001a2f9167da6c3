"""What a picture tells under the pointer: each figure with its unit and what it is computed from."""

from __future__ import annotations

from typing import Literal

from pgplan.planning.record import Plan
from pgplan.planning.stage_plan import StagePlan
from pgplan.view.numbers import count, gib, milliseconds


def memory_hover(plan: Plan, stage: StagePlan) -> str:
    """Tell every byte of a stage, and how its KV cache follows from them; one figure per line."""
    sizes = (
        ("layers", stage.layer_bytes),
        ("embedding", stage.embedding_bytes),
        ("final norm and head", stage.head_bytes),
        ("towers", stage.tower_bytes),
        ("rotary tables", stage.buffer_bytes),
        ("activations", stage.activation_bytes),
        ("logits and sampler", stage.logits_bytes),
        ("CUDA graphs", stage.graph_bytes),
        ("CUDA context and libraries", stage.context_bytes),
        ("recurrent state", stage.state_bytes),
        ("recurrent state per request", stage.state_bytes_per_sequence),
        ("KV cache in use", stage.token_bytes),
        ("KV memory stranded by the tightest stage", stage.stranded_kv_bytes),
    )
    lines = [f"stage {stage.stage} on {stage.gpu}: layers {stage.start} to {stage.stop - 1}"]
    lines += [f"{name}: {gib(size)} GiB" for name, size in sizes if size > 0]
    share = plan.settings.memory_utilization
    lines.append(f"budget: {gib(stage.budget_bytes)} GiB = {share:g} x {gib(stage.memory_bytes)} GiB")
    lines.append(_kv_room(stage))
    if stage.kv_budget_bytes < 0:
        lines.append(f"short of its budget by {gib(-stage.kv_budget_bytes)} GiB")
    each = count(stage.kv_bytes_per_token)
    lines.append(f"could hold alone: {count(stage.kv_tokens)} KV tokens, {each} bytes for each")
    return "\n".join(lines)


def _kv_room(stage: StagePlan) -> str:
    """Write the room for the KV cache as a sum that comes out."""
    counted = stage.weight_bytes + stage.activation_bytes + stage.logits_bytes
    other = stage.budget_bytes - counted - stage.kv_budget_bytes
    rest = "" if gib(other) == "0" else f" {'-' if other > 0 else '+'} other {gib(abs(other))}"
    return (
        f"room for KV: {gib(stage.kv_budget_bytes)} GiB = budget {gib(stage.budget_bytes)} "
        f"- weights {gib(stage.weight_bytes)} - activations, logits "
        f"{gib(stage.activation_bytes + stage.logits_bytes)}{rest}"
    )


def time_hover(plan: Plan, stage: StagePlan, phase: Literal["decode", "prefill"], *, idle_s: float) -> str:
    """Tell where a stage's time for one microbatch goes, and how long it waits; one figure per line."""
    if phase == "decode":
        compute_s, handoff_s, parts = stage.decode_s, stage.decode_handoff_s, stage.decode_parts
        batch = f"a step of {plan.decode_batch:,} requests"
    else:
        compute_s, handoff_s, parts = stage.prefill_s, stage.prefill_handoff_s, stage.prefill_parts
        batch = f"a chunk of {plan.prefill_tokens:,} tokens"
    lines = [
        f"stage {stage.stage}, {phase}, {batch}",
        f"{milliseconds(compute_s + handoff_s)} ms = {milliseconds(compute_s)} ms of compute + "
        f"{milliseconds(handoff_s)} ms of hand-off",
        f"compute: {' + '.join(f'{part} {milliseconds(seconds)}' for part, seconds in parts)} ms "
        f"({plan.tier})",
    ]
    if idle_s > 0:
        cycle_s = plan.decode_cycle_s if phase == "decode" else plan.prefill_cycle_s
        lines.append(f"waits {milliseconds(idle_s)} ms in each cycle of {milliseconds(cycle_s)} ms")
    return "\n".join(lines)
