"""What a planner's times rest on: the data sheet, or a calibration and how to name it again."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from pgplan.errors import CalibrationError
from pgplan.hardware import GPU, Calibration, find_calibration


@dataclass(frozen=True, slots=True, kw_only=True)
class Basis:
    """Say what times rest on, so that it can be offered by name and written as code.

    Args:
        label: Its name among the choices.
        calibration: What was measured; ``None``: the data sheet.
        argument: What ``find_calibration`` takes for it, a GPU's name or a path; ``None``: it was brought
            along as an object.
    """

    label: str
    calibration: Calibration | None
    argument: str | None = None

    @classmethod
    def of(cls, given: Calibration | str | Path | None) -> Basis:
        """Return the basis that a user names or brings along; a path is kept so that it holds anywhere.

        Raises:
            CalibrationError: If there is no such file, or none ships for that GPU.

        >>> Basis.of("h200").label, Basis.of(None) is DATA_SHEET
        ('calibrated, H200 SXM 141GB', True)
        """
        if given is None:
            return DATA_SHEET
        calibration = given if isinstance(given, Calibration) else find_calibration(given)
        known = shipped(calibration.gpu)
        if known is not None and known.calibration == calibration:
            return known
        if isinstance(given, Calibration):
            return cls(label=f"calibrated, {given.source}", calibration=given)
        path = Path(given).resolve()
        return cls(label=f"calibrated, {path.name}", calibration=calibration, argument=str(path))

    def fits(self, gpus: Iterable[GPU]) -> bool:
        """Tell whether it says something of any of these devices."""
        return self.calibration is None or any(gpu.name == self.calibration.gpu for gpu in gpus)


DATA_SHEET = Basis(label="data sheet", calibration=None)


@lru_cache(maxsize=64)
def shipped(gpu: str) -> Basis | None:
    """Return the calibration that ships with pgplan for a GPU, if one does."""
    try:
        calibration = find_calibration(gpu)
    except CalibrationError:
        return None
    return Basis(label=f"calibrated, {gpu}", calibration=calibration, argument=gpu)


def offered(gpus: Iterable[GPU], brought: Iterable[Basis]) -> tuple[Basis, ...]:
    """Return what times on these devices can rest on: the data sheet, what ships, what the user brought."""
    gpus = tuple(dict.fromkeys(gpus))
    known = [shipped(gpu.name) for gpu in gpus]
    found = [DATA_SHEET, *(basis for basis in known if basis is not None), *brought]
    return tuple({basis.label: basis for basis in found if basis.fits(gpus)}.values())
