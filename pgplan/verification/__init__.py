"""The stage as real tensors, the measurements, and the comparison with the plan."""

from pgplan.verification.api import verify
from pgplan.verification.calibrating import calibrate
from pgplan.verification.figures import FlowMeasurement, Spread, StageMeasurement
from pgplan.verification.record import Comparison, Verification

__all__ = [
    "Comparison",
    "FlowMeasurement",
    "Spread",
    "StageMeasurement",
    "Verification",
    "calibrate",
    "verify",
]
