"""What the model is split over: the GPU of each stage, the ranks that share a stage, the links."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

from pgplan.errors import HardwareError, check_kind
from pgplan.hardware.gpu import GPU, find_gpu

# Of the link's nominal rate, what one large message reaches, and the time before its first byte moves.
# H200 pairs over NVLink 4: 357 of 450 GB/s at 256 MiB; 25 to 30 microseconds for small messages when the
# host issues them one at a time. PCIe has no measurement here yet: the usual protocol share is taken.
_LINK_REACH = 0.79
_LINK_LATENCY_S = 25e-6
_PCIE_REACH = 0.80
_PCIE_LATENCY_S = 35e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """Describe what joins two stages, or the ranks of one stage.

    Args:
        name: What it is, e.g. ``"NVLink4"``.
        bandwidth: Bytes per second one way that a large message reaches.
        latency_s: Seconds before its first byte moves.

    >>> network = Link(name="100 GbE", bandwidth=11e9, latency_s=50e-6)
    >>> Cluster.uniform("H200", pp_size=2, link=network).stage_link(0).name
    '100 GbE'
    """

    name: str
    bandwidth: float
    latency_s: float

    def __post_init__(self) -> None:
        if not self.bandwidth > 0 or not self.latency_s >= 0:
            raise HardwareError(
                f"a link needs a bandwidth above 0 and a latency of at least 0, got "
                f"{self.bandwidth!r} bytes/s and {self.latency_s!r} s for {self.name}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """Describe the GPUs, stage by stage.

    Args:
        gpus: The device of each stage, in stage order; all ranks of a stage have the same.
        tp_size: Ranks that share each stage.
        link: What joins stages, when it is not what the devices themselves have (for example a network
            between two machines); ``None``: the slower of the two devices' own links.

    >>> Cluster.uniform("H200", pp_size=4).pp_size
    4
    """

    gpus: tuple[GPU, ...]
    tp_size: int = 1
    link: Link | None = None

    def __post_init__(self) -> None:
        # People pass lists and names; the frozen value holds devices.
        gpus = _devices(self.gpus)
        object.__setattr__(self, "gpus", gpus)
        if not gpus:
            raise HardwareError("a cluster needs at least 1 GPU, got 0; give one GPU per stage")
        check_count("tp_size", self.tp_size)

    @classmethod
    def uniform(cls, gpu: str | GPU, *, pp_size: int, tp_size: int = 1, link: Link | None = None) -> Cluster:
        """Build a cluster of ``pp_size`` stages with ``tp_size`` equal GPUs each.

        Raises:
            HardwareError: If a count is not a whole number of at least 1, or the GPU is not known.
        """
        check_count("pp_size", pp_size)
        (device,) = _devices([gpu])
        return cls(gpus=(device,) * pp_size, tp_size=tp_size, link=link)

    @classmethod
    def mixed(cls, gpus: Sequence[str | GPU], *, tp_size: int = 1, link: Link | None = None) -> Cluster:
        """Build a cluster from one GPU (or its name) per stage.

        Raises:
            HardwareError: If ``gpus`` is not a list, or a GPU is not known.
        """
        return cls(gpus=_devices(gpus), tp_size=tp_size, link=link)

    @property
    def pp_size(self) -> int:
        """Count the stages."""
        return len(self.gpus)

    @property
    def is_uniform(self) -> bool:
        """Tell whether every stage has the same device."""
        return self.gpus.count(self.gpus[0]) == len(self.gpus)

    @property
    def description(self) -> str:
        """Say it in a few words, e.g. ``"4 x H200 SXM 141GB"`` or ``"2 x H200 SXM 141GB + L40S"``."""
        per_stage = f" x tp {self.tp_size}" if self.tp_size > 1 else ""
        if self.is_uniform:
            return f"{self.pp_size} x {self.gpus[0].name}{per_stage}"
        runs = [(name, len(list(run))) for name, run in groupby(gpu.name for gpu in self.gpus)]
        return " + ".join(f"{count} x {name}" if count > 1 else name for name, count in runs) + per_stage

    def stage_link(self, stage: int) -> Link:
        """Return the link from ``stage`` to the next one."""
        if self.link is not None:
            return self.link
        here, there = self.gpus[stage], self.gpus[stage + 1]
        return min((own_link(here), own_link(there)), key=lambda link: link.bandwidth)


def own_link(gpu: GPU) -> Link:
    """Return the link between two devices of this kind in one machine: their own, else PCIe."""
    if gpu.pair_bandwidth > 0:
        return Link(name=gpu.link, bandwidth=gpu.pair_bandwidth * _LINK_REACH, latency_s=_LINK_LATENCY_S)
    bandwidth = (gpu.pcie_bandwidth or 16e9) * _PCIE_REACH
    return Link(name="PCIe", bandwidth=bandwidth, latency_s=_PCIE_LATENCY_S)


def _devices(gpus: Iterable[str | GPU]) -> tuple[GPU, ...]:
    """Return the device of each stage; names are looked up."""
    # A text is a list of letters to Python.
    if isinstance(gpus, str) or not isinstance(gpus, Iterable):
        raise HardwareError(
            f"gpus must be a list, got {gpus!r}; give the GPU of each stage, e.g. ['H200', 'L40S']"
        )
    devices = tuple(find_gpu(gpu) if isinstance(gpu, str) else gpu for gpu in gpus)
    for device in devices:
        check_kind(
            device, GPU, name="the device of a stage", mend="give a name such as 'H200'", error=HardwareError
        )
    return devices


def check_count(name: str, value: object) -> None:
    """Refuse what is not a whole number of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise HardwareError(f"{name} must be a whole number of at least 1, got {value!r}; give 1, 2, 4, ...")
