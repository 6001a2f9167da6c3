"""The catalogue: every entry loads, names are forgiving and never ambiguous."""

from __future__ import annotations

import re

import pytest

from pgplan.errors import ModelError
from pgplan.model import catalogue_entry, catalogue_names, load_model


@pytest.mark.parametrize("name", catalogue_names())
def test_every_entry_loads_and_states_its_source(name: str) -> None:
    entry, model = catalogue_entry(name), load_model(name)
    assert re.fullmatch(r"[\w.-]+/[\w.-]+", entry.source)
    assert entry.about
    assert (model.name, model.source) == (name, entry.source)
    assert model.max_position_embeddings >= 2048


@pytest.mark.parametrize("name", catalogue_names())
def test_every_entry_is_found_by_its_repository(name: str) -> None:
    assert catalogue_entry(catalogue_entry(name).source).name == name


def test_there_are_models_big_and_small() -> None:
    sizes = [load_model(name).parameters for name in catalogue_names()]
    assert len(sizes) >= 30
    assert min(sizes) < 1e9
    assert max(sizes) > 1e12


@pytest.mark.parametrize(
    ("typed", "name"),
    [
        ("Llama-3.1-70B", "llama-3.1-70b"),
        ("llama 3.1 70b", "llama-3.1-70b"),
        ("llama3.1_70b", "llama-3.1-70b"),
        ("meta-llama/Llama-3.1-70B-Instruct", "llama-3.1-70b"),
        ("meta-llama/Meta-Llama-3.1-405B-FP8", "llama-3.1-405b-fp8"),
        ("Mistral-7B-Instruct-v0.2", "mistral-7b-v0.2"),
        ("google/gemma-3-27b-it", "gemma-3-27b"),
        ("GPT_OSS_120B", "gpt-oss-120b"),
        ("qwen2-7b", "qwen2-7b"),
        ("Qwen/Qwen2.5-7B-Instruct", "qwen2.5-7b"),
    ],
)
def test_spelling_is_forgiven(typed: str, name: str) -> None:
    assert catalogue_entry(typed).name == name


@pytest.mark.parametrize(
    ("typed", "near"),
    [
        # Without separators this reads as qwen2.5-7b, another model.
        ("qwen2-57b", "qwen2-57b-a14b"),
        ("llama-3.1-71b", "llama-3.1-70b"),
        ("deepseek-v3.5", "deepseek-v3"),
        ("llama", "llama-"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest(typed: str, near: str) -> None:
    with pytest.raises(
        ModelError, match=re.escape(f"the catalogue has no model {typed!r}; the nearest are ")
    ) as e:
        catalogue_entry(typed)
    assert near in str(e.value)


@pytest.mark.parametrize("typed", ["", "@@@", "/"])
def test_a_name_near_to_nothing_is_refused(typed: str) -> None:
    with pytest.raises(ModelError, match=r"'pgplan models' lists all"):
        catalogue_entry(typed)
