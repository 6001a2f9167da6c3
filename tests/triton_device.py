"""Where Triton's kernels are tested: on a GPU, or in Triton's interpreter where there is none.

Import it before any kernel; without Triton the importing module is skipped.
"""

from __future__ import annotations

import os

import pytest
import torch

if not torch.cuda.is_available():
    # It is read when the kernels are imported.
    os.environ["TRITON_INTERPRET"] = "1"
pytest.importorskip("triton")

without_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
with_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="the interpreter stands in for a GPU")
on_a_gpu = pytest.param("cuda", marks=[pytest.mark.gpu, without_gpu])
devices = pytest.mark.parametrize("device", [pytest.param("cpu", marks=with_gpu), on_a_gpu])
