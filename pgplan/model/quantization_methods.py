"""Read ``quantization_config``: which module lies in memory how, method by method."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from pgplan.errors import ModelError
from pgplan.model import storage
from pgplan.model.config import Config
from pgplan.model.matching import as_regex, prefix_or_suffix, substring
from pgplan.model.quantization_groups import read_compressed, read_modelopt
from pgplan.model.quantized import Quantization, block_size, group_size, listed_names, unless
from pgplan.model.spec import Storage


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


def _read_fp8(section: Config, plain: Storage) -> Quantization:
    del plain
    kind = storage.fp8(
        block=block_size(section, "weight_block_size") or (0, 0),
        static=section.get("activation_scheme") == "static",
    )
    ignored = prefix_or_suffix(listed_names(section, "modules_to_not_convert", "ignored_layers"))
    return Quantization(storage_of=unless(ignored, kind))


def _read_deepseek_v4(owner: Config, section: Config, plain: Storage) -> Quantization:
    """Read DeepSeek-V4, which says beside ``quantization_config`` that its experts have 4 bits.

    All but the experts are in fp8 blocks, whose scales have one byte; compressors are not quantized
    (vLLM ``models/deepseek_v4``).
    """
    other = storage.fp8(block=block_size(section, "weight_block_size") or (128, 128), scale_bytes=1)
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
    ignored = prefix_or_suffix(listed_names(section, "modules_to_not_convert"))
    return Quantization(storage_of=unless(ignored, storage.fp8(block=(1, 0))))


def _read_awq(section: Config, plain: Storage) -> Quantization:
    kind = storage.weight_only_int(
        section.size("bits", "w_bit", default=4),
        group_size(section, "group_size", "q_group_size"),
        zero_points=section.flag("zero_point", default=True),
        plain=plain,
    )
    return Quantization(storage_of=unless(substring(listed_names(section, "modules_to_not_convert")), kind))


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
        group_size(section, "group_size"),
        zero_points=not section.flag("sym", default=True),
        act_order=section.flag("desc_act"),
        plain=plain,
    )


def _read_mxfp4(section: Config, plain: Storage) -> Quantization:
    ignored = prefix_or_suffix(listed_names(section, "modules_to_not_convert"))
    return Quantization(storage_of=unless(ignored, storage.mxfp4(plain=plain)), parts=frozenset({"experts"}))


def _read_bitsandbytes(section: Config, plain: Storage) -> Quantization:
    ignored = prefix_or_suffix(listed_names(section, "llm_int8_skip_modules"))
    if section.flag("load_in_8bit"):
        kind = storage.int8(block=(1, 0))
    else:
        kind = storage.nf4(double_quant=section.flag("bnb_4bit_use_double_quant"), plain=plain)
    return Quantization(storage_of=unless(ignored, kind))


METHODS: Mapping[str, Callable[[Config, Storage], Quantization]] = {
    "awq": _read_awq,
    "bitsandbytes": _read_bitsandbytes,
    "compressed-tensors": read_compressed,
    "fbgemm_fp8": _read_fbgemm,
    "fp8": _read_fp8,
    "gptq": _read_gptq,
    "modelopt": read_modelopt,
    "modelopt_fp4": read_modelopt,
    "modelopt_mixed": read_modelopt,
    "mxfp4": _read_mxfp4,
}
