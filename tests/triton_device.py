"""Where Triton's kernels are tested: on a GPU, or in Triton's interpreter where there is none.

Import it before any kernel; without Triton the importing module is skipped.
"""

from __future__ import annotations

import os
from typing import Any

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


@pytest.fixture(autouse=True)
def whole_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let Triton 3.6's interpreter loop under NumPy 2.4, for which an array of one number is no number."""
    from triton.runtime import interpreter

    patch = interpreter._patch_lang_tensor

    def patch_further(tensor: type, scope: Any) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    monkeypatch.setattr(interpreter, "_patch_lang_tensor", patch_further)
