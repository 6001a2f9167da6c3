from dataclasses import replace

import pytest

from pgplan.hardware import find_gpu
from pgplan.model import load_model
from pgplan.widgets.choice import Choice, Known, Source
from pgplan.workload import Workload

NOTHING = Known(models={}, gpus={})


@pytest.fixture
def choice():
    model = load_model("llama-3.1-8b")
    return Choice(
        source=Source.of(model),
        base=model,
        num_layers=32,
        gpus=(find_gpu("H200"),) * 4,
        tp_size=1,
        link=None,
        engine="vllm",
        objective="decode",
        split="auto",
        workload=Workload(max_model_len=8192),
    )


def test_a_choice_plans(choice):
    assert sum(choice.plan().split) == 32


def test_a_choice_made_from_a_plan_gives_it_again(choice):
    mixed = replace(choice, gpus=(find_gpu("H200"), find_gpu("L40S")), engine="sglang", split="20,12")
    made = mixed.plan()
    assert Choice.from_plan(made).plan() == made
