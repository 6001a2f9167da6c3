"""The planner: choose a model, GPUs, an engine and a split, and see at once what every stage holds.

The picture is one SVG string in one ``HTML`` widget, which redraws within a frame; no ``Output``, no
``interact``, no debouncing (the front end already sends only the latest value). It runs in every front end
that has ipywidgets.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from html import escape
from pathlib import Path
from typing import Any, cast

import ipywidgets as W
import traitlets

from pgplan.engines import engine_names
from pgplan.errors import PgplanError
from pgplan.hardware import Cluster, gpu_names
from pgplan.model import catalogue_names, load_model
from pgplan.model.spec import ModelSpec
from pgplan.planning import OBJECTIVES, Objective, Plan
from pgplan.view import plan_svg
from pgplan.widgets.choice import Choice, Known, edit
from pgplan.workload import Workload

_DEFAULT_GPU = "H200 SXM 141GB"
_PICTURE_WIDTH = 900
_MOST_LAYERS = 256
_STYLE = {"description_width": "70px"}
# A message stands below the controls that it is about.
_GROUPS: dict[str, tuple[str, ...]] = {
    "model": ("model", "path", "layers"),
    "cluster": ("gpu", "gpus", "pp", "tp"),
    "engine": ("engine", "objective"),
    "split": ("split",),
}
_GROUP_OF = {field: group for group, fields in _GROUPS.items() for field in fields}


class Planner(W.HBox):  # type: ignore[misc]  # ipywidgets has no types
    """Plan interactively; ``planner.plan`` is the plan on display and may be assigned.

    Args:
        model: A catalogue name, a path to a ``config.json`` or its folder, a dict, or a loaded model.
        cluster: The GPUs; default: four H200.
        workload: What is served.
        engine: Who runs it.
        split: ``"auto"``, ``"default"``, or layer counts as text, with ``*`` for free stages.
        objective: What ``"auto"`` and free stages are chosen for.

    Raises:
        PgplanError: If these cannot be planned at all.

    >>> planner = Planner("llama-3.1-8b")
    >>> planner.controls["pp"].value = 2
    >>> planner.plan.pp_size
    2
    >>> planner.close()
    """

    plan = traitlets.Instance(Plan, help="The plan on display; assigning one redraws.")

    def __init__(
        self,
        model: ModelSpec | str | Path | Mapping[str, object] = "llama-3.1-70b",
        cluster: Cluster | None = None,
        *,
        workload: Workload | None = None,
        engine: str = "vllm",
        split: str = "auto",
        objective: Objective = "decode",
    ) -> None:
        spec = model if isinstance(model, ModelSpec) else load_model(model)
        given = cluster or Cluster.uniform(_DEFAULT_GPU, pp_size=min(4, spec.num_layers))
        choice = Choice(
            base=spec,
            num_layers=spec.num_layers,
            gpus=given.gpus,
            tp_size=given.tp_size,
            link=given.link,
            engine=engine,
            objective=objective,
            split=split,
            workload=workload or Workload(),
        )
        first = choice.plan()
        self._choice = choice
        self._models = {spec.name: spec}
        self._gpus = {gpu.name: gpu for gpu in given.gpus}
        self._is_syncing = False
        self._unread_split = ""
        self.controls = _make_controls()
        self.messages = {group: W.HTML() for group in _GROUPS}
        self.status, self.html, self.export_html = W.HTML(), W.HTML(), W.HTML()
        super().__init__(
            children=[_left(self.controls, self.messages, self.status), _right(self.html, self.export_html)],
            layout=W.Layout(flex_flow="row wrap", align_items="flex-start"),
        )
        self._show(first)
        for field, control in self.controls.items():
            control.observe(lambda change, field=field: self._edited(field, change["new"]), names="value")
        self.observe(lambda change: self._assigned(change["new"]), names="plan")

    def close(self) -> None:
        """Close this planner and every widget that it is made of."""
        for widget in list(_parts(self)):
            if widget is not self:
                widget.close()
        super().close()

    def __repr__(self) -> str:
        # What stands in a notebook wherever widgets cannot be shown.
        return f"<Planner showing {self.plan!r}>"

    # --- from the controls to the plan ----------------------------------------------------------------

    def _edited(self, field: str, value: Any) -> None:
        """Answer a change that the user made in a control."""
        if self._is_syncing:
            return
        field = {"path": "model", "gpus": "gpu"}.get(field, field)
        if field in ("model", "gpu") and not value.strip():
            return
        if field == "split":
            self._unread_split = ""
        known = Known(models=self._models, gpus=self._gpus)
        try:
            choice, moves = edit(self._choice, field, value, known)
            choice, result = self._planned(choice)
        except PgplanError as error:
            if field == "split":
                self._unread_split = value
            self._tell(_GROUP_OF[field], str(error))
            return
        self._choice = choice
        self._models.setdefault(choice.base.name, choice.base)
        self._show(result, moves)

    def _planned(self, choice: Choice) -> tuple[Choice, Plan]:
        """Plan, with the split that could not be used before if it can be used now."""
        if self._unread_split:
            waiting, _ = edit(choice, "split", self._unread_split, Known(models={}, gpus={}))
            try:
                result = waiting.plan()
            except PgplanError:
                pass
            else:
                self._unread_split = ""
                return waiting, result
        return choice, choice.plan()

    def _assigned(self, plan: Plan) -> None:
        """Answer a plan that was assigned from Python."""
        if self._is_syncing:
            return
        self._choice = Choice.from_plan(plan)
        self._models.setdefault(plan.model.name, plan.model)
        self._gpus.update({gpu.name: gpu for gpu in plan.cluster.gpus})
        self._unread_split = ""
        self._show(plan)

    # --- from the plan to the screen ------------------------------------------------------------------

    def _show(self, plan: Plan, moves: tuple[str, ...] = ()) -> None:
        """Draw a plan and let every control say what it was made from."""
        with self._syncing():
            self._sync_controls()
            for group, message in self.messages.items():
                if group != "split" or not self._unread_split:
                    message.value = ""
            self.status.value = _spoken("status", ". ".join(moves))
            self.html.value = plan_svg(plan, width=_PICTURE_WIDTH)
            self.export_html.value = _export_html(plan)
            self.plan = plan

    def _sync_controls(self) -> None:
        choice, controls = self._choice, self.controls
        _offer(controls["model"], catalogue_names(), tuple(self._models), choice.base.name)
        _offer(controls["gpu"], gpu_names(), (choice.gpu_text,), choice.gpu_text)
        _offer(controls["engine"], engine_names(), (choice.engine,), choice.engine)
        _offer(controls["tp"], choice.tp_sizes, (), choice.tp_size)
        controls["path"].value = ""
        controls["gpus"].value = "" if len({gpu.name for gpu in choice.gpus}) == 1 else choice.gpu_text
        controls["layers"].max = max(_MOST_LAYERS, choice.num_layers)
        controls["layers"].value = choice.num_layers
        controls["pp"].max = choice.num_layers
        controls["pp"].value = choice.pp_size
        controls["objective"].value = choice.objective
        controls["split"].value = self._unread_split or choice.split

    def _tell(self, group: str, error: str) -> None:
        self.status.value = ""
        self.messages[group].value = _spoken("alert", error)

    @contextmanager
    def _syncing(self) -> Iterator[None]:
        """Keep the planner from answering the changes that it makes itself."""
        self._is_syncing = True
        try:
            yield
        finally:
            self._is_syncing = False


def _make_controls() -> dict[str, W.Widget]:
    def common(label: str, **more: Any) -> dict[str, Any]:
        return {"description": label, "style": dict(_STYLE), "layout": W.Layout(width="98%"), **more}

    def text(label: str, placeholder: str) -> W.Widget:
        return W.Text(**common(label, placeholder=placeholder, continuous_update=False))

    return {
        "model": W.Dropdown(**common("model", options=catalogue_names())),
        "path": text("or path", "config.json or its folder"),
        "layers": W.IntSlider(**common("layers", min=1, max=_MOST_LAYERS)),
        "gpu": W.Dropdown(**common("GPU", options=gpu_names())),
        "gpus": text("per stage", "H200, H200, L40S, L40S"),
        "pp": W.IntSlider(**common("pp_size", min=1, max=_MOST_LAYERS)),
        "tp": W.Dropdown(**common("tp_size", options=(1,))),
        "engine": W.Dropdown(**common("engine", options=engine_names())),
        "objective": W.Dropdown(**common("objective", options=OBJECTIVES)),
        "split": text("split", "auto, default, 20,21,21,18 or 20,*,*,18"),
    }


def _left(controls: dict[str, W.Widget], messages: dict[str, W.Widget], status: W.Widget) -> W.Widget:
    rows = []
    for group, fields in _GROUPS.items():
        rows += [*(controls[field] for field in fields), messages[group]]
    return W.VBox([*rows, status], layout=W.Layout(flex="0 1 290px", min_width="250px"))


def _right(*rows: W.Widget) -> W.Widget:
    return W.VBox(list(rows), layout=W.Layout(flex="1 1 560px", min_width="0"))


def _offer(control: W.Widget, table: tuple[Any, ...], own: tuple[Any, ...], value: Any) -> None:
    """Let a dropdown offer its table and what the user brought along, and choose ``value``."""
    options = (*table, *(item for item in own if item not in table))
    if control.options != options:
        control.options = options
    control.value = value


def _export_html(plan: Plan) -> str:
    try:
        words = plan.export()
    except PgplanError as error:
        return _spoken("status", str(error))
    return (
        '<pre tabindex="0" aria-label="export" '
        f'style="user-select:text;white-space:pre-wrap;line-height:1.35">{escape(words)}</pre>'
    )


def _spoken(role: str, words: str) -> str:
    """Return a message that screen readers announce when it appears."""
    if not words:
        return ""
    live = "assertive" if role == "alert" else "polite"
    mark = "⚠ " if role == "alert" else ""
    return (
        f'<div role="{role}" aria-live="{live}" style="line-height:1.35;white-space:normal;'
        f'border-left:3px solid #D55E00;padding-left:6px">{mark}{escape(words)}</div>'
    )


def _parts(widget: W.Widget) -> Iterator[W.Widget]:
    """Yield a widget, everything in it, and the models of their layout and style."""
    for child in getattr(widget, "children", ()):
        yield from _parts(child)
    for name in ("layout", "style"):
        model = getattr(widget, name, None)
        if isinstance(model, W.Widget):
            yield cast(W.Widget, model)
    yield widget
