"""A plan as a pandas DataFrame."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pgplan.planning.record import Plan
from pgplan.planning.stage_plan import StagePlan
from pgplan.view.numbers import GIB

if TYPE_CHECKING:
    import pandas as pd

_SIZES = (
    ("layers_gib", "layer_bytes"),
    ("embedding_gib", "embedding_bytes"),
    ("head_gib", "head_bytes"),
    ("towers_gib", "tower_bytes"),
    ("buffers_gib", "buffer_bytes"),
    ("weights_gib", "weight_bytes"),
    ("activations_gib", "activation_bytes"),
    ("logits_gib", "logits_bytes"),
    ("cuda_graphs_gib", "graph_bytes"),
    ("cuda_context_gib", "context_bytes"),
    ("kv_used_gib", "kv_used_bytes"),
    ("state_gib", "state_bytes"),
    ("kv_stranded_gib", "stranded_kv_bytes"),
    ("kv_budget_gib", "kv_budget_bytes"),
    ("budget_gib", "budget_bytes"),
    ("memory_gib", "memory_bytes"),
)
_TIMES = (
    ("prefill_ms", "prefill_s"),
    ("prefill_handoff_ms", "prefill_handoff_s"),
    ("decode_ms", "decode_s"),
    ("decode_handoff_ms", "decode_handoff_s"),
)


def plan_frame(plan: Plan) -> pd.DataFrame:
    """Return one row per stage, memory per GPU; the column names carry the units (GiB = 2^30 bytes).

    >>> from pgplan import Cluster, plan
    >>> made = plan("llama-3.1-8b", Cluster.uniform("H200", pp_size=2), split="default")
    >>> plan_frame(made)["weights_gib"].round(2).tolist()
    [7.51, 7.51]
    """
    import pandas as pd

    rows = [_row(stage) for stage in plan.stages]
    return pd.DataFrame(rows).set_index("stage")


def _row(stage: StagePlan) -> dict[str, object]:
    return {
        "stage": stage.stage,
        "gpu": stage.gpu,
        "first_layer": stage.start,
        "layers": stage.num_layers,
        "parameters": stage.parameters,
        **{column: getattr(stage, name) / GIB for column, name in _SIZES},
        "kv_bytes_per_token": stage.kv_bytes_per_token,
        "kv_tokens": stage.kv_tokens,
        **{column: getattr(stage, name) * 1e3 for column, name in _TIMES},
    }
