"""Read ``quantization_config``: which module lies in memory how, method by method."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from pgplan.errors import ModelError
from pgplan.model import storage
from pgplan.model.config import Config
from pgplan.model.matching import Matcher, as_regex, prefix_or_suffix, substring, targets, wildcard
from pgplan.model.spec import Part, Storage

StorageOf = Callable[[tuple[str, ...]], Storage | None]

LINEAR_PARTS: frozenset[Part] = frozenset({"attention", "mixer", "mlp", "experts", "shared_experts"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantization:
    """Tell how quantized modules lie in memory.

    Args:
        storage_of: The storage of a module by the spellings of its full name; ``None`` where it is not
            quantized.
        parts: The parts of the model that the method touches.
        head: Whether the output head is quantized.
        notes: What a reader should know.
    """

    storage_of: StorageOf
    parts: frozenset[Part] = LINEAR_PARTS
    head: bool = False
    notes: tuple[str, ...] = ()


def read_quantization(config: Config, plain: Storage) -> Quantization | None:
    """Return what the configuration says of quantization, ``None`` where it says nothing.

    Args:
        config: The whole configuration; ``text_config`` is looked at too.
        plain: How unquantized weights lie in memory.

    Raises:
        ModelError: If the method or one of its settings is not known.
    """
    for owner in (config, config.text):
        section = owner.section("quantization_config") or owner.section("compression_config")
        if section is not None and section.data:
            if owner.get("compress_ratios") is not None and section.get("quant_method") == "fp8":
                return _read_deepseek_v4(owner, section, plain)
            return _reader(section)(section, plain)
    return None


def _reader(section: Config) -> Callable[[Config, Storage], Quantization]:
    method = section.get("quant_method")
    if method is None and section.get("quant_algo") is not None:
        method = "modelopt"
    # A ModelOpt file may call itself fp8 and still list other formats, module by module.
    if method == "fp8" and section.get("quantized_layers") is not None:
        method = "modelopt"
    reader = METHODS.get(str(method).lower())
    if reader is None:
        raise ModelError(
            f"quant_method must be one of {', '.join(METHODS)}, got {method!r} in {section.where}; "
            f"plan the unquantized checkpoint, or one of these methods"
        )
    return reader


def _unless(ignored: Matcher, kind: Storage) -> StorageOf:
    return lambda names: None if ignored(names) else kind


def _names(section: Config, *keys: str) -> tuple[str, ...]:
    return tuple(str(item) for key in keys for item in section.items(key) or ())


def _block(section: Config, key: str) -> tuple[int, int] | None:
    sizes = section.items(key)
    if sizes is None:
        return None
    match sizes:
        case (int(rows), int(cols)) if rows > 0 and cols > 0:
            return rows, cols
    raise ModelError(
        f"{key} must be two sizes such as [128, 128], got {list(sizes)} in {section.where}; correct it"
    )


def _read_fp8(section: Config, plain: Storage) -> Quantization:
    del plain
    kind = storage.fp8(
        block=_block(section, "weight_block_size") or (0, 0),
        static=section.get("activation_scheme") == "static",
    )
    ignored = prefix_or_suffix(_names(section, "modules_to_not_convert", "ignored_layers"))
    return Quantization(storage_of=_unless(ignored, kind))


def _read_deepseek_v4(owner: Config, section: Config, plain: Storage) -> Quantization:
    """Read DeepSeek-V4, which says beside ``quantization_config`` that its experts have 4 bits.

    All but the experts are in fp8 blocks, whose scales have one byte; compressors are not quantized
    (vLLM ``models/deepseek_v4``).
    """
    other = storage.fp8(block=_block(section, "weight_block_size") or (128, 128), scale_bytes=1)
    experts = other
    if section.get("moe_quant_algo") == "NVFP4":
        experts = storage.nvfp4(activations=True, plain=plain)
    elif owner.get("expert_dtype") == "fp4":
        experts = storage.mxfp4(plain=plain)

    def storage_of(names: tuple[str, ...]) -> Storage | None:
        if ".compressor." in names[0]:
            return None
        return experts if ".experts." in names[0] else other

    return Quantization(storage_of=storage_of)


def _read_fbgemm(section: Config, plain: Storage) -> Quantization:
    del plain
    ignored = prefix_or_suffix(_names(section, "modules_to_not_convert"))
    return Quantization(storage_of=_unless(ignored, storage.fp8(block=(1, 0))))


def _read_awq(section: Config, plain: Storage) -> Quantization:
    kind = storage.weight_only_int(
        section.size("bits", "w_bit", default=4),
        _group(section, "group_size", "q_group_size"),
        zero_points=section.flag("zero_point", default=True),
        plain=plain,
    )
    return Quantization(storage_of=_unless(substring(_names(section, "modules_to_not_convert")), kind))


def _read_gptq(section: Config, plain: Storage) -> Quantization:
    """Read GPTQ: ``dynamic`` maps ``-:regex`` to "not quantized" and ``+:regex`` to other settings."""
    dynamic = section.section("dynamic") or Config({}, section.where)
    rules: list[tuple[re.Pattern[str], Storage | None]] = []
    for pattern, settings in dynamic.data.items():
        changed = {**section.data, **settings} if isinstance(settings, Mapping) else section.data
        kind = None if pattern.startswith("-:") else _gptq_storage(Config(changed, section.where), plain)
        rules.append((as_regex(pattern.removeprefix("-:").removeprefix("+:")), kind))
    usual = _gptq_storage(section, plain)
    groups = section.items("modules_in_block_to_quantize") or ()
    blocks = tuple(str(name) for group in groups for name in (group if isinstance(group, list) else [group]))

    def storage_of(names: tuple[str, ...]) -> Storage | None:
        for regex, kind in rules:
            if any(regex.match(name) for name in names):
                return kind
        return usual if not blocks or names[0].endswith(blocks) else None

    return Quantization(storage_of=storage_of, head=section.flag("lm_head"))


def _gptq_storage(section: Config, plain: Storage) -> Storage:
    return storage.weight_only_int(
        section.size("bits"),
        _group(section, "group_size"),
        zero_points=not section.flag("sym", default=True),
        act_order=section.flag("desc_act"),
        plain=plain,
    )


def _group(section: Config, *keys: str) -> int:
    value = section.get(*keys)
    return -1 if value == -1 else section.size(*keys, default=128)


def _read_compressed(section: Config, plain: Storage) -> Quantization:
    """Read compressed-tensors: groups of modules by target, each with its own format."""
    storage_of = _by_groups(section, targets(_names(section, "ignore")), plain)
    return Quantization(storage_of=storage_of, notes=_kv_notes(section))


def _kv_notes(section: Config) -> tuple[str, ...]:
    if section.get("kv_cache_quant_algo", "kv_cache_scheme") is None:
        return ()
    return ("the checkpoint is made for a quantized KV cache; state it as the workload's KV dtype",)


def _by_groups(section: Config, ignored: Matcher, plain: Storage) -> StorageOf:
    section.require("config_groups")
    groups = section.section("config_groups")
    found = [groups.section(name) for name in groups.data] if groups else []
    return _first_of(
        [
            (targets(_names(group, "targets") or ("Linear",)), _group_storage(group, plain))
            for group in found
            if group
        ],
        ignored,
    )


def _first_of(kinds: list[tuple[Matcher, Storage]], ignored: Matcher) -> StorageOf:
    def storage_of(names: tuple[str, ...]) -> Storage | None:
        if ignored(names):
            return None
        return next((kind for matches, kind in kinds if matches(names)), None)

    return storage_of


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
    block = {"tensor": (0, 0), "channel": (1, 0), "block": _block(weights, "block_structure") or (128, 128)}
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
            _group(weights, "group_size") if size else -1,
            zero_points=not weights.flag("symmetric", default=True),
            act_order=weights.get("actorder") == "group",
            plain=plain,
        )
    raise ModelError(
        f"weights of config_groups must be int, 8 bit float or 4 bit float, got {bits} bit {kind!r} by "
        f"{strategy!r} in {group.where}; plan another checkpoint of the model"
    )


def _read_mxfp4(section: Config, plain: Storage) -> Quantization:
    ignored = prefix_or_suffix(_names(section, "modules_to_not_convert"))
    return Quantization(storage_of=_unless(ignored, storage.mxfp4(plain=plain)), parts=frozenset({"experts"}))


def _read_modelopt(section: Config, plain: Storage) -> Quantization:
    """Read NVIDIA's ModelOpt: one format for all, format groups, or a format per listed module."""
    ignored = wildcard(_names(section, "ignore", "exclude_modules"))
    algorithm = str(section.get("quant_algo")).upper()
    layers = section.section("quantized_layers")
    if algorithm != "MIXED_PRECISION":
        storage_of = _unless(ignored, _modelopt_storage(algorithm, section, plain))
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
        storage_of = _first_of(kinds, ignored)
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


def _read_bitsandbytes(section: Config, plain: Storage) -> Quantization:
    ignored = prefix_or_suffix(_names(section, "llm_int8_skip_modules"))
    if section.flag("load_in_8bit"):
        kind = storage.int8(block=(1, 0))
    else:
        kind = storage.nf4(double_quant=section.flag("bnb_4bit_use_double_quant"), plain=plain)
    return Quantization(storage_of=_unless(ignored, kind))


METHODS: Mapping[str, Callable[[Config, Storage], Quantization]] = {
    "awq": _read_awq,
    "bitsandbytes": _read_bitsandbytes,
    "compressed-tensors": _read_compressed,
    "fbgemm_fp8": _read_fbgemm,
    "fp8": _read_fp8,
    "gptq": _read_gptq,
    "modelopt": _read_modelopt,
    "modelopt_fp4": _read_modelopt,
    "modelopt_mixed": _read_modelopt,
    "mxfp4": _read_mxfp4,
}
