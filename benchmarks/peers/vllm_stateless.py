"""Load vLLM's own ``vllm/distributed/utils.py`` from a file, without the rest of vLLM.

The file is not part of this project. It is in the vLLM wheel; the results kept here are from 0.33.0. Only
what the file imports from vLLM is replaced: its environment variables, its logger and two helpers that the
stateless group does not depend on.
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import sys
import types
from contextlib import nullcontext
from pathlib import Path


def load(path: str | Path) -> types.ModuleType:
    """Return vLLM's module, run from ``path``; its classes are vLLM's, unchanged."""
    if "vllm" in sys.modules:
        return sys.modules["vllm.distributed.utils"]
    stubs = {
        "vllm": {},
        "vllm.envs": {"VLLM_PP_LAYER_PARTITION": None},
        "vllm.logger": {"init_logger": logging.getLogger},
        "vllm.utils": {},
        "vllm.utils.network_utils": {"get_tcp_uri": lambda host, port: f"tcp://{host}:{port}"},
        "vllm.utils.system_utils": {"suppress_stdout": nullcontext},
        "vllm.distributed": {},
    }
    for name, content in stubs.items():
        module = types.ModuleType(name)
        vars(module).update(content)
        sys.modules[name] = module
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], child, module)
    spec = importlib.util.spec_from_file_location("vllm.distributed.utils", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules["vllm.distributed.utils"] = module
    spec.loader.exec_module(module)
    return module


def digest(path: str | Path) -> str:
    """Return the MD5 of the file, to say which one was measured (0.33.0: 48f2cc3f...)."""
    return hashlib.md5(Path(path).read_bytes()).hexdigest()


def free(group: object) -> None:
    """Delete what the group has sent, which vLLM itself does an hour later, so that memory stays bounded."""
    entries, store = group.entries, group.store  # type: ignore[attr-defined]
    while entries:
        store.delete_key(entries.popleft()[0])
