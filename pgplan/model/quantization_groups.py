"""Read methods that state formats group by group or module by module: compressed-tensors and ModelOpt."""

from __future__ import annotations

from collections.abc import Callable

from pgplan.errors import ModelError
from pgplan.model import storage
from pgplan.model.config import Config
from pgplan.model.matching import Matcher, targets, wildcard
from pgplan.model.quantized import (
    Quantization,
    StorageOf,
    block_size,
    first_of,
    group_size,
    listed_names,
    unless,
)
from pgplan.model.spec import Storage


def read_compressed(section: Config, plain: Storage) -> Quantization:
    """Read compressed-tensors: groups of modules by target, each with its own format."""
    storage_of = _by_groups(section, targets(listed_names(section, "ignore")), plain)
    return Quantization(storage_of=storage_of, notes=_kv_notes(section))


def read_modelopt(section: Config, plain: Storage) -> Quantization:
    """Read NVIDIA's ModelOpt: one format for all, format groups, or a format per listed module."""
    ignored = wildcard(listed_names(section, "ignore", "exclude_modules"))
    algorithm = str(section.get("quant_algo")).upper()
    layers = section.section("quantized_layers")
    if algorithm != "MIXED_PRECISION":
        storage_of = unless(ignored, _modelopt_storage(algorithm, section, plain))
    elif layers is None:
        storage_of = _by_groups(section, ignored, plain)
    else:
        names: dict[str, list[str]] = {}
        for name in layers.data:
            layer = layers.section(name)
            names.setdefault(str(layer and layer.get("quant_algo")).upper(), []).append(name)
        kinds = [
            (wildcard(each), _modelopt_storage(algorithm, section, plain))
            for algorithm, each in names.items()
        ]
        storage_of = first_of(kinds, ignored)
    return Quantization(storage_of=storage_of, notes=_kv_notes(section))


def _modelopt_storage(algorithm: str, section: Config, plain: Storage) -> Storage:
    known: dict[str, Callable[[], Storage]] = {
        "FP8": lambda: storage.fp8(block=(0, 0), static=True),
        "FP8_PER_CHANNEL_PER_TOKEN": lambda: storage.fp8(block=(1, 0)),
        "FP8_PB_WO": lambda: storage.fp8(block=(128, 128)),
        "NVFP4": lambda: storage.nvfp4(activations=True, plain=plain),
        "W4A16_NVFP4": lambda: storage.nvfp4(activations=False, plain=plain),
    }
    if algorithm not in known:
        raise ModelError(
            f"quant_algo must be one of {', '.join(known)}, got {algorithm!r} in {section.where}; "
            f"plan another checkpoint of the model"
        )
    return known[algorithm]()


def _by_groups(section: Config, ignored: Matcher, plain: Storage) -> StorageOf:
    section.require("config_groups")
    groups = section.section("config_groups")
    found = [groups.section(name) for name in groups.data] if groups else []
    kinds = [
        (targets(listed_names(group, "targets") or ("Linear",)), _group_storage(group, plain))
        for group in found
        if group
    ]
    return first_of(kinds, ignored)


def _group_storage(group: Config, plain: Storage) -> Storage:
    """Return the storage of one entry of ``config_groups``: its weights' type, bits and strategy."""
    weights = group.section("weights")
    if weights is None:
        raise ModelError(f"each of config_groups must have weights, {group.where} has none; correct it")
    activations = group.section("input_activations")
    bits, kind, size = weights.size("num_bits"), weights.get("type"), weights.get("group_size")
    # "local" (NVFP4) computes the scales of blocks as they come, with a static one per tensor.
    static = activations is not None and activations.get("dynamic") is not True
    strategy = str(weights.get("strategy") or ("group" if size else "tensor"))
    block = {
        "tensor": (0, 0),
        "channel": (1, 0),
        "block": block_size(weights, "block_structure") or (128, 128),
    }
    if kind == "float" and bits == 4:
        if size == 32:
            return storage.mxfp4(plain=plain)
        return storage.nvfp4(activations=activations is not None, plain=plain)
    if bits == 8 and strategy in block and (kind == "float" or activations is not None):
        make = storage.fp8 if kind == "float" else storage.int8
        return make(block=block[strategy], static=static)
    if kind == "int":
        return storage.weight_only_int(
            bits,
            group_size(weights, "group_size") if size else -1,
            zero_points=not weights.flag("symmetric", default=True),
            act_order=weights.get("actorder") == "group",
            plain=plain,
        )
    raise ModelError(
        f"weights of config_groups must be int, 8 bit float or 4 bit float, got {bits} bit {kind!r} by "
        f"{strategy!r} in {group.where}; plan another checkpoint of the model"
    )


def _kv_notes(section: Config) -> tuple[str, ...]:
    if section.get("kv_cache_quant_algo", "kv_cache_scheme") is None:
        return ()
    return ("the checkpoint is made for a quantized KV cache; state it as the workload's KV dtype",)
