"""What ``load_model`` takes, and what it says of what it cannot take."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from pgplan.errors import ModelError
from pgplan.model import load_model
from pgplan.model.families import BUILDERS

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 1000,
    "max_position_embeddings": 4096,
}
# 3 layers of q 64x64, o 64x64, k and v 32x64, three 160x64, two norms; embedding and head; final norm.
LLAMA_PARAMETERS = 3 * (2 * 64 * 64 + 2 * 32 * 64 + 3 * 160 * 64 + 2 * 64) + 2 * 1000 * 64 + 64


def without(*keys: str) -> dict[str, Any]:
    return {key: value for key, value in LLAMA.items() if key not in keys}


def refusal(source: Any, **options: Any) -> str:
    with pytest.raises(ModelError) as caught:
        load_model(source, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_dict_file_and_folder_give_the_same_model(tmp_path: Path) -> None:
    folder = tmp_path / "my-model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(LLAMA))
    (tmp_path / "other.json").write_text(json.dumps(LLAMA))
    models = [
        load_model(LLAMA),
        load_model(folder),
        load_model(str(folder)),
        load_model(folder / "config.json"),
        load_model(tmp_path / "other.json"),
    ]
    assert {model.parameters for model in models} == {LLAMA_PARAMETERS}
    assert len({model.digest for model in models}) == 1
    assert [model.name for model in models] == ["custom model", "my-model", "my-model", "my-model", "other"]


def test_layers_equal_in_every_respect_share_one_kind() -> None:
    model = load_model(LLAMA)
    assert model.pattern == (0, 0, 0)
    assert model.runs == ((3, model.kinds[0]),)


def test_a_folder_wins_over_the_catalogue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "llama-3.1-8b"
    folder.mkdir()
    assert "must hold config.json" in refusal("llama-3.1-8b")
    (folder / "config.json").write_text(json.dumps(LLAMA))
    assert load_model("llama-3.1-8b").parameters == LLAMA_PARAMETERS


@pytest.mark.parametrize("stated", [{"dtype": "float16"}, {"torch_dtype": "torch.float16"}])
def test_dtype_is_the_configurations_unless_overridden(stated: dict[str, str]) -> None:
    assert load_model(LLAMA).dtype == "bfloat16"
    model = load_model({**LLAMA, **stated})
    assert model.dtype == "float16"
    assert model.embedding.storage.compute == "fp16"
    assert load_model({**LLAMA, **stated}, dtype="bf16").dtype == "bfloat16"


def test_float32_is_kept_and_remarked_on() -> None:
    model = load_model({**LLAMA, "torch_dtype": "float32"})
    assert model.kinds[0].weights[1].storage.bits == 32
    assert "give dtype='bfloat16'" in model.notes[0]
    assert load_model({**LLAMA, "torch_dtype": "float32"}, dtype="float32").notes == ()


def test_a_missing_path_is_refused(tmp_path: Path) -> None:
    assert "there is no file" in refusal(tmp_path / "config.json")
    assert "there is no file ./nowhere;" in refusal("./nowhere")
    assert "the catalogue has no model" in refusal("x" * 5000)
    assert "there is no file nowhere.json" in refusal("nowhere.json")
    assert "must hold config.json" in refusal(tmp_path)


def test_broken_json_is_refused_with_its_place(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text('{\n  "hidden_size": 64,\n  "vocab_size" 1000\n}')
    assert re.search(r"config\.json must be JSON, but line 3 column 16 is not: ", refusal(file))
    file.write_bytes(b"\xff\xfe")
    assert "cannot be read" in refusal(file)
    file.write_text("[1, 2]")
    assert "must hold a JSON object, got list" in refusal(file)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"hidden_size": ' + "1" * 5000 + "}"], ids=["deep", "long"])
def test_hostile_json_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "config.json"
    file.write_text(text)
    assert "cannot be read" in refusal(file)


def test_long_values_are_shortened_in_messages() -> None:
    assert len(refusal({**LLAMA, "num_hidden_layers": "9" * 5000})) < 250


def test_a_multimodal_model_may_tie_its_embedding_outside_the_text_part() -> None:
    text = {key: value for key, value in LLAMA.items() if key != "architectures"}
    config = {"architectures": ["Qwen3VLForConditionalGeneration"], "text_config": text}
    assert [load_model({**config, "tie_word_embeddings": tied}).tied for tied in (True, False)] == [
        True,
        False,
    ]


def test_a_missing_vision_config_means_the_sizes_of_the_class() -> None:
    text = {key: value for key, value in LLAMA.items() if key != "architectures"}
    model = load_model({"architectures": ["Gemma3ForConditionalGeneration"], "text_config": text})
    assert model.towers
    assert "no vision_config" in model.notes[0]


def test_missing_keys_are_named_together() -> None:
    message = refusal(without("hidden_size", "num_hidden_layers", "vocab_size"))
    assert "the given dict lacks hidden_size, num_hidden_layers, vocab_size" in message


@pytest.mark.parametrize("layers", [0, -3, 2.0, True, "80", math.nan, math.inf, [1]])
def test_a_configuration_without_layers_is_refused(layers: object) -> None:
    message = refusal({**LLAMA, "num_hidden_layers": layers})
    assert f"num_hidden_layers must be a whole number of at least 1, got {layers!r}" in message


def test_nan_in_a_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps({**LLAMA, "num_hidden_layers": math.nan}))
    assert "got nan" in refusal(file)


def test_an_absurd_depth_is_refused() -> None:
    assert "at most 10000, got 1000000000" in refusal({**LLAMA, "num_hidden_layers": 10**9})


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"hidden_size": 63}, "hidden_size must be divisible by num_attention_heads, got 63 and 4"),
        (
            {"num_key_value_heads": 3},
            "num_attention_heads must be divisible by num_key_value_heads, got 4 and 3",
        ),
        ({"attention_bias": "yes"}, "attention_bias must be true or false, got 'yes'"),
        ({"torch_dtype": "int8"}, "dtype must be one of bfloat16, float16, float32, got 'int8'"),
        ({"torch_dtype": 16}, "dtype must be a name"),
        ({"quantization_config": "fp8"}, "quantization_config must be an object, got 'fp8'"),
    ],
)
def test_contradictions_are_refused(change: dict[str, object], says: str) -> None:
    assert says in refusal({**LLAMA, **change})


def test_head_dim_frees_the_hidden_size() -> None:
    assert load_model({**LLAMA, "hidden_size": 63, "head_dim": 16}).hidden_size == 63


def test_layer_types_must_fit_the_layers() -> None:
    gemma = {**LLAMA, "architectures": ["Gemma2ForCausalLM"]}
    assert "got 2 for 3 layers" in refusal({**gemma, "layer_types": ["full_attention"] * 2})
    assert "got 'mamba'" in refusal({**gemma, "layer_types": ["full_attention", "mamba", "full_attention"]})
    assert "layer_types must be a list, got 3" in refusal({**gemma, "layer_types": 3})


def test_more_experts_per_token_than_experts_are_refused() -> None:
    config = {
        **LLAMA,
        "architectures": ["MixtralForCausalLM"],
        "num_local_experts": 4,
        "num_experts_per_tok": 5,
    }
    assert "num_experts_per_tok must be at most the number of experts, got 5 of 4" in refusal(config)


def test_an_unknown_architecture_is_refused_with_the_nearest_ones() -> None:
    message = refusal({**LLAMA, "architectures": ["Falcon9ForCausalLM"], "n_routed_experts": 8})
    assert "got Falcon9ForCausalLM" in message
    assert "the nearest are FalconForCausalLM" in message
    assert f"BUILDERS holds all {len(BUILDERS)}" in message
    assert "assume" not in message


def test_a_plain_decoder_may_be_assumed() -> None:
    strange = {**LLAMA, "architectures": ["NovelForCausalLM"]}
    assert "assume='llama' reads it as a plain decoder" in refusal(strange)
    model = load_model(strange, assume="llama")
    assert model.parameters == LLAMA_PARAMETERS
    assert model.architecture == "LlamaForCausalLM"
    assert model.notes == ("the architecture is not known and read as a plain decoder, as asked",)
    assert (
        "whatever sliding_window says"
        in load_model({**strange, "sliding_window": 9}, assume="llama").notes[1]
    )


def test_an_assumption_is_refused_where_the_keys_do_not_fit() -> None:
    strange = {**LLAMA, "architectures": ["NovelForCausalLM"]}
    assert "(NovelForCausalLM) has num_experts" in refusal({**strange, "num_experts": 8}, assume="llama")
    short = {key: value for key, value in strange.items() if key != "vocab_size"}
    assert "(NovelForCausalLM) lacks vocab_size" in refusal(short, assume="llama")
    assert "assume must be 'llama' or None, got 'qwen'" in refusal(strange, assume="qwen")


def test_model_type_serves_where_architectures_is_missing() -> None:
    assert load_model({**without("architectures"), "model_type": "llama"}).parameters == LLAMA_PARAMETERS
    assert "got none (no architectures, no model_type)" in refusal(without("architectures"))


def test_another_type_is_refused() -> None:
    assert "must be a catalogue name, a path or a dict, got int" in refusal(70)
