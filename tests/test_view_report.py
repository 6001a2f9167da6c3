"""The report: one file that says everything, loads nothing and breaks on nothing."""

from __future__ import annotations

import json
import re
from base64 import b64decode
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser

import pytest
from plan_samples import NAMES, sample

import pgplan as pg
from pgplan.engines import exporter_names, find_exporter
from pgplan.view import plan_report

VOID = {"meta", "br", "img", "link", "input", "hr"}


class Page(HTMLParser):
    """Read a page strictly: whatever is opened is closed, in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


@pytest.mark.parametrize("name", NAMES)
def test_it_is_well_formed_and_neither_loads_nor_runs_anything(name):
    page = Page(plan_report(sample(name)))
    assert page.tags.count("svg") == 1
    assert not {"script", "link", "iframe", "object", "embed", "img", "base", "form"} & set(page.tags)
    for attribute, value in page.attributes:
        assert not attribute.startswith("on")
        if attribute in ("href", "src", "action", "data", "poster", "srcset"):
            assert value.startswith("data:")
        assert "url(" not in (value or "")
    styles = re.findall(r"<style>(.*?)</style>", plan_report(sample(name)), re.DOTALL)
    assert styles and not re.search(r"url\(|@import", "".join(styles))
    assert ("content", "default-src 'none'; style-src 'unsafe-inline'") in page.attributes


def test_every_exporter_that_can_express_the_plan_is_there_in_full_and_every_other_says_why():
    plan = pg.plan("llama-3.1-70b", pg.Cluster.uniform("H200", pp_size=2, tp_size=2))
    text = plan_report(plan)
    blocks = [unescape(block) for block in re.findall(r"<pre[^>]*>(.*?)</pre>", text, re.DOTALL)]
    refused = 0
    for name in exporter_names():
        try:
            expected = plan.export(name)
        except pg.EngineError as error:
            refused += 1
            assert f"{find_exporter(name).title} {find_exporter(name).version}: {error}" in unescape(text)
        else:
            assert expected.rstrip() in blocks
    assert refused and len(blocks) == len(exporter_names()) - refused
    assert blocks[0] == plan.export().rstrip()


def test_it_says_what_was_assumed_and_how_sure_it_is():
    plan = sample("mixed too big")
    text = Page(plan_report(plan)).text
    for words in (
        *plan.problems,
        *plan.notes,
        plan.tier,
        plan.engine,
        plan.model.source,
        "max_model_len 16384",
        "A100 80GB SXM4: 73.4 GiB (estimated",
        f"may be off by {plan.time_error:.0%}".replace("%", " %"),
    ):
        assert words in text


def test_the_plan_itself_is_attached():
    plan = sample("uneven")
    data = re.search(r'href="data:application/json;base64,([^"]+)"', plan_report(plan))[1]
    assert pg.Plan.from_json(b64decode(data).decode()) == plan


def test_names_from_outside_stay_words():
    evil = "<img src=x onerror=alert(1)>\"'&"
    model = replace(pg.load_model("llama-3.1-8b"), name=evil, source=evil, notes=(evil,))
    gpu = replace(pg.find_gpu("L40S"), name=evil, source=evil)
    page = Page(plan_report(pg.plan(model, pg.Cluster.uniform(gpu, pp_size=2))))
    assert "img" not in page.tags
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert page.text.count(evil) >= 4


def test_it_is_written_whole_or_not_at_all(tmp_path):
    plan = sample("two")
    plan.report(tmp_path / "plan.html")
    assert (tmp_path / "plan.html").read_text(encoding="utf-8") == plan_report(plan)
    with pytest.raises(pg.PlanError, match=r"nowhere.*No such file.*give a name"):
        plan.report(tmp_path / "nowhere" / "plan.html")
    (tmp_path / "folder").mkdir()
    with pytest.raises(pg.PlanError, match="folder"):
        plan.report(str(tmp_path / "folder"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "plan.html"]


def test_the_command_line_writes_it(tmp_path, monkeypatch, capsys):
    from pgplan.cli import main

    monkeypatch.chdir(tmp_path)
    words = "plan llama-3.1-70b --gpu L4 --pp 4 -o plan.json --report plan.html".split()
    assert main(words) == 1
    assert "Does not fit" in capsys.readouterr().out
    plan = pg.Plan.from_json((tmp_path / "plan.json").read_text())
    assert (tmp_path / "plan.html").read_text(encoding="utf-8") == plan_report(plan)
    (tmp_path / "plan.json").write_text(json.dumps("mine"))
    assert main([*words[:-1], "nowhere/plan.html"]) == 2
    assert json.loads((tmp_path / "plan.json").read_text()) == "mine"
