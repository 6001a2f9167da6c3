import re
from dataclasses import replace
from itertools import combinations
from xml.etree import ElementTree

import pytest
from plan_samples import NAMES, sample

from pgplan.view import plan_svg
from pgplan.view.layout import text_width
from pgplan.view.picture import make_picture
from pgplan.view.svg import picture_hovers, picture_pieces

SVG = "{http://www.w3.org/2000/svg}"
WIDTHS = (480, 960, 1400)


def _boxes(svg):
    """Return (left, top, right, bottom, words) of every text, by the average letter of DejaVu Sans."""
    for element in ElementTree.fromstring(svg).iter(SVG + "text"):
        font = float(element.get("font-size"))
        bold = element.get("font-weight") is not None
        wide = text_width(element.text, font, bold=bold) * 0.9
        left = float(element.get("x"))
        left -= {"end": wide, "middle": wide / 2}.get(element.get("text-anchor"), 0)
        baseline = float(element.get("y"))
        yield left, baseline - 0.75 * font, left + wide, baseline + 0.2 * font, element.text


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", NAMES)
def test_nothing_overlaps_and_nothing_is_cut_off(name, width):
    svg = plan_svg(sample(name), width=width)
    root = ElementTree.fromstring(svg)
    height = float(root.get("height"))
    boxes = list(_boxes(svg))
    for left, top, right, bottom, words in boxes:
        assert left >= 0, words
        assert right <= width, words
        assert top >= 0, words
        assert bottom <= height, words
    for one, other in combinations(boxes, 2):
        apart = one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]
        assert apart, (one, other)


@pytest.mark.parametrize("name", NAMES)
def test_it_is_harmless_in_any_page(name):
    root = ElementTree.fromstring(plan_svg(sample(name)))
    for element in root.iter():
        assert element.tag.removeprefix(SVG) in {"svg", "desc", "g", "text", "path", "rect", "title"}
        assert element.get("id") is None
        assert element.get("class") is None


@pytest.mark.parametrize("name", NAMES)
def test_a_screen_reader_hears_the_sentence(name):
    plan = sample(name)
    root = ElementTree.fromstring(plan_svg(plan))
    assert root.get("role") == "img"
    spoken = root.get("aria-label")
    assert (plan.bottleneck.why if plan.fits else plan.problems[0])[1:] in spoken
    assert plan.model.name in spoken
    assert plan.tier in root.find(SVG + "desc").text


def test_text_follows_the_theme_except_on_coloured_parts():
    fills = {
        element.get("fill") for element in ElementTree.fromstring(plan_svg(sample("four"))).iter(SVG + "text")
    }
    assert fills == {None, "#000000", "#FFFFFF"}


def test_every_stage_can_be_asked_for_its_figures():
    plan = sample("sixteen")
    for width in (960, 480):
        titles = [e.text for e in ElementTree.fromstring(plan_svg(plan, width=width)).iter(SVG + "title")]
        assert len(titles) == 3 * plan.pp_size
        for stage in range(plan.pp_size):
            memory, decode, prefill = titles[3 * stage : 3 * stage + 3]
            assert memory.startswith(f"stage {stage} on H200")
            assert decode.startswith(f"stage {stage}, decode")
            assert prefill.startswith(f"stage {stage}, prefill")


@pytest.mark.parametrize("width", [960, 480])
def test_its_pieces_are_one_element_each_however_many_stages_there_are(width):
    """Who replaces a piece replaces one child; a stage more or less leaves the others in their places."""
    for name in NAMES:
        picture = make_picture(sample(name))
        opened, *pieces = (*picture_pieces(picture, width=width), picture_hovers(picture, width=width))
        assert opened.startswith("<svg ")
        assert opened.count("<") == 1
        root = ElementTree.fromstring(plan_svg(sample(name), width=width))
        whole = [ElementTree.tostring(child) for child in root]
        assert len(whole) == len(pieces) == 7 + sample(name).pp_size
        for child, piece in zip(whole, pieces, strict=True):
            alone = ElementTree.fromstring(f'<svg xmlns="{SVG[1:-1]}">{piece}</svg>')
            assert [ElementTree.tostring(each) for each in alone] == [child]


def test_names_are_escaped():
    plan = sample("four")
    odd = replace(plan, model=replace(plan.model, name='<b onload="x()">&'))
    root = ElementTree.fromstring(plan_svg(odd))
    assert root.get("aria-label").startswith('<b onload="x()">& on ')
    assert not list(root.iter("b"))


def test_parts_differ_without_colour():
    """Any two parts differ in texture, or in luminance by a quarter."""
    from pgplan.view.parts import PARTS

    def luminance(colour):
        if colour == "none":
            return 1.0
        channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    def contrast(one, other):
        high, low = sorted((luminance(one), luminance(other)), reverse=True)
        return (high + 0.05) / (low + 0.05)

    # Any two parts may be neighbours, since each may be missing.
    for one, other in combinations(PARTS, 2):
        if one.hatch == other.hatch:
            assert contrast(one.colour, other.colour) >= 1.25, (one.key, other.key)
    for part in PARTS:
        if part.ink != "currentColor":
            assert contrast(part.colour, part.ink) >= 4.5, part.key


def test_the_budget_line_stands_where_the_budget_ends():
    plan = sample("four")
    stage = plan.stages[0]
    svg = plan_svg(plan)
    ends = {}
    for dashes, key in (('stroke-dasharray="4 2.5"', "budget"), ('opacity="0.75"', "memory")):
        path = re.search(rf'<path d="M([0-9.]+) [^"]*" fill="none"[^>]*{re.escape(dashes)}', svg)
        ends[key] = float(path[1])
    bar = re.search(r'<path d="M([0-9.]+) [^"]*" fill="none" stroke="#0072B2"', svg)
    start = float(bar[1])
    assert (ends["budget"] - start) / (ends["memory"] - start) == pytest.approx(
        stage.budget_bytes / stage.memory_bytes, abs=2e-3
    )


def test_only_a_full_pipeline_has_a_cycle_line():
    cycle = 'stroke-dasharray="2 2"'
    assert plan_svg(sample("four")).count(cycle) == 2
    assert plan_svg(sample("starved")).count(cycle) == 0


def test_it_is_a_pure_function_of_the_plan():
    plan = sample("four")
    assert plan_svg(plan) == plan_svg(replace(plan)) == plan.to_svg()
    assert plan_svg(plan) != plan_svg(sample("default"))
