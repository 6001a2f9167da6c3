"""The split and its stages as plain JSON, YAML or CSV, for programs of one's own."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from pgplan.engines.exporter import Exporter, find_setting, listed
from pgplan.errors import EngineError

if TYPE_CHECKING:
    from pgplan.planning.record import Plan


class PlainJSON(Exporter):
    """Write a JSON document with the split and one object per stage."""

    name = "json"
    title = "JSON"
    default_version = "1"
    writes = "a document"
    syntax = '"split": [a, b, c]'
    checked = "Python's json"

    def export(self, plan: Plan) -> str:
        """Return the document."""
        return json.dumps({**_summary(plan), "stages": stage_rows(plan)}, indent=1) + "\n"

    def find_split(self, text: str, *, num_layers: int, pp_size: int) -> Sequence[int | str] | None:
        """Read ``split``, of this document or of a whole plan."""
        del num_layers, pp_size
        try:
            data = json.loads(text)
        except json.JSONDecodeError as error:
            raise EngineError(
                f"the text must be JSON, but line {error.lineno} is not: {error.msg}; mend it"
            ) from None
        split = data.get("split") if isinstance(data, dict) else None
        return split if isinstance(split, list) else None


class PlainYAML(Exporter):
    """Write a YAML document with the split and one mapping per stage."""

    name = "yaml"
    title = "YAML"
    default_version = "1.2"
    writes = "a document"
    syntax = "split: [a, b, c]"
    checked = "PyYAML 6.0.3"

    def export(self, plan: Plan) -> str:
        """Return the document."""
        # JSON's strings, numbers and lists in one line are YAML's too.
        lines = [self.header(plan), *(f"{key}: {json.dumps(value)}" for key, value in _summary(plan).items())]
        lines.append("stages:")
        for row in stage_rows(plan):
            fields = [f"{key}: {json.dumps(value)}" for key, value in row.items()]
            lines += [f"- {fields[0]}", *(f"  {field}" for field in fields[1:])]
        return "\n".join(lines) + "\n"

    def find_split(self, text: str, *, num_layers: int, pp_size: int) -> Sequence[int | str] | None:
        """Read ``split``, written as one list in brackets."""
        del num_layers, pp_size
        given = find_setting(text, "split")
        return None if given is None else listed(given)


class PlainCSV(Exporter):
    """Write a table with one row per stage."""

    name = "csv"
    title = "CSV"
    default_version = "1"
    writes = "a table"
    syntax = "a column named layers"
    checked = "Python's csv"

    def export(self, plan: Plan) -> str:
        """Return the table."""
        rows = stage_rows(plan)
        out = io.StringIO()
        writer = csv.DictWriter(out, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return out.getvalue()

    def find_split(self, text: str, *, num_layers: int, pp_size: int) -> Sequence[int | str] | None:
        """Read the column ``layers``."""
        del num_layers, pp_size
        rows = list(csv.DictReader(io.StringIO(text)))
        if not rows or "layers" not in rows[0]:
            return None
        return [row["layers"] for row in rows]


def stage_rows(plan: Plan) -> list[dict[str, Any]]:
    """Return the stages as plain rows."""
    stops = accumulate(plan.split)
    return [
        {
            "stage": stage,
            "start": stop - layers,
            "stop": stop,
            "layers": layers,
            "gpu": gpu.name,
        }
        for stage, (layers, stop, gpu) in enumerate(zip(plan.split, stops, plan.cluster.gpus, strict=True))
    ]


def _summary(plan: Plan) -> dict[str, Any]:
    return {
        "model": plan.model.name,
        "num_layers": plan.model.num_layers,
        "engine": plan.engine,
        "pp_size": len(plan.split),
        "tp_size": plan.tp_size,
        "split": list(plan.split),
    }
