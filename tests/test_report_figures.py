"""Figures drawn for the report: lengths by hand, names escaped."""

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image
from test_report_html import HOSTILE, layer

from stars_deploy.targets.bundle import Golden
from stars_deploy.validation.bars import rates_chart, short, spikes_chart, ticks
from stars_deploy.validation.evidence import Series
from stars_deploy.validation.plots import raster
from stars_deploy.validation.plots_making import accuracy_chart, curve_chart
from stars_deploy.validation.sections.layers import _levels_picture, layer_rows


def widths(figure, colour):
    pattern = rf'width="([0-9.]+)" height="10" style="fill:var\(--{colour}\)"'
    return [float(width) for width in re.findall(pattern, figure)]


def test_bars_are_as_long_as_their_spikes():
    rows = [
        {**layer("a"), "spikes_reference": 400, "spikes_target": 100},
        {**layer("b"), "spikes_reference": 0, "spikes_target": 200},
    ]
    figure = spikes_chart(rows, "float", "integer")
    reference, target = widths(figure, "reference"), widths(figure, "target")
    assert reference[1] == 0 and reference[0] > 200
    assert target == pytest.approx([reference[0] / 4, reference[0] / 2], abs=0.1)
    assert 'aria-label="Spikes per layer, float and integer"' in figure


def test_rates_are_dots_between_0_and_100():
    rows = [{**layer(name), "rate": rate} for name, rate in (("a", 0), ("b", 0.5), ("c", 1))]
    low, middle, high = (float(x) for x in re.findall(r'cx="([0-9.]+)"', rates_chart(rows)))
    assert middle == pytest.approx((low + high) / 2, abs=0.1) and high <= 400


def test_hostile_names_are_escaped_in_every_figure():
    row = {"label": HOSTILE, "value": 0.5, "low": 0.4, "high": 0.6}
    series = Series(step=(1, 2), values={"loss": (1.0, 2.0), "agreement": (0.5, None)})
    for figure in (
        spikes_chart([layer(HOSTILE)], HOSTILE, HOSTILE),
        rates_chart([layer(HOSTILE)]),
        accuracy_chart([row], "key"),
        curve_chart(series, "updates", "agreement", HOSTILE, "key"),
    ):
        assert "<script" not in figure and "&lt;script" in figure


@pytest.mark.parametrize(
    ("most", "expected"),
    [(1, [0, 0.2, 0.4, 0.6, 0.8, 1.0]), (10, [0, 2, 4, 6, 8, 10]), (46, [0, 10, 20, 30, 40]),
     (23, [0, 5, 10, 15, 20]), (99, [0, 20, 40, 60, 80])],
)  # fmt: skip
def test_ticks_are_round_and_few(most, expected):
    assert ticks(most) == pytest.approx(expected)


def test_numbers_are_short():
    assert [short(x) for x in (0, 999, 12_345, 2_500_000, 3e9)] == [
        "0", "999", "12.3 k", "2.5 M", "3 G",
    ]  # fmt: skip
    assert short(5e6, 1.4e7) == "5 M" and short(0, 1.4e7) == "0" and short(0.2, 1) == "0.2"


def test_levels_fill_their_bar_in_order():
    figure = _levels_picture([0.5, 0.25, 0.25], "lif1")
    found = re.findall(r'x="([0-9.]+)" y="1" width="([0-9.]+)".*?fill-opacity:([0-9.]+)', figure)
    assert [tuple(map(float, item)) for item in found] == [
        (0, 80, 0), (80, 40, 0.5), (120, 40, 1),
    ]  # fmt: skip
    assert "50 % 0, 25 % 1, 25 % 2" in figure


def test_layers_stand_in_the_order_of_the_network():
    order = ["lif1", "lif2", "lif10"]
    spikes = {name: np.zeros((2, 1, 4), np.uint8) for name in sorted(order)}
    spikes["lif2"][0, 0, :2] = 1
    golden = Golden(np.zeros((1, 1, 2, 2), np.uint8), np.zeros(1, np.int64), "random",
                    {}, {"float": spikes})  # fmt: skip
    rows = layer_rows(golden, None, order)
    assert [row["name"] for row in rows] == order
    assert [row["rate"] for row in rows] == [0, 0.25, 0] and rows[1]["silent"] == 0.5


def test_raster_has_a_pixel_per_step_and_neuron():
    spikes = np.array([[[1, 0, 0]], [[0, 1, 0]]], np.uint8)  # [T, 1, 3]
    (row,) = raster({"lif1": spikes})
    assert row["label"] == "lif1: 3 neurons, 2 spikes"
    content = base64.b64decode(row["image"].partition(",")[2])
    alpha = np.asarray(Image.open(io.BytesIO(content)))[..., 3]
    np.testing.assert_array_equal(alpha, [[255, 0, 0], [0, 255, 0]])


def test_raster_bins_a_wide_layer_by_the_busiest_bin():
    spikes = np.zeros((1, 720), np.uint8)
    spikes[0, :2] = 1
    spikes[0, 2] = 1
    (row,) = raster({"lif1": spikes})
    content = base64.b64decode(row["image"].partition(",")[2])
    alpha = np.asarray(Image.open(io.BytesIO(content)))[0, :, 3]
    assert alpha.shape == (360,) and alpha[:3].tolist() == [255, 128, 0]
