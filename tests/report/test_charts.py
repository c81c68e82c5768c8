from xml.etree import ElementTree

import pytest

from mrmodel.report.charts import Frame, Timeline, bar_chart, line_chart


def parse(svg: str) -> ElementTree.Element:
    return ElementTree.fromstring(svg)


def test_a_line_chart_has_a_line_and_a_name_for_each_series() -> None:
    svg = line_chart({"one": [(0, 1.0), (10, 2.0)], "t<o": [(0, 0.5)], "none": []}, "loss")
    root = parse(svg)
    assert len(root.findall("polyline")) == 2
    texts = [text.text for text in root.findall("text")]
    assert "one" in texts
    assert "t<o" in texts
    assert "none" not in texts


def test_single_values_are_dots_in_the_colour_of_their_line_and_inside_the_frame() -> None:
    lines = {"one": [(0.0, 1.0), (10.0, 2.0)], "two": [(0.0, 3.0), (10.0, 3.0)]}
    root = parse(line_chart(lines, "mAP", single={"two": [(5.0, 0.0), (20.0, 9.0)]}))
    colours = [line.attrib["stroke"] for line in root.findall("polyline")]
    low, high = root.findall("circle")
    assert low.attrib["fill"] == high.attrib["fill"] == colours[1] != colours[0]
    # The axes reach to them: the greatest x is at the right margin, the values are below the top.
    assert float(high.attrib["cx"]) == 560 - 12
    assert 12 <= float(high.attrib["cy"]) < float(low.attrib["cy"]) <= 240 - 28


def test_nothing_to_draw_gives_nothing() -> None:
    assert line_chart({"none": []}, "loss") == ""
    assert bar_chart({}, "count") == ""


def test_bars_are_as_high_as_their_values() -> None:
    heights = [
        float(bar.attrib["height"])
        for bar in parse(bar_chart({"a": 2, "b": 4}, "n")).findall("rect")
    ]
    assert heights[1] == pytest.approx(2 * heights[0], abs=0.2)


def test_a_frame_maps_range_ends_to_the_margins() -> None:
    frame = Frame(200, 100, (0.0, 10.0), (0.0, 1.0), left=20, right=10, top=5, bottom=15)
    assert (frame.x(0), frame.x(10), frame.y(0), frame.y(1)) == (20, 190, 85, 5)


def test_a_timeline_draws_each_window_where_it_is() -> None:
    timeline = Timeline(
        duration_s=60.0,
        clip_len_s=2.0,
        truth=[(0.0, 30.0)],
        found=[(30.0, 60.0, 0.9), (0.0, 6.0, 0.1)],
        saliency=[0.1] * 15 + [0.9] * 15,
        ratings=[4.0] * 15 + [0.0] * 15,
    )
    root = parse(timeline.svg())
    bars = [bar for bar in root.findall("rect") if bar.attrib["height"] == "11"]
    assert len(bars) == 3
    truth, first = float(bars[0].attrib["width"]), float(bars[1].attrib["width"])
    assert abs(truth - first) < 0.2
    assert "30-60 s, 0.90" in [text.text for text in root.findall("text")]
