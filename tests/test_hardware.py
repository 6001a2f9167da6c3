"""The GPU table, forgiving look-up, clusters and links."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable

import pytest

import pgplan as pg
from pgplan.hardware import own_link

GIB = 1 << 30


def test_the_table_has_all_devices_with_sane_figures() -> None:
    assert len(pg.gpu_names()) == 41
    for name in pg.gpu_names():
        gpu = pg.find_gpu(name)
        assert gpu.name == name and gpu.source
        assert gpu.confidence in ("high", "medium", "low")
        assert 8e9 < gpu.memory_bytes < 320e9
        assert 2e11 < gpu.bandwidth < 1e13
        assert 0.4 < gpu.matmul_reach < 1 and 0.4 < gpu.stream_reach < 1
        # A rate of the sparse data-sheet figure would be twice that of the format twice as wide.
        assert not gpu.fp8 or gpu.fp8 <= 2.1 * max(gpu.bf16, gpu.fp16)


def test_the_h200_is_what_cuda_reports() -> None:
    gpu = pg.find_gpu("H200")
    assert gpu.memory_bytes == 150_109_880_320 and gpu.memory_is_exact
    assert gpu.bandwidth == 4.8e12 and gpu.bf16 == 989e12 and gpu.pair_bandwidth == 450e9


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("H200", "H200 SXM 141GB"),
        ("h200-sxm", "H200 SXM 141GB"),
        ("NVIDIA H200", "H200 SXM 141GB"),
        ("NVIDIA A100-SXM4-80GB", "A100 80GB SXM4"),
        ("NVIDIA H100 80GB HBM3", "H100 SXM5 80GB"),
        ("l40s", "L40S"),
        ("L4", "L4"),
        ("rtx4090", "GeForce RTX 4090"),
        ("NVIDIA GeForce RTX 4090", "GeForce RTX 4090"),
        ("mi300x", "MI300X"),
    ],
)
def test_spelling_is_forgiven(spelling: str, name: str) -> None:
    assert pg.find_gpu(spelling).name == name


def test_ambiguity_is_not_forgiven() -> None:
    with pytest.raises(
        pg.HardwareError, match="may mean 'H100 PCIe 80GB', 'H100 SXM5 80GB', 'H100 NVL 94GB'"
    ):
        pg.find_gpu("H100")


def test_unknown_devices_name_what_is_near() -> None:
    with pytest.raises(pg.HardwareError, match="'H300' is not in the table; near are"):
        pg.find_gpu("H300")
    with pytest.raises(pg.HardwareError, match="needs a name"):
        pg.find_gpu("  ")


def test_nominal_memory_is_taken_at_its_lower_end_and_marked() -> None:
    a100 = pg.find_gpu("A100 80GB SXM4")
    # torch reports 85.1e9 bytes on such a board: inside what is stated.
    assert a100.memory_bytes < 85.1e9 < a100.memory_bytes * (1 + a100.memory_error)
    assert not a100.memory_is_exact


def test_a_device_without_fp8_units_computes_fp8_in_16_bits() -> None:
    a100 = pg.find_gpu("A100 80GB SXM4")
    assert a100.matmul_rate("fp8") == a100.bf16 == 312e12
    assert pg.find_gpu("H200").matmul_rate("fp8") == 1979e12
    assert pg.find_gpu("T4").matmul_rate("fp16") == 65e12


def test_clusters_count_stages_and_ranks() -> None:
    cluster = pg.Cluster.uniform("H200", pp_size=4, tp_size=2)
    assert (cluster.pp_size, cluster.tp_size, cluster.is_uniform) == (4, 2, True)
    mixed = pg.Cluster(gpus=("H200", "L40S"))  # type: ignore[arg-type]  # names are looked up
    assert [gpu.name for gpu in mixed.gpus] == ["H200 SXM 141GB", "L40S"]
    assert mixed == pg.Cluster.mixed(["h200", "l40s"])


@pytest.mark.parametrize("count", [0, -1, 1.5, True, math.nan, "4"])
def test_counts_must_be_whole_numbers(count: object) -> None:
    with pytest.raises(pg.HardwareError, match="pp_size must be a whole number of at least 1"):
        pg.Cluster.uniform("H200", pp_size=count)  # type: ignore[arg-type]
    with pytest.raises(pg.HardwareError, match="tp_size must be a whole number of at least 1"):
        pg.Cluster.uniform("H200", pp_size=2, tp_size=count)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: pg.Cluster.mixed("H200"), "gpus must be a list, got 'H200'; give the GPU of each stage"),  # type: ignore[arg-type]
        (lambda: pg.Cluster(gpus="H200"), "gpus must be a list, got 'H200'; give the GPU of each stage"),  # type: ignore[arg-type]
        (lambda: pg.Cluster.mixed(None), "gpus must be a list, got None; give"),  # type: ignore[arg-type]
        (
            lambda: pg.Cluster.mixed(["H200", 5]),
            "the device of a stage must be GPU, got 5; give a name such as 'H200'",
        ),  # type: ignore[list-item]
        (
            lambda: pg.Cluster.uniform(None, pp_size=2),
            "the device of a stage must be GPU, got None; give a name",
        ),  # type: ignore[arg-type]
        (lambda: pg.Cluster.mixed([]), "a cluster needs at least 1 GPU, got 0; give one GPU per stage"),
    ],
)
def test_what_is_no_list_of_gpus_is_refused(make: Callable[[], pg.Cluster], complaint: str) -> None:
    with pytest.raises(pg.HardwareError, match=re.escape(complaint)):
        make()


def test_a_link_between_unequal_devices_is_the_slower_one() -> None:
    cluster = pg.Cluster.mixed(["H200", "L40S", "H200"])
    assert cluster.stage_link(0) == cluster.stage_link(1) == own_link(pg.find_gpu("L40S"))
    assert cluster.stage_link(0).name == "PCIe"
    ethernet = pg.Link(name="100 GbE", bandwidth=11e9, latency_s=50e-6)
    assert pg.Cluster.uniform("H200", pp_size=2, link=ethernet).stage_link(0) is ethernet


def test_a_pair_of_mi300x_has_one_of_seven_links() -> None:
    assert pg.find_gpu("MI300X").pair_bandwidth == 64e9
    assert pg.find_gpu("MI300X").link_bandwidth == 448e9


def test_local_gpus_without_torch_are_refused_with_a_mend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(pg.HardwareError, match=r"is not installed; install it, or name one, e\.g\. 'H200'"):
        pg.local_cluster()
    with pytest.raises(pg.HardwareError, match="tp_size must be a whole number of at least 1, got 0; give"):
        pg.local_cluster(tp_size=0)
