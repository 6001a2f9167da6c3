"""Fetch the files of other programs that exports are tested against: ``python tests/fetch_consumers.py``.

pip says where each pinned release lies; nothing is installed, and none of it is kept in the repository. Of a
wheel only the wanted files are read, through ranges of bytes: some 300 kB of vLLM's 336 MB. A source archive
is small and read whole. They end in ``consumers/`` of the Python environment, where ``consumers.py`` finds
them; what is there already is not fetched again.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import subprocess
import sys
import tarfile
import urllib.request
import zipfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatch
from pathlib import Path

FOLDER = Path(sys.prefix) / "consumers"

# Releases, and what of them the tests run or read; a star stands for any number of folders as well.
CONSUMERS: dict[str, tuple[str, ...]] = {
    "vllm==0.33.0": (
        "vllm/distributed/utils.py",
        "vllm/envs.py",
        "vllm/config/cache.py",
        "vllm/engine/arg_utils.py",
        "vllm/entrypoints/common/cli_args.py",
        "vllm/v1/core/kv_cache_utils.py",
        "vllm/v1/worker/gpu_worker.py",
        "vllm/v1/worker/gpu/model_runner.py",
    ),
    "sglang==0.5.23": (
        "sglang/srt/distributed/utils.py",
        "sglang/srt/arg_groups/fields/*.py",
        "sglang/srt/arg_groups/memory_hook.py",
        "sglang/srt/managers/scheduler.py",
        "sglang/srt/mem_cache/memory_pool.py",
        "sglang/srt/mem_cache/swa_memory_pool.py",
        "sglang/srt/model_executor/model_runner.py",
        "sglang/srt/model_executor/model_runner_components/cuda_graph_setup.py",
        "sglang/srt/model_executor/model_runner_components/kv_pool_runtime.py",
    ),
    "mlx-lm==0.32.2": ("mlx_lm/models/pipeline.py",),
    "petals==2.2.0.post1": ("petals/cli/run_server.py", "petals/server/server.py"),
    "megatron-core==0.16.1": (
        "megatron/core/model_parallel_config.py",
        "megatron/core/transformer/enums.py",
        "megatron/core/transformer/pipeline_parallel_layer_layout.py",
        "megatron/core/transformer/transformer_block.py",
        "megatron/core/transformer/transformer_config.py",
    ),
    "deepspeed==0.19.8": ("deepspeed/runtime/pipe/module.py", "deepspeed/runtime/utils.py"),
    "torchtitan==0.3.0": ("torchtitan/distributed/pipeline_parallel.py", "torchtitan/config/configs.py"),
    "colossalai==0.5.0": (
        "colossalai/pipeline/stage_manager.py",
        "colossalai/booster/plugin/hybrid_parallel_plugin.py",
    ),
    "torchgpipe==0.0.7": ("torchgpipe/*",),
    "fairscale==0.4.13": ("fairscale/*",),
    "hetu-galvatron==2.4.0": (
        "galvatron/core/runtime/hybrid_parallel_config.py",
        "galvatron/utils/config_utils.py",
    ),
}


class RemoteFile(io.RawIOBase):
    """Read a file on a server in parts, as ``zipfile`` asks for them."""

    def __init__(self, url: str) -> None:
        self._url, self._position = url, 0
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD")) as answer:
            self._size = int(answer.headers["Content-Length"])

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = offset + (0, self._position, self._size)[whence]
        return self._position

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        stop = min(self._position + len(buffer), self._size)
        if stop <= self._position:
            return 0
        span = {"Range": f"bytes={self._position}-{stop - 1}"}
        with urllib.request.urlopen(urllib.request.Request(self._url, headers=span)) as answer:
            if answer.status != 206:
                raise OSError("the server does not answer ranges")
            data = answer.read()
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)


def locate(release: str) -> tuple[str, str]:
    """Ask pip where a release lies; returns address and SHA-256."""
    words = "-m pip install --dry-run --no-deps --ignore-installed --quiet --retries 1 --report -"
    words += " --use-feature=fast-deps"
    done = subprocess.run(
        [sys.executable, *words.split(), release], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise OSError(done.stderr.strip().splitlines()[-1])
    found = json.loads(done.stdout)["install"][0]["download_info"]
    return found["url"], found["archive_info"]["hashes"]["sha256"]


def wanted(names: Sequence[str], patterns: Sequence[str]) -> list[str]:
    """Return the names that the patterns mean; each must mean one."""
    found = [name for name in names if any(fnmatch(name, pattern) for pattern in patterns)]
    for pattern in patterns:
        if not any(fnmatch(name, pattern) for name in found):
            raise OSError(f"it has no {pattern}")
    return [name for name in found if not name.endswith("/")]


def contents(url: str, sha256: str, patterns: Sequence[str]) -> Iterator[tuple[str, bytes]]:
    """Yield the wanted files of a wheel or a source archive."""
    if url.endswith(".whl"):
        with zipfile.ZipFile(io.BufferedReader(RemoteFile(url), 1 << 16)) as wheel:
            for name in wanted(wheel.namelist(), patterns):
                yield name, wheel.read(name)
        return
    with urllib.request.urlopen(url) as answer:
        data = answer.read()
    if hashlib.sha256(data).hexdigest() != sha256:
        raise OSError("what was sent is not what pip knows of")
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        # Its files lie below one folder that is named after the release.
        files = {member.name.partition("/")[2]: member for member in archive if member.isfile()}
        for name in wanted(list(files), patterns):
            stream = archive.extractfile(files[name])
            yield name, stream.read() if stream else b""


def fetch(release: str) -> str:
    """Put the files of a release into its folder, all or none; returns what to report."""
    folder, patterns = FOLDER / release, CONSUMERS[release]
    if (folder / ".wanted").is_file() and (folder / ".wanted").read_text() == "\n".join(patterns):
        return ""
    partial = folder.with_name(f".{release}")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        size = 0
        for name, data in contents(*locate(release), patterns):
            (partial / name).parent.mkdir(parents=True, exist_ok=True)
            size += (partial / name).write_bytes(data)
    except (OSError, zipfile.BadZipFile, tarfile.TarError) as error:
        return f"{release}: not fetched, its tests are skipped: {error}"
    (partial / ".wanted").write_text("\n".join(patterns))
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    return f"{release}: {size / 1e3:,.0f} kB"


if __name__ == "__main__":
    with ThreadPoolExecutor(4) as pool:
        for line in pool.map(fetch, CONSUMERS):
            if line:
                print(f"consumers: {line}", flush=True)
