from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgplan.distributed import divide, ensure_divisibility, sched_yield, split_tensor_along_last_dim
from pgplan.errors import DivisibilityError, GroupError

torch = pytest.importorskip("torch")


@given(st.integers(1, 6), st.integers(1, 5), st.integers(1, 4), st.booleans())
def test_the_parts_are_equal_and_make_up_the_whole(
    parts: int, width: int, rows: int, contiguous: bool
) -> None:
    whole = torch.arange(rows * parts * width).view(rows, parts * width)
    split = split_tensor_along_last_dim(whole, parts, contiguous_split_chunks=contiguous)
    assert [tuple(part.shape) for part in split] == [(rows, width)] * parts
    assert torch.equal(torch.cat(split, dim=-1), whole)
    assert all(part.is_contiguous() for part in split) or not contiguous
    # Views share the whole's memory, copies do not.
    shared = split[-1].untyped_storage().data_ptr() == whole.untyped_storage().data_ptr()
    assert shared or contiguous


def test_what_does_not_divide_is_refused_as_vllm_does() -> None:
    for kind in (DivisibilityError, ValueError, AssertionError):
        with pytest.raises(kind, match="7 is not divisible by 2"):
            split_tensor_along_last_dim(torch.zeros(1, 7), 2)
    with pytest.raises(DivisibilityError, match="4 is not divisible by 0"):
        divide(4, 0)
    ensure_divisibility(12, 4)
    sched_yield()


def test_scatter_says_what_a_rank_has_to_give() -> None:
    from types import SimpleNamespace
    from typing import Any

    from pgplan.distributed import scatter_along_last_dim

    group: Any = SimpleNamespace(rank=0, size=2)
    with pytest.raises(GroupError, match="every rank gives the whole tensor"):
        scatter_along_last_dim(None, group)
    with pytest.raises(GroupError, match="rank 1 alone the tensor"):
        scatter_along_last_dim(torch.zeros(2), group, src=1, out=torch.zeros(1))


def test_the_arithmetic_needs_no_torch() -> None:
    program = (
        "import sys\n"
        "from pgplan.distributed.tensor_split import USE_SCHED_YIELD, divide, sched_yield\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, env={"PYTHONPATH": ":".join(sys.path)})
