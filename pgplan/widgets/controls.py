"""The planner's left side: every value that decides a plan, what it may be, and the messages beside it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import ipywidgets as W

from pgplan.engines import engine_names
from pgplan.hardware import gpu_names
from pgplan.model import catalogue_names
from pgplan.planning import OBJECTIVES, Plan
from pgplan.widgets.basis import DATA_SHEET, Basis, offered
from pgplan.widgets.choice import DTYPES, Choice
from pgplan.widgets.style import column, html, row

_MOST_LAYERS = 256
_KV_DTYPES = ("auto", "bfloat16", "float16", "float32", "fp8", "fp8_e4m3", "fp8_e5m2")
_HALF = "49%"

# A message stands below the controls that it is about; controls in one tuple share a line.
_GROUPS: dict[str, tuple[tuple[str, ...], ...]] = {
    "model": (("model",), ("layers",), ("dtype", "kv_dtype")),
    "own": (("path",), ("config",), ("upload",)),
    "cluster": (("gpu",), ("times",), ("gpus",), ("pp",), ("tp", "memory_utilization")),
    "engine": (("engine", "objective"),),
    "workload": (
        ("prompt_tokens", "output_tokens"),
        ("concurrency", "max_model_len"),
        ("max_num_batched_tokens", "max_num_seqs"),
    ),
    "split": (("split",),),
}
GROUP_OF = {
    field: group for group, lines in _GROUPS.items() for line in lines for field in line
} | dict.fromkeys(("cuts", "pinned", "auto", "step"), "split")


class Controls:
    """Hold the controls by name, and the messages of their groups.

    Attributes:
        by_name: Every control; its ``value`` is what a user sets.
        messages: One line of HTML per group.
        box: All of them, laid out.
    """

    def __init__(self) -> None:
        self.by_name = _make_controls()
        self._model_names, self._gpu_names = catalogue_names(), gpu_names()
        self.messages = {group: html("message") for group in _GROUPS}
        for field, control in self.by_name.items():
            control.add_class(f"pgplan-control-{field}")
        for group, message in self.messages.items():
            message.add_class(f"pgplan-message-{group}")
        self._own = W.Accordion(children=[self._group("own")], titles=("A model of your own",))
        rest = [self._own if group == "own" else self._group(group) for group in _GROUPS]
        self.box = column(*rest, name="controls")

    def _group(self, group: str) -> W.Widget:
        lines = [
            self.by_name[line[0]] if len(line) == 1 else row(*(self.by_name[field] for field in line))
            for line in _GROUPS[group]
        ]
        return column(*lines, self.messages[group])

    def sync(
        self,
        choice: Choice,
        plan: Plan,
        *,
        models: Iterable[str],
        gpus: Iterable[str],
        bases: Iterable[Basis],
        split: str,
    ) -> None:
        """Let every control say what the plan was made from, and offer only what can be.

        Args:
            choice: What was chosen.
            plan: What followed, the engine's own limits among it.
            models: The models that the user brought along.
            gpus: The devices that the user brought along.
            bases: The calibrations that the user brought along.
            split: What stands in the split's field, which may be a split that nobody could use yet.
        """
        by_name, load = self.by_name, choice.workload
        _offer(by_name["model"], self._model_names, models, choice.base.name)
        _offer(by_name["gpu"], self._gpu_names, (*gpus, choice.gpu_text), choice.gpu_text)
        times = [basis.label for basis in offered(choice.gpus, bases)]
        _offer(by_name["times"], tuple(times), (), choice.basis.label)
        _offer(by_name["engine"], engine_names(), (choice.engine,), choice.engine)
        _offer(by_name["tp"], choice.tp_sizes, (), choice.tp_size)
        for field in ("path", "config"):
            by_name[field].value = ""
        by_name["gpus"].value = "" if choice.cluster.is_uniform else choice.gpu_text
        by_name["layers"].max = max(_MOST_LAYERS, choice.num_layers)
        by_name["layers"].value = choice.num_layers
        # A slider's limit must not fall below its value, nor its value rise above its limit.
        by_name["pp"].max = max(choice.num_layers, by_name["pp"].value)
        by_name["pp"].value = choice.pp_size
        by_name["pp"].max = choice.num_layers
        by_name["dtype"].value, by_name["kv_dtype"].value = choice.dtype, load.kv_dtype
        by_name["objective"].value = choice.objective
        by_name["split"].value = split
        by_name["memory_utilization"].value = plan.settings.memory_utilization
        for field in ("prompt_tokens", "output_tokens", "concurrency"):
            by_name[field].value = getattr(load, field)
        for field in ("max_model_len", "max_num_batched_tokens", "max_num_seqs"):
            given = getattr(load, field)
            by_name[field].value = "" if given is None else str(given)
            by_name[field].placeholder = str(getattr(plan.settings, field))

    def tell(self, group: str, error: str) -> None:
        """Put a message beside the controls that it is about, and take the others away."""
        for name, message in self.messages.items():
            message.value = error if name == group else ""
        if group == "own" and error:
            self._own.selected_index = 0


def _make_controls() -> dict[str, W.Widget]:
    def common(label: str, tip: str, *, half: bool = False, **more: Any) -> dict[str, Any]:
        layout = W.Layout(width=_HALF if half else "100%", margin="1px 0")
        style = {"description_width": "66px"}
        return {"description": label, "tooltip": tip, "style": style, "layout": layout, **more}

    def text(label: str, tip: str, placeholder: str, **more: Any) -> W.Widget:
        return W.Text(**common(label, tip, placeholder=placeholder, continuous_update=False, **more))

    def number(label: str, tip: str) -> W.Widget:
        return W.BoundedIntText(**common(label, tip, half=True, min=1, max=100_000_000, value=1))

    upload = W.FileUpload(accept=".json", multiple=False, description="upload config.json")
    return {
        "model": W.Dropdown(**common("model", "A model of the catalogue", options=catalogue_names())),
        "layers": W.IntSlider(**common("layers", "How many layers it shall have", min=1, max=_MOST_LAYERS)),
        "dtype": W.Dropdown(
            **common("dtype", "Of activations and unquantized weights", half=True, options=DTYPES)
        ),
        "kv_dtype": W.Dropdown(**common("KV dtype", "Of the KV cache", half=True, options=_KV_DTYPES)),
        "path": text("path", "A config.json or its folder", "config.json or its folder"),
        "config": W.Textarea(
            **common("or paste", "The text of a config.json", rows=3, placeholder='{"architectures": [...]}'),
            continuous_update=False,
        ),
        "upload": upload,
        "gpu": W.Dropdown(**common("GPU", "The device of every stage", options=gpu_names())),
        "times": W.Dropdown(
            **common("times", "What times rest on: data sheet or calibration", options=(DATA_SHEET.label,))
        ),
        "gpus": text("per stage", "One device per stage, by name", "H200, H200, L40S, L40S"),
        "pp": W.IntSlider(**common("pp_size", "Pipeline stages", min=1, max=_MOST_LAYERS)),
        "tp": W.Dropdown(**common("tp_size", "Ranks that share a stage", half=True, options=(1,))),
        "memory_utilization": W.BoundedFloatText(
            **common("memory", "Share of GPU memory that the engine may take", half=True),
            min=0.05,
            max=1.0,
            step=0.01,
            value=0.9,
        ),
        "engine": W.Dropdown(**common("engine", "Who runs it", half=True, options=engine_names())),
        "objective": W.Dropdown(
            **common("objective", "What auto and free stages are chosen for", half=True, options=OBJECTIVES)
        ),
        "prompt_tokens": number("prompt", "prompt_tokens: tokens of each prompt"),
        "output_tokens": number("output", "output_tokens: tokens generated for each request"),
        "concurrency": number("requests", "concurrency: requests served at the same time"),
        "max_model_len": text("max len", "max_model_len: the longest context admitted", "", half=True),
        "max_num_batched_tokens": text(
            "batched", "max_num_batched_tokens: tokens per step, the prefill chunk", "", half=True
        ),
        "max_num_seqs": text("seqs", "max_num_seqs: running requests", "", half=True),
        "split": text(
            "split", "auto, default, layer counts, or * for a free stage", "auto, default or 20,*,*,18"
        ),
    }


def _offer(control: W.Widget, table: tuple[Any, ...], own: Iterable[Any], value: Any) -> None:
    """Let a dropdown offer its table and what the user brought along, and choose ``value``."""
    options = (*table, *dict.fromkeys(item for item in own if item not in table))
    if control.options != options:
        control.options = options
    control.value = value
