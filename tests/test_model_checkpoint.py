"""Models from checkpoints: real ones that transformers writes, quantized ones by hand, and broken ones."""

from __future__ import annotations

import hashlib
import json
import os
import re
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

from pgplan.cli import main
from pgplan.errors import ModelError
from pgplan.model import ModelSpec, Weight, load_model
from pgplan.model.agreement import by_place
from pgplan.model.checkpoint import Checkpoint, read_checkpoint
from pgplan.model.headers import StoredTensor, read_header
from pgplan.model.tensor_names import parse

BASE = {
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 320,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MOE = {**BASE, "moe_intermediate_size": 32, "num_experts_per_tok": 2}
MLA = {
    **MOE,
    "num_key_value_heads": 4,
    "n_routed_experts": 6,
    "n_shared_experts": 1,
    "kv_lora_rank": 24,
    "q_lora_rank": 28,
    "qk_nope_head_dim": 12,
    "qk_rope_head_dim": 8,
    "v_head_dim": 20,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
}
# (model_type, configuration, bytes of buffers that no weight counts)
REAL: dict[str, tuple[str, dict[str, Any], int]] = {
    "llama": ("llama", {**BASE, "attention_bias": True}, 0),
    "tied": ("llama", {**BASE, "tie_word_embeddings": True}, 0),
    "qwen3 moe": ("qwen3_moe", {**MOE, "head_dim": 16, "num_experts": 6}, 0),
    # e_score_correction_bias of the two layers with experts: 6 bfloat16 numbers each.
    "deepseek v3": ("deepseek_v3", MLA, 2 * 6 * 2),
    "mixtral": ("mixtral", {**BASE, "num_local_experts": 4, "num_experts_per_tok": 2}, 0),
    "gpt-oss": ("gpt_oss", {**BASE, "head_dim": 16, "num_local_experts": 4, "num_experts_per_tok": 2}, 0),
    "phi 3": ("phi3", BASE, 0),
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return where transformers has saved a small real model, in several files."""
    folders: dict[str, Path] = {}

    def save(name: str) -> Path:
        if name not in folders:
            model_type, keys, _ = REAL[name]
            folders[name] = tmp_path_factory.mktemp("saved") / name
            model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **keys))
            model.to(torch.bfloat16).save_pretrained(folders[name], max_shard_size="100KB")
        return folders[name]

    return save


def write(folder: Path, tensors: dict[str, torch.Tensor], config: dict[str, Any]) -> Path:
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def contents(folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Return tensors and configuration of a saved model, to write it changed."""
    tensors = {}
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as opened:
            tensors |= {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    return tensors, json.loads((folder / "config.json").read_text())


def weight_bytes(weight: Weight) -> int:
    bias = (weight.bias_storage or weight.storage).tensor_bytes(weight.rows, 1) if weight.bias else 0
    return weight.copies * (weight.storage.tensor_bytes(weight.rows, weight.cols) + bias)


def model_bytes(model: ModelSpec) -> int:
    outside = [model.embedding, *model.final_norm, *model.towers, *([] if model.tied else [model.head])]
    inside = [weight for layer in model.layers for weight in layer.weights]
    return sum(map(weight_bytes, outside + inside))


def checkpoint(folder: Path) -> Checkpoint:
    found = read_checkpoint(folder)
    assert found is not None
    return found


def refusal(source: Any) -> str:
    with pytest.raises(ModelError) as caught:
        load_model(source)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1200
    return str(caught.value)


# Real checkpoints


@pytest.mark.parametrize("name", REAL)
def test_a_real_checkpoint_agrees_to_the_byte(name: str, saved: Callable[[str], Path]) -> None:
    folder = saved(name)
    assert len(list(folder.glob("*.safetensors"))) > 1
    model, headers = load_model(folder), checkpoint(folder)
    assert model.digest == load_model(folder / "config.json").digest
    assert model_bytes(model) + REAL[name][2] == headers.data_bytes
    files = f"{len(headers.tensors)} tensors of {headers.data_bytes} bytes in {len(headers.files)} file(s)"
    assert f"the checkpoint agrees with config.json: {files}" in model.notes


@pytest.mark.parametrize("name", REAL)
def test_every_layer_has_the_bytes_of_its_tensors(name: str, saved: Callable[[str], Path]) -> None:
    model, places = load_model(saved(name)), by_place(checkpoint(saved(name)), num_layers=3)
    for index, layer in enumerate(model.layers):
        modules = [module for module in places["layer", index].values() if not module.is_buffer]
        assert sum(map(weight_bytes, layer.weights)) == sum(module.data_bytes for module in modules)
    assert weight_bytes(model.embedding) == places["embedding", -1]["embed_tokens"].data_bytes
    assert (("head", -1) in places) == (not model.tied)


def test_headers_are_what_safetensors_reads(saved: Callable[[str], Path]) -> None:
    for file in saved("deepseek v3").glob("*.safetensors"):
        assert {tensor.name: tensor for tensor in read_header(file)} == reference(file)


def reference(file: Path) -> dict[str, StoredTensor]:
    with safe_open(file, "pt") as opened:
        slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118
        return {
            name: StoredTensor(name, found.get_dtype(), tuple(found.get_shape()))
            for name, found in slices.items()
        }


def test_pgplan_plan_takes_a_folder(saved: Callable[[str], Path], capsys: pytest.CaptureFixture[str]) -> None:
    lengths = ["--prompt-tokens", "256", "--output-tokens", "64"]
    assert main(["plan", str(saved("llama")), "--gpu", "L4", "--pp", "3", "--json", *lengths]) == 0
    stages = json.loads(capsys.readouterr().out)["stages"]
    # Everything is on one of the three stages, once.
    assert sum(stage["parameters"] for stage in stages) == load_model(saved("llama")).parameters


# Quantized checkpoints, written by hand in the shapes that their tools write


def packed(rows: int, cols: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.zeros(rows, cols, dtype=dtype)


def fp8_blocks(rows: int, cols: int) -> dict[str, torch.Tensor]:
    scales = torch.zeros(-(-rows // 128), -(-cols // 128))
    return {"weight": packed(rows, cols, torch.float8_e4m3fn), "weight_scale_inv": scales}


def fp8_rows(rows: int, cols: int) -> dict[str, torch.Tensor]:
    return {"weight": packed(rows, cols, torch.float8_e4m3fn), "weight_scale": torch.zeros(rows, 1)}


def fp8_tensor(rows: int, cols: int) -> dict[str, torch.Tensor]:
    one = torch.zeros(())
    return {
        "weight": packed(rows, cols, torch.float8_e4m3fn),
        "weight_scale": one,
        "input_scale": one.clone(),
    }


def int8_rows(rows: int, cols: int) -> dict[str, torch.Tensor]:
    return {"weight": packed(rows, cols, torch.int8), "weight_scale": torch.zeros(rows, 1)}


def gptq(rows: int, cols: int) -> dict[str, torch.Tensor]:
    return {
        "qweight": packed(cols // 8, rows, torch.int32),
        "qzeros": packed(cols // 32, rows // 8, torch.int32),
        "scales": packed(cols // 32, rows, torch.float16),
        "g_idx": torch.zeros(cols, dtype=torch.int32),
    }


def awq(rows: int, cols: int) -> dict[str, torch.Tensor]:
    return {
        "qweight": packed(cols, rows // 8, torch.int32),
        "qzeros": packed(cols // 32, rows // 8, torch.int32),
        "scales": packed(cols // 32, rows, torch.float16),
    }


def pack_quantized(rows: int, cols: int) -> dict[str, torch.Tensor]:
    return {
        "weight_packed": packed(rows, cols // 8, torch.int32),
        "weight_scale": packed(rows, cols // 32, torch.bfloat16),
        "weight_shape": torch.zeros(2, dtype=torch.int64),
    }


def nvfp4(rows: int, cols: int) -> dict[str, torch.Tensor]:
    return {
        "weight": packed(rows, cols // 2, torch.uint8),
        "weight_scale": packed(rows, cols // 16, torch.float8_e4m3fn),
        "weight_scale_2": torch.zeros(()),
        "input_scale": torch.zeros(()),
    }


def nf4(rows: int, cols: int) -> dict[str, torch.Tensor]:
    return {
        "weight": packed(rows * cols // 2, 1, torch.uint8),
        "weight.absmax": torch.zeros(rows * cols // 64),
        "weight.quant_map": torch.zeros(16),
        "weight.quant_state.bitsandbytes__nf4": torch.zeros(80, dtype=torch.uint8),
    }


INT4 = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32, "symmetric": True}
FORMATS: dict[str, tuple[Callable[[int, int], dict[str, torch.Tensor]], dict[str, Any]]] = {
    "fp8 in blocks": (fp8_blocks, {"quant_method": "fp8", "weight_block_size": [128, 128]}),
    "fp8 per row": (fp8_rows, {"quant_method": "fbgemm_fp8"}),
    "fp8 per tensor": (fp8_tensor, {"quant_method": "fp8", "activation_scheme": "static"}),
    "int8 per row": (int8_rows, {"quant_method": "bitsandbytes", "load_in_8bit": True}),
    "gptq": (gptq, {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": False}),
    "awq": (awq, {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True}),
    "compressed-tensors": (
        pack_quantized,
        {"quant_method": "compressed-tensors", "config_groups": {"g": {"weights": INT4}}},
    ),
    "nvfp4": (nvfp4, {"quant_method": "modelopt", "quant_algo": "NVFP4"}),
    "nf4": (nf4, {"quant_method": "bitsandbytes", "load_in_4bit": True}),
}


def quantize(
    folder: Path, source: Path, make: Callable[[int, int], dict[str, torch.Tensor]], **keys: Any
) -> Path:
    """Write a copy of a saved model whose linear layers are quantized by ``make``."""
    tensors, config = contents(source)
    for name in [name for name in tensors if name.endswith("proj.weight")]:
        rows, cols = tensors.pop(name).shape
        tensors |= {name.removesuffix("weight") + part: tensor for part, tensor in make(rows, cols).items()}
    return write(folder, tensors, {**config, **keys})


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("model", ["tied", "qwen3 moe"])
def test_a_quantized_checkpoint_agrees(
    model: str, name: str, saved: Callable[[str], Path], tmp_path: Path
) -> None:
    make, section = FORMATS[name]
    folder = quantize(tmp_path / "x", saved(model), make, quantization_config=section)
    assert load_model(folder).digest == load_model(folder / "config.json").digest
    assert not any("otherwise" in note for note in load_model(folder).notes)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("model", ["tied", "qwen3 moe"])
def test_the_storage_is_seen_without_a_quantization_config(
    model: str, name: str, saved: Callable[[str], Path], tmp_path: Path
) -> None:
    make, section = FORMATS[name]
    said = load_model(quantize(tmp_path / "said", saved(model), make, quantization_config=section))
    seen = load_model(quantize(tmp_path / "seen", saved(model), make))
    assert seen.parameters == load_model(saved(model)).parameters
    assert any("otherwise than config.json says" in note for note in seen.notes)
    for ours, theirs in zip(seen.layers, said.layers, strict=True):
        for weight, wanted in zip(ours.weights, theirs.weights, strict=True):
            assert weight.storage.bits == wanted.storage.bits
            assert weight_bytes(weight) == weight_bytes(wanted), weight.name


def test_what_fp8_takes_is_what_the_file_has(saved: Callable[[str], Path], tmp_path: Path) -> None:
    folder = quantize(tmp_path / "fp8", saved("llama"), fp8_blocks)
    model = load_model(folder)
    assert model_bytes(model) == checkpoint(folder).data_bytes
    assert model.layers[0].weights[1].storage.compute == "fp8"


def test_some_layers_may_be_left_alone_in_silence(saved: Callable[[str], Path], tmp_path: Path) -> None:
    section = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    folder = quantize(tmp_path / "fp8", saved("llama"), fp8_blocks, quantization_config=section)
    tensors, config = contents(folder)
    for part in ("weight", "weight_scale_inv"):
        del tensors[f"model.layers.1.self_attn.o_proj.{part}"]
    tensors["model.layers.1.self_attn.o_proj.weight"] = torch.zeros(64, 64, dtype=torch.bfloat16)
    model = load_model(write(tmp_path / "mixed", tensors, config))
    assert model.pattern == (0, 1, 0)
    assert "self_attn.o_proj as bfloat16 (1x)" in " ".join(model.notes)
    assert model_bytes(model) == checkpoint(tmp_path / "mixed").data_bytes


def test_mxfp4_experts_of_gpt_oss(saved: Callable[[str], Path], tmp_path: Path) -> None:
    tensors, config = contents(saved("gpt-oss"))
    for name in [name for name in tensors if name.endswith(("gate_up_proj", "down_proj"))]:
        experts, cols, rows = tensors.pop(name).shape
        tensors[f"{name}_blocks"] = torch.zeros(experts, rows, cols // 32, 16, dtype=torch.uint8)
        tensors[f"{name}_scales"] = torch.zeros(experts, rows, cols // 32, dtype=torch.uint8)
    said = {**config, "quantization_config": {"quant_method": "mxfp4"}}
    folder = write(tmp_path / "said", tensors, said)
    assert load_model(folder).digest == load_model(folder / "config.json").digest
    seen = load_model(write(tmp_path / "seen", tensors, config))
    assert model_bytes(seen) == checkpoint(folder).data_bytes
    assert "mlp.experts.down_proj as mxfp4 (3x)" in " ".join(seen.notes)


def test_a_quantized_head_and_embedding_are_seen(saved: Callable[[str], Path], tmp_path: Path) -> None:
    tensors, config = contents(saved("llama"))
    del tensors["lm_head.weight"]
    tensors |= {f"lm_head.{part}": tensor for part, tensor in fp8_rows(320, 64).items()}
    model = load_model(write(tmp_path / "x", tensors, config))
    assert (model.head.storage.name, model.embedding.storage.name) == ("fp8 per row", "bfloat16")
    assert model_bytes(model) == checkpoint(tmp_path / "x").data_bytes


# What is noted


def changed(
    folder: Path,
    source: Path,
    *,
    remove: str = "",
    config: dict[str, Any] | None = None,
    **tensors: torch.Tensor,
) -> Path:
    """Write a copy of a saved model without the tensors that ``remove`` matches and with others."""
    held, said = contents(source)
    held = {name: tensor for name, tensor in held.items() if not (remove and re.search(remove, name))}
    return write(folder, {**held, **tensors}, {**said, **(config or {})})


def test_a_tied_head_may_be_stored_anyway(saved: Callable[[str], Path], tmp_path: Path) -> None:
    head = {"lm_head.weight": torch.zeros(320, 64, dtype=torch.bfloat16)}
    model = load_model(changed(tmp_path / "x", saved("tied"), **head))
    assert model.digest == load_model(saved("tied")).digest
    assert "holds the head though it is tied" in model.notes[-1]


def test_buffers_are_ignored(saved: Callable[[str], Path], tmp_path: Path) -> None:
    extra = {
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(8),
        "model.layers.1.self_attn.k_scale": torch.zeros(()),
    }
    model = load_model(changed(tmp_path / "x", saved("llama"), **extra))
    assert len(model.notes) == 1


def test_unknown_tensors_and_drafts_are_named(saved: Callable[[str], Path], tmp_path: Path) -> None:
    extra = {
        "model.layers.2.self_attn.indexer.wk.weight": torch.zeros(16, 64),
        "model.layers.3.eh_proj.weight": torch.zeros(64, 128, dtype=torch.bfloat16),
        "mtp.fc.weight": torch.zeros(64, 64, dtype=torch.bfloat16),
    }
    model = load_model(changed(tmp_path / "x", saved("llama"), **extra))
    assert model.digest == load_model(saved("llama")).digest
    assert "model.layers.2.self_attn.indexer.wk.weight (4096 bytes)" in model.notes[1]
    # Layer 3 of 3 is a draft (2 x 64 x 128 bytes), and so is mtp (2 x 64 x 64).
    assert "draft layers of 24576 bytes" in model.notes[2]


def test_draft_layers_are_stored_as_they_are(saved: Callable[[str], Path], tmp_path: Path) -> None:
    assert "it cannot draft tokens" in load_model(saved("deepseek v3")).notes[-1]
    folder = quantize(tmp_path / "fp8", saved("deepseek v3"), fp8_blocks)
    tensors, config = contents(folder)
    last = "model.layers.2."
    drafts = {
        name.replace(last, "model.layers.3."): tensors[name].clone() for name in tensors if last in name
    }
    for name, shape in {
        "enorm": (64,),
        "hnorm": (64,),
        "eh_proj": (64, 128),
        "shared_head.norm": (64,),
        "shared_head.head": (320, 64),
        "embed_tokens": (320, 64),
    }.items():
        drafts[f"model.layers.3.{name}.weight"] = torch.zeros(shape, dtype=torch.bfloat16)
    model = load_model(write(tmp_path / "drafts", tensors | drafts, config))
    stored = {weight.name: weight.storage.name for weight in model.drafts[0].weights}
    # 32 x 64 elements have one block.
    assert stored["mlp.experts.up_proj"] == "fp8 per tensor"
    assert stored["eh_proj"] == stored["mlp.gate"] == "bfloat16"
    assert "count where tokens are drafted" in model.notes[-1]


def test_towers_are_taken_from_the_checkpoint(saved: Callable[[str], Path], tmp_path: Path) -> None:
    tower = {
        "vision_tower.patch.weight": torch.zeros(8, 3, 4, 4, dtype=torch.bfloat16),
        "vision_tower.blocks.0.norm.bias": torch.zeros(8, dtype=torch.bfloat16),
    }
    model = load_model(changed(tmp_path / "x", saved("llama"), **tower))
    assert sum(map(weight_bytes, model.towers)) == 2 * (8 * 3 * 4 * 4 + 8)
    assert "the towers have 392 parameters in the checkpoint, 0 by the configuration" in model.notes[0]


def test_float32_tensors_count_as_they_are_loaded(saved: Callable[[str], Path], tmp_path: Path) -> None:
    tensors, config = contents(saved("llama"))
    whole = {name: tensor.float() for name, tensor in tensors.items()}
    model = load_model(write(tmp_path / "x", whole, config))
    assert model.digest == load_model(saved("llama")).digest
    assert "tensors of dtype F32 count as bfloat16" in model.notes[-1]


def test_a_silent_configuration_takes_the_dtype_of_the_checkpoint(
    saved: Callable[[str], Path], tmp_path: Path
) -> None:
    tensors, config = contents(saved("llama"))
    half = {name: tensor.half() for name, tensor in tensors.items()}
    folder = write(tmp_path / "x", half, {**config, "dtype": None})
    assert load_model(folder).dtype == "float16"
    assert load_model(folder / "config.json").dtype == "bfloat16"
    assert load_model(folder, dtype="bfloat16").dtype == "bfloat16"


# What is refused


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            {"config": {"intermediate_size": 176}},
            "layer 0 mlp.gate_proj is 160 x 64 in the checkpoint, 176 x 64 by the configuration",
        ),
        ({"config": {"num_hidden_layers": 4}}, "layer 3 input_layernorm is not in the checkpoint"),
        ({"config": {"vocab_size": 321}}, "embed_tokens is 320 x 64 in the checkpoint, 321 x 64"),
        ({"config": {"attention_bias": False}}, "self_attn.q_proj has 64 biases in the checkpoint, none by"),
        ({"remove": "lm_head"}, "lm_head is not in the checkpoint"),
        ({"remove": r"layers\.1\.mlp\.up_proj"}, "layer 1 mlp.up_proj is not in the checkpoint"),
        ({"remove": r"model\.norm"}, "norm is not in the checkpoint"),
    ],
)
def test_another_model_is_refused(
    change: dict[str, Any], says: str, saved: Callable[[str], Path], tmp_path: Path
) -> None:
    message = refusal(changed(tmp_path / "x", saved("llama"), **change))
    assert says in message
    assert "config.json and checkpoint must describe the same model" in message


def test_a_transposed_matrix_of_the_same_size_is_another(
    saved: Callable[[str], Path], tmp_path: Path
) -> None:
    swap = {"model.layers.0.mlp.up_proj.weight": torch.zeros(80, 128, dtype=torch.bfloat16)}
    assert "layer 0 mlp.up_proj is 80 x 128" in refusal(changed(tmp_path / "x", saved("llama"), **swap))


def test_an_expert_too_few_is_refused(saved: Callable[[str], Path], tmp_path: Path) -> None:
    folder = changed(tmp_path / "x", saved("qwen3 moe"), remove=r"layers\.2\.mlp\.experts\.5\.up")
    assert "layer 2 mlp.experts.up_proj is 5 of 32 x 64 in the checkpoint, 6 of 32 x 64" in refusal(folder)


def test_a_checkpoint_without_configuration_is_refused(saved: Callable[[str], Path], tmp_path: Path) -> None:
    folder = changed(tmp_path / "x", saved("llama"))
    (folder / "config.json").unlink()
    assert "holds safetensors files but no config.json; put the config.json" in refusal(folder)
    assert f"got the file {folder}/model.safetensors; give {folder}" in refusal(folder / "model.safetensors")


def test_a_missing_shard_is_named(saved: Callable[[str], Path], tmp_path: Path) -> None:
    folder = copied(saved("llama"), tmp_path / "x")
    shards = sorted(folder.glob("*.safetensors"))
    shards[1].unlink()
    assert f"lacks {shards[1].name}; finish the download" in refusal(folder)
    # The configuration alone still can be planned with.
    assert load_model(folder / "config.json").num_layers == 3


def test_an_index_that_lies_is_refused(saved: Callable[[str], Path], tmp_path: Path) -> None:
    folder = copied(saved("llama"), tmp_path / "x")
    index = folder / "model.safetensors.index.json"
    data = json.loads(index.read_text())

    def put(weight_map: object) -> str:
        index.write_text(json.dumps({"weight_map": weight_map}))
        return refusal(folder)

    names = iter(data["weight_map"].items())
    (first, file), (second, _) = next(names), next(names)
    elsewhere = next(other for other in data["weight_map"].values() if other != file)
    assert f"puts {first} into {elsewhere}, which does not hold it" in put({first: elsewhere, second: file})
    assert "got ../model.safetensors" in put({first: "../model.safetensors"})
    assert "got /etc/passwd" in put({first: "/etc/passwd"})
    assert "must hold a weight_map" in put([first])
    assert "must hold a weight_map" in put({})
    assert "got 7" in put({first: 7})
    index.write_text('{"weight_map": ')
    assert "cannot be read" in refusal(folder)


def test_files_without_an_index_belong_together(saved: Callable[[str], Path], tmp_path: Path) -> None:
    folder = copied(saved("llama"), tmp_path / "x")
    (folder / "model.safetensors.index.json").unlink()
    assert load_model(folder).digest == load_model(saved("llama")).digest
    (folder / "consolidated.safetensors").write_bytes(b"a second copy is not read")
    assert load_model(folder).digest == load_model(saved("llama")).digest
    shard = next(folder.glob("model-*.safetensors"))
    (folder / "model-copy.safetensors").write_bytes(shard.read_bytes())
    assert "a tensor may lie in one file only" in refusal(folder)


def copied(source: Path, target: Path) -> Path:
    target.mkdir()
    for file in source.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    return target


# Broken files


def header_of(entries: object) -> bytes:
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text


ENTRY = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "ends after 0 bytes"),
        (b"\x01\x02\x03", "ends after 3 bytes"),
        (struct.pack("<Q", 2**63) + b"{}", "ends after 10 bytes"),
        (struct.pack("<q", -1) + b"{}", "ends after 10 bytes"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 7\n",
            "fetch it with 'git lfs pull'",
        ),
        (struct.pack("<Q", 2) + b"[]", "must start with an opening brace"),
        (struct.pack("<Q", 4) + b"{\xff\xff}", "must be a JSON object"),
        (struct.pack("<Q", 200_000) + b'{"a":' + b"[" * 199_995, "must be a JSON object"),
        (header_of({"a": ENTRY}), "take 24 bytes by its header, but 0 follow it"),
        (header_of({"a": ENTRY}) + bytes(25), "take 24 bytes by its header, but 25 follow it"),
        (header_of({"a": {**ENTRY, "dtype": "F33"}}) + bytes(24), "dtype 'F33', known are BOOL"),
        (header_of({"a": {**ENTRY, "shape": [2, 4]}}) + bytes(24), "shape [2, 4] cannot lie in 24 bytes"),
        (header_of({"a": {**ENTRY, "shape": [-2, -3]}}) + bytes(24), "the shape [-2, -3]"),
        (header_of({"a": {**ENTRY, "shape": [True, 6]}}) + bytes(24), "the shape [True, 6]"),
        (header_of({"a": {**ENTRY, "shape": [2**70]}}) + bytes(24), "the shape [1180"),
        (header_of({"a": {**ENTRY, "shape": [2] * 65}}) + bytes(24), "the shape [2, 2"),
        (header_of({"a": {"dtype": "F32", "shape": [6]}}) + bytes(24), "lacks dtype, shape or two"),
        (header_of({"a": ENTRY, "b": ENTRY}) + bytes(24), "b starts at byte 0, the one before ends at 24"),
        (header_of({"a": {**ENTRY, "data_offsets": [4, 28]}}) + bytes(28), "starts at byte 4"),
        (header_of({"a": {**ENTRY, "data_offsets": [24, 0]}}) + bytes(24), "cannot lie in -24 bytes"),
        (
            header_of({"a": {"dtype": "F4", "shape": [3], "data_offsets": [0, 1]}}) + b"x",
            "cannot lie in 1 bytes",
        ),
        (header_of({"a\nb" * 999: 1}), "lacks dtype"),
        (header_of({"__metadata__": {"a": 1}}), "__metadata__ must be an object of texts"),
        (header_of({}).replace(b"{}", b'{"a":1,"a":1}').replace(b"\x02", b"\r", 1), "a name occurs twice"),
    ],
)
def test_a_broken_file_is_refused(
    content: bytes, says: str, saved: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = changed(tmp_path / "x", saved("tied"))
    (folder / "model.safetensors").write_bytes(content)
    assert says in refusal(folder)


def test_a_header_beyond_the_limit_is_not_read(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    with file.open("wb") as stream:
        stream.write(struct.pack("<Q", 150_000_000))
        # A sparse file: it has the size, and takes no room.
        stream.truncate(200_000_000)
    with pytest.raises(ModelError, match=r"may have 100000000 bytes, .* claims 150000000"):
        read_header(file)


SIZES = st.one_of(st.integers(0, 9), st.sampled_from([-1, 24, 2**31, 2**64, 1.5, None, "3", True]))
ENTRIES = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from(["F32", "BF16", "F4", "F8_E8M0", "I64", "f32", 7, None]),
        "shape": st.one_of(st.lists(SIZES, max_size=3), st.none()),
        "data_offsets": st.one_of(st.lists(SIZES, max_size=3), st.integers()),
        "more": st.none(),
    },
)
HEADERS = st.one_of(
    st.dictionaries(st.text(max_size=3), st.one_of(ENTRIES, st.none()), max_size=3).map(header_of),
    st.binary(max_size=40),
)


@st.composite
def files(draw: st.DrawFn) -> bytes:
    """Draw a file: an honest one with some bytes changed, added or cut off, or a wild one."""
    if draw(st.booleans()):
        return draw(HEADERS) + bytes(draw(st.integers(0, 40)))
    shapes = draw(st.lists(st.lists(st.integers(0, 4), max_size=3), min_size=1, max_size=4))
    entries, end = {}, 0
    for index, shape in enumerate(shapes):
        start, end = end, end + 2 * int(torch.Size(shape).numel())
        entries[f"t{index}"] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    content = bytearray(header_of(entries) + bytes(end))
    for _ in range(draw(st.integers(0, 2))):
        content[draw(st.integers(0, len(content) - 1))] = draw(st.integers(0, 255))
    return bytes(content[: len(content) - draw(st.integers(0, 3))])


@given(content=files())
@settings(max_examples=600, deadline=None)
def test_a_header_is_read_rightly_or_refused(
    content: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    file = tmp_path_factory.getbasetemp() / "drawn.safetensors"
    file.write_bytes(content)
    try:
        ours = {tensor.name: tensor for tensor in read_header(file)}
    except ModelError as error:
        assert "\n" not in str(error)
        assert len(str(error)) < 1000
        with pytest.raises((SafetensorError, OSError)):
            reference(file)
    else:
        assert ours == reference(file)


# The Hub


class Hub(SimpleHTTPRequestHandler):
    """Serve folders as the Hub serves repositories: ``/{repository}/resolve/main/{file}``, in ranges."""

    asked: ClassVar[list[str]] = []

    def do_HEAD(self) -> None:
        self.answer(with_content=False)

    def do_GET(self) -> None:
        self.answer(with_content=True)

    def answer(self, *, with_content: bool) -> None:
        path = self.path.partition("?")[0]
        folder, _, name = path.partition("/resolve/main/")
        file = Path(self.directory) / Path(folder).name / name
        if not name or not file.is_file():
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        content, wanted = file.read_bytes(), re.match(r"bytes=(\d+)-(\d+)", self.headers.get("range", ""))
        if with_content:
            self.asked.append(name if wanted is None else f"{name} {wanted[0]}")
        self.send_response(206 if wanted else 200)
        start, end = (int(wanted[1]), int(wanted[2]) + 1) if wanted else (0, len(content))
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", "1" * 40)
        self.send_header("Content-Length", str(len(content[start:end])))
        if wanted:
            self.send_header(
                "Content-Range", f"bytes {start}-{start + len(content[start:end]) - 1}/{len(content)}"
            )
        self.end_headers()
        if with_content:
            self.wfile.write(content[start:end])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub(
    saved: Callable[[str], Path], tmp_path: Path
) -> Iterator[Callable[[str], subprocess.CompletedProcess[str]]]:
    """Serve the saved model ``qwen3 moe`` as ``tiny/moe``, and run code that asks that server for it."""
    copied(saved("qwen3 moe"), tmp_path / "moe")
    Hub.asked.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Hub, directory=str(tmp_path)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    # huggingface_hub reads its settings once, when it is imported.
    settings = {
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_XET": "1",
    }

    def run(code: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", f"from pgplan import load_model\n{code}"],
            env={**os.environ, **settings},
            capture_output=True,
            text=True,
            timeout=60,
        )

    try:
        yield run
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_repository_is_read_by_its_headers(
    hub: Callable[[str], subprocess.CompletedProcess[str]], saved: Callable[[str], Path]
) -> None:
    local = load_model(saved("qwen3 moe"))
    done = hub("model = load_model('tiny/moe'); print(model.digest, model.notes[-1], sep='\\n')")
    assert done.stdout.splitlines() == [local.digest, local.notes[-1]], done.stderr
    # Of the tensors only the first 100 kB of each file were asked for, never a file.
    assert sorted(name for name in Hub.asked if ".safetensors " in name) == [
        f"{file.name} bytes=0-100000" for file in sorted(saved("qwen3 moe").glob("*.safetensors"))
    ]
    assert not any(name.endswith(".safetensors") for name in Hub.asked)


def test_a_repository_that_is_not_there_is_refused_in_one_line(
    hub: Callable[[str], subprocess.CompletedProcess[str]],
) -> None:
    done = hub("load_model('tiny/nothing')")
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert "the catalogue has no model 'tiny/nothing'" in last
    assert "the Hugging Face Hub does not give it either" in last


def test_without_network_one_line_says_so() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pgplan", "plan", "tiny/nothing", "--gpu", "L4", "--pp", "2"],
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert "offline mode is enabled" in done.stderr


# Names


@pytest.mark.parametrize(
    ("name", "place", "layer", "module", "role"),
    [
        ("model.layers.7.self_attn.q_proj.weight", "layer", 7, "self_attn.q_proj", "weight"),
        ("transformer.h.0.self_attention.dense.bias", "layer", 0, "self_attention.dense", "bias"),
        ("model.layers.3.mlp.experts.11.up_proj.qweight", "layer", 3, "mlp.experts.up_proj", "weight"),
        ("model.layers.3.mlp.experts.gate_up_proj_scales", "layer", 3, "mlp.experts.gate_up_proj", "scale"),
        ("model.layers.3.self_attn.sinks", "layer", 3, "self_attn.sinks", "weight"),
        ("transformer.h.1.attn.bias", "layer", 1, "attn.bias", "buffer"),
        ("transformer.h.1.attn.c_attn.bias", "layer", 1, "attn.c_attn", "bias"),
        ("model.layers.61.embed_tokens.weight", "draft", 61, "embed_tokens", "weight"),
        ("mtp.layers.0.mlp.up_proj.weight", "draft", -1, "mtp.layers.0.mlp.up_proj", "weight"),
        ("model.visual.blocks.3.attn.qkv.weight", "tower", -1, "model.visual.blocks.3.attn.qkv", "weight"),
        ("model.language_model.layers.2.mlp.up_proj.weight", "layer", 2, "mlp.up_proj", "weight"),
        ("multi_modal_projector.linear_1.weight", "tower", -1, "multi_modal_projector.linear_1", "weight"),
        ("transformer.wte.weight", "embedding", -1, "wte", "weight"),
        ("lm_head.weight", "head", -1, "lm_head", "weight"),
        ("gpt_neox.final_layer_norm.weight", "outside", -1, "final_layer_norm", "weight"),
        ("model.layers.0.mlp.up_proj.weight.nested_absmax", "layer", 0, "mlp.up_proj", "nested"),
    ],
)
def test_names_tell_place_and_role(name: str, place: str, layer: int, module: str, role: str) -> None:
    found = parse(name, num_layers=61)
    assert (found.place, found.layer, found.module, found.role) == (place, layer, module, role)
