import json
from dataclasses import replace

import pytest
from plan_samples import sample

import pgplan as pg
from pgplan.widgets.choice import Choice, Known
from pgplan.widgets.code import plan_code
from pgplan.widgets.edits import edit

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "num_hidden_layers": 12,
    "hidden_size": 512,
    "intermediate_size": 1024,
    "num_attention_heads": 8,
    "vocab_size": 1000,
    "max_position_embeddings": 8192,
}


def _run(choice):
    names = {}
    exec(plan_code(choice), names)
    return names["plan"]


@pytest.mark.parametrize("name", ["four", "default", "uneven", "sglang", "mixed", "too big", "eight"])
def test_the_code_makes_an_equal_plan(name):
    plan = sample(name)
    assert _run(Choice.from_plan(plan)) == plan


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("layers", 70),
        ("dtype", "float16"),
        ("kv_dtype", "fp8"),
        ("memory_utilization", 0.8),
        ("tp", 2),
        ("objective", "balanced"),
        ("split", "auto"),
        ("split", "default"),
        ("split", "18,*,*,19"),
        ("config", json.dumps(CONFIG)),
    ],
)
def test_every_edit_is_in_the_code(field, value):
    name = "model" if field == "config" else field
    choice, _ = edit(Choice.from_plan(sample("four")), name, value, Known(models={}, gpus={}))
    assert _run(choice) == choice.plan()


def test_a_file_is_named_by_its_whole_path(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    monkeypatch.chdir(tmp_path)
    choice, _ = edit(Choice.from_plan(sample("four")), "model", "config.json", Known(models={}, gpus={}))
    code = plan_code(choice)
    assert str(tmp_path) in code
    assert _run(choice) == choice.plan()


def test_a_device_and_a_link_of_ones_own_are_written_out():
    device = replace(pg.find_gpu("L40S"), name="lab card", memory_error=0.0)
    link = pg.Link(name="100 GbE", bandwidth=11e9, latency_s=50e-6)
    plan = pg.plan("llama-3.1-8b", pg.Cluster.uniform(device, pp_size=2, link=link))
    assert _run(Choice.from_plan(plan)) == plan


def test_a_model_of_ones_own_is_read_from_the_saved_plan(tmp_path, monkeypatch):
    model = replace(pg.load_model("llama-3.1-8b"), name="mine")
    plan = pg.plan(model, pg.Cluster.uniform("H200", pp_size=2), split="17,15")
    (tmp_path / "plan.json").write_text(plan.to_json())
    monkeypatch.chdir(tmp_path)
    assert _run(Choice.from_plan(plan)) == plan
