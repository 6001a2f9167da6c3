"""Whatever a configuration says, ``load_model`` reads it or refuses it in one line."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgplan.errors import ModelError
from pgplan.model import catalogue_entry, load_model

# One of each family, with every method of quantization beside the plain ones.
NAMES = (
    "llama-3.1-405b-fp8",
    "mistral-7b-v0.1",
    "qwen3-30b-a3b",
    "qwen1.5-moe-a2.7b",
    "mixtral-8x7b",
    "gpt-oss-20b",
    "deepseek-v3",
    "kimi-k2.5",
    "gemma-3-4b",
    "llama-4-scout",
    "qwen3-vl-8b",
    "phi-3-mini",
    "olmo-3.1-32b",
    "minicpm3-4b",
    "qwen3.6-27b",
    "nemotron-3-super-120b-a12b",
    "jamba-v0.1",
    "granite-4.0-h-small",
    "minimax-m1",
    "kimi-k3",
)
METHODS: tuple[dict[str, Any], ...] = (
    {
        "quant_method": "awq",
        "bits": 4,
        "group_size": 128,
        "zero_point": True,
        "modules_to_not_convert": ["x"],
    },
    {
        "quant_method": "gptq",
        "bits": 4,
        "group_size": 128,
        "sym": True,
        "desc_act": False,
        "dynamic": {"-:x": {}},
    },
    {"quant_method": "fp8", "activation_scheme": "static", "weight_block_size": [128, 128]},
    {
        "quant_method": "modelopt",
        "quant_algo": "MIXED_PRECISION",
        "quantized_layers": {"x": {"quant_algo": "FP8"}},
    },
    {
        "quant_method": "compressed-tensors",
        "ignore": ["re:.*x"],
        "config_groups": {
            "g": {
                "targets": ["Linear"],
                "weights": {
                    "num_bits": 4,
                    "type": "int",
                    "strategy": "group",
                    "group_size": 32,
                    "actorder": None,
                },
                "input_activations": {"num_bits": 8, "dynamic": True},
            },
            "h": {
                "weights": {"num_bits": 8, "type": "float", "strategy": "channel", "block_structure": [8, 8]}
            },
        },
    },
    {"quant_method": "bitsandbytes", "load_in_4bit": True},
)

ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 3),
    st.integers(2**40, 2**80),
    st.floats(),
    st.text(max_size=5),
    st.lists(st.one_of(st.integers(-2, 3), st.text(max_size=3)), max_size=3),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)


def places(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield the path of every key, however deep."""
    for key, inner in value.items():
        yield (*path, key)
        if isinstance(inner, dict):
            yield from places(inner, (*path, key))


def check(config: dict[str, Any]) -> None:
    try:
        assert load_model(config).parameters > 0
    except ModelError as error:
        assert "\n" not in str(error)
        assert len(str(error)) < 2000


@pytest.mark.parametrize("name", NAMES)
@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_one_odd_value(name: str, data: st.DataObject) -> None:
    config: dict[str, Any] = copy.deepcopy(dict(catalogue_entry(name).config))
    if data.draw(st.booleans()):
        config["quantization_config"] = copy.deepcopy(data.draw(st.sampled_from(METHODS)))
    *parents, key = data.draw(st.sampled_from(sorted(places(config))))
    section = config
    for parent in parents:
        section = section[parent]
    section[key] = data.draw(ODD)
    check(config)


@pytest.mark.parametrize("name", NAMES)
def test_any_key_may_be_missing(name: str) -> None:
    whole = catalogue_entry(name).config
    for *parents, key in places(whole):
        config: dict[str, Any] = copy.deepcopy(dict(whole))
        section = config
        for parent in parents:
            section = section[parent]
        del section[key]
        check(config)
