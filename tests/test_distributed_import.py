"""What importing pgplan.distributed gives, and what it does not load."""

from __future__ import annotations

import subprocess
import sys

import pytest

import pgplan.distributed as distributed
from pgplan.distributed import basics
from pgplan.errors import DivisibilityError


def test_every_exported_name_can_be_had() -> None:
    for name in distributed.__all__:
        assert getattr(distributed, name) is not None
        assert name in dir(distributed)
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = distributed.no_such_name


def test_the_names_that_move_no_tensors_load_neither_torch_nor_numpy() -> None:
    program = (
        "import sys, pgplan.distributed as d\n"
        "assert not [m for m in sys.modules if m.startswith('pgplan.distributed.')]\n"
        "d.StatelessProcessGroup, d.socket_mesh, d.divide, d.get_pp_indices, d.register, d.new_token\n"
        "print([m for m in ('torch', 'numpy', 'pandas') if m in sys.modules])"
    )
    output = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout
    assert output == "[]\n"


@pytest.mark.parametrize(("numerator", "denominator"), [(7, 2), (1, 0), (4, -2)])
def test_what_does_not_divide_is_both_errors(numerator: int, denominator: int) -> None:
    for error in (ValueError, AssertionError, DivisibilityError):
        with pytest.raises(error, match=f"{numerator} is not divisible by {denominator}"):
            basics.ensure_divisibility(numerator, denominator)
    assert basics.divide(12, 4) == 3
