"""What was measured on a device, for every later plan: layer times, links, and efficiencies fitted to them.

Layers are known by a digest of their shapes, so layers that compute the same share what was measured,
whatever their model is called.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import TypeVar

from pgplan.codec import from_data, to_data
from pgplan.errors import CalibrationError, HardwareError, PlanError
from pgplan.hardware.calibration_rows import EndReduceTimes, EndTimes, LayerTimes, LinkTimes, ReduceTimes
from pgplan.hardware.gpu import find_gpu

SCHEMA_VERSION = 5
# What the second lacks is what all-reduces add to a layer; the third, how fast the GPU reads; the fourth,
# what communication adds to embedding and head, and shards of a head that sample from the whole vocabulary.
_READABLE = (2, 3, 4, SCHEMA_VERSION)

_Row = TypeVar("_Row", bound=LayerTimes | EndTimes | ReduceTimes | EndReduceTimes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Efficiencies:
    """Hold what share of the data sheet each class of operations reaches.

    Args:
        product, experts, attention, masked_attention, latent: Of the matmul rate: matrix products, those of
            routed experts, fused causal attention, the same over a window, decode attention in the latent
            space of MLA.
        weights, expert_weights, cache, latent_cache, copy: Of the memory bandwidth: reading weights, those
            of routed experts, the KV cache, MLA's; element-wise kernels.
        decode_kernel_s: The shortest time of a kernel in a decode step.
        prefill_kernel_s: The same in a prefill chunk.
    """

    product: float
    experts: float
    attention: float
    masked_attention: float
    latent: float
    weights: float
    expert_weights: float
    cache: float
    latent_cache: float
    copy: float
    decode_kernel_s: float
    prefill_kernel_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """Hold efficiencies that were fitted to measured layers, and how well they explain them.

    Args:
        efficiencies: What was found; classes that decide nowhere are as in the roofline.
        seen: The classes that do decide: what they take is known.
        error: Nine tenths of the points lie closer than this, as a fraction.
        points: How many points there were.
        left_out: Whether ``error`` is that of models which the fit had not seen (each was left out in
            turn); else of those that it was fitted to.
    """

    efficiencies: Efficiencies
    seen: tuple[str, ...]
    error: float
    points: int
    left_out: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """Hold what was measured on one kind of device.

    Args:
        gpu: Its name in the table of GPUs, or ``"CPU"``.
        device: What its driver calls it.
        date: The day of the measurement, ``YYYY-MM-DD``; of several the last.
        environment: Driver and versions.
        models: The models whose layers were measured.
        layers: The times of each kind of layer, for each ``tp_size``.
        ends: Those of embedding and head.
        reduces: What all-reduces add to each kind of layer, for each ``tp_size`` that was run as such.
        end_reduces: What communication adds to embedding and head, the same.
        links: Those of moving tensors; ``None``: measured on one device.
        fit: Efficiencies for other models; ``None``: none were fitted.
        read_bytes_per_s: How fast the GPU (of several their mean) read weights in a product of one row, by
            which GPUs of one kind can be told apart; ``None``: not known.

    >>> empty = Calibration(gpu="CPU", device="CPU", date="2026-11-22", environment={}, models=())
    >>> Calibration.from_json(empty.to_json()) == empty
    True
    """

    gpu: str
    device: str
    date: str
    environment: dict[str, str]
    models: tuple[str, ...]
    layers: tuple[LayerTimes, ...] = ()
    ends: tuple[EndTimes, ...] = ()
    reduces: tuple[ReduceTimes, ...] = ()
    end_reduces: tuple[EndReduceTimes, ...] = ()
    links: LinkTimes | None = None
    fit: Fit | None = None
    read_bytes_per_s: float | None = None

    @property
    def source(self) -> str:
        """Say where and when it was measured, in a few words."""
        versions = [
            f"{name} {self.environment[name]}" for name in ("driver", "torch") if name in self.environment
        ]
        rate = self.read_bytes_per_s
        device = self.device if rate is None else f"{self.device} (reads {rate / 1e12:.2f} TB/s)"
        return ", ".join([device, *versions, self.date])

    def layer(self, digest: str, *, tp_size: int) -> LayerTimes | None:
        """Return the times of a kind of layer, if it was measured."""
        return _of(self.layers, digest, tp_size)

    def end(self, digest: str, *, tp_size: int) -> EndTimes | None:
        """Return the times of embedding and head, if they were measured."""
        return _of(self.ends, digest, tp_size)

    def reduce(self, digest: str, *, tp_size: int) -> ReduceTimes | None:
        """Return what all-reduces add to a kind of layer, if it was measured."""
        return _of(self.reduces, digest, tp_size)

    def end_reduce(self, digest: str, *, tp_size: int) -> EndReduceTimes | None:
        """Return what communication adds to embedding and head, if it was measured."""
        return _of(self.end_reduces, digest, tp_size)

    def merge(self, other: Calibration) -> Calibration:
        """Add what ``other`` measured; where both did, ``other`` holds. The fit must be made anew.

        Raises:
            CalibrationError: If they are of different devices.
        """
        if other.gpu != self.gpu:
            raise CalibrationError(
                f"calibrations of one device can be merged, got {self.gpu} and {other.gpu}; "
                "keep a file for each"
            )
        return replace(
            other,
            date=max(self.date, other.date),
            models=tuple(dict.fromkeys((*self.models, *other.models))),
            layers=_joined(self.layers, other.layers),
            ends=_joined(self.ends, other.ends),
            reduces=_joined(self.reduces, other.reduces),
            end_reduces=_joined(self.end_reduces, other.end_reduces),
            links=other.links or self.links,
            fit=None,
            read_bytes_per_s=other.read_bytes_per_s or self.read_bytes_per_s,
        )

    def to_json(self) -> str:
        """Return it as a JSON document."""
        return json.dumps({"schema_version": SCHEMA_VERSION, **to_data(self)}, indent=1)

    @classmethod
    def from_json(cls, text: str) -> Calibration:
        """Read a calibration back.

        Raises:
            CalibrationError: If the text is not one that this version can read; says where and why.
        """
        try:
            data = json.loads(text)
            version = data.pop("schema_version")
            if not {"gpu", "models"} <= data.keys():
                raise KeyError("another document")
        except (ValueError, KeyError, TypeError, AttributeError):
            raise CalibrationError(
                "a calibration must be the JSON that 'pgplan calibrate -o' wrote, and is not; "
                "give another file, or calibrate again"
            ) from None
        if version not in _READABLE:
            raise CalibrationError(
                f"calibration has schema_version {version!r} and this pgplan reads up to {SCHEMA_VERSION}; "
                "calibrate again"
            )
        try:
            found = from_data(cls, data, where="calibration")
            if version < 5:
                found = replace(found, ends=tuple(row for row in found.ends if row.tp_size == 1))
            return found
        except CalibrationError:
            raise
        except PlanError as error:
            raise CalibrationError(str(error)) from None

    def save(self, path: str | Path) -> None:
        """Write it beside ``path`` and move it there, so that no half of it is ever read."""
        target = Path(path).resolve()
        part = target.with_name(f".{target.name}.{os.getpid()}.part")
        try:
            part.write_text(f"{self.to_json()}\n", encoding="utf-8")
            part.replace(target)
        except OSError as error:
            raise CalibrationError(
                f"a calibration goes to a file that can be written, which {path} is not: {error.strerror}; "
                "give another path"
            ) from None
        finally:
            part.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | Path) -> Calibration:
        """Read what ``save`` wrote; raises CalibrationError if it cannot."""
        try:
            return cls.from_json(Path(path).read_text(encoding="utf-8"))
        except CalibrationError as error:
            raise CalibrationError(f"{path} cannot be read: {error}") from None
        except (OSError, UnicodeDecodeError) as error:
            raise CalibrationError(
                f"a calibration must be a readable file, which {path} is not ({error}); give another path"
            ) from None


def find_calibration(name: str | Path) -> Calibration:
    """Return the calibration in a file, or the one that ships with pgplan for a GPU.

    Args:
        name: A path that ends in ``.json``, or a GPU's name as ``find_gpu`` takes it.

    Raises:
        CalibrationError: If there is no such file, or none ships for that GPU.
    """
    if isinstance(name, Path) or name.endswith(".json") or Path(name).is_file():
        return Calibration.load(name)
    shipped = dict(_shipped())
    try:
        wanted = find_gpu(name).name
    except HardwareError:
        wanted = name
    if wanted in shipped:
        return Calibration.from_json(shipped[wanted])
    known = ", ".join(shipped) or "none yet"
    raise CalibrationError(
        f"calibration {name!r} is neither a file nor one that ships with pgplan ({known}); "
        "make one with 'pgplan calibrate MODEL -o FILE.json'"
    )


def _of(rows: Iterable[_Row], digest: str, tp_size: int) -> _Row | None:
    return next((row for row in rows if (row.digest, row.tp_size) == (digest, tp_size)), None)


def _joined(known: Iterable[_Row], new: Iterable[_Row]) -> tuple[_Row, ...]:
    """Put rows together; of what both have, the new one holds."""
    rows: dict[tuple[str, int], _Row] = {}
    for row in (*known, *new):
        rows[row.digest, row.tp_size] = row
    return tuple(rows.values())


def _shipped() -> Iterable[tuple[str, str]]:
    folder = files("pgplan.hardware").joinpath("calibrations")
    for entry in sorted(folder.iterdir() if folder.is_dir() else (), key=lambda entry: entry.name):
        if entry.name.endswith(".json"):
            text = entry.read_text(encoding="utf-8")
            yield json.loads(text)["gpu"], text
