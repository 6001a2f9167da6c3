"""What a model is split over: the GPU table, clusters and links, local devices, what was measured there."""

from pgplan.hardware.calibration import Calibration, find_calibration
from pgplan.hardware.cluster import Cluster, Link, own_link
from pgplan.hardware.detect import detect_gpus, local_cluster
from pgplan.hardware.gpu import GPU, find_gpu, gpu_names

__all__ = [
    "GPU",
    "Calibration",
    "Cluster",
    "Link",
    "detect_gpus",
    "find_calibration",
    "find_gpu",
    "gpu_names",
    "local_cluster",
    "own_link",
]
