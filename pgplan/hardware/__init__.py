"""What a model is split over: the GPU table, clusters and links, local devices, what was measured there."""

from pgplan.hardware.calibration import Calibration, find_calibration
from pgplan.hardware.cluster import Cluster, Link, own_link
from pgplan.hardware.detect import cpu_device, detect_gpus, known_gpu, local_cluster
from pgplan.hardware.gpu import GPU, find_gpu, gpu_names

__all__ = [
    "GPU",
    "Calibration",
    "Cluster",
    "Link",
    "cpu_device",
    "detect_gpus",
    "find_calibration",
    "find_gpu",
    "gpu_names",
    "known_gpu",
    "local_cluster",
    "own_link",
]
