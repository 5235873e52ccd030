# SPDX-License-Identifier: Apache-2.0
"""Figures drawn from plain arrays."""

import matplotlib

matplotlib.use("Agg")

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from recipes_lib import plots


@pytest.fixture(autouse=True)
def figures_closed():
    yield
    plots.pyplot.close("all")


@pytest.fixture
def ax() -> Axes:
    return Figure(figsize=(4, 3), layout="constrained").subplots()


def luminance(colour: str) -> float:
    """Relative luminance by WCAG 2."""
    channels = np.array(matplotlib.colors.to_rgb(colour))
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def test_arms_differ_in_colour_and_in_marker():
    looks = [plots.style(index) for index in range(7)]
    assert len({look["color"] for look in looks}) == len({look["marker"] for look in looks}) == 7


def test_names_of_baselines_can_be_read_on_white():
    assert 1.05 / (luminance(plots.BASELINE) + 0.05) >= 7


def test_a_curve_is_the_mean_over_seeds_with_the_seeds_behind_it(ax):
    seeds = np.array([[0.0, 1.0, 2.0], [2.0, 3.0, 4.0]])
    assert plots.curve(ax, [0, 10, 20], {"msn": seeds}, ylabel="accuracy") is ax
    drawn = [line.get_ydata().tolist() for line in ax.lines]
    assert drawn == [[0, 1, 2], [2, 3, 4], [1, 2, 3]]
    assert ax.get_xlabel() == "optimiser step"
    assert ax.get_ylabel() == "accuracy"


def test_a_curve_of_another_length_than_its_steps_is_refused(ax):
    with pytest.raises(ValueError, match="'msn' has 3 points for 2 steps"):
        plots.curve(ax, [0, 1], {"msn": [1, 2, 3]}, ylabel="loss")


def test_baselines_are_lines_with_name_and_value(ax):
    plots.curve(ax, [0, 1], {"msn": [0.0, 1.0]}, ylabel="k-NN", levels={"raw pixels": 0.614, "supervised": 0.97})
    assert [text.get_text() for text in ax.texts] == [" raw pixels 0.614", " supervised 0.97"]
    assert [line.get_ydata()[0] for line in ax.lines[1:]] == [0.614, 0.97]


def test_names_of_equal_baselines_do_not_lie_upon_each_other(ax):
    ax.set_ylim(0, 1)
    plots.baselines(ax, {"random init": 0.5, "raw pixels": 0.5})
    low, high = sorted(text.xy[1] for text in ax.texts)
    assert high - low >= 0.05


def test_bars_show_every_seed_as_a_point_upon_the_mean(ax):
    plots.bars(ax, {"ours": [0.8, 0.9, 1.0], "control": [0.5]}, ylabel="accuracy")
    assert [bar.get_height() for bar in ax.patches] == pytest.approx([0.9, 0.5])
    assert ax.lines[0].get_ydata().tolist() == [0.8, 0.9, 1.0]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["ours", "control"]


def test_long_names_of_bars_go_on_in_the_next_line(ax):
    plots.bars(ax, {"local SGD, 16 steps": [0.8], "float32,\nscaled": [0.5]}, ylabel="accuracy")
    assert [label.get_text() for label in ax.get_xticklabels()] == ["local SGD, 16\nsteps", "float32,\nscaled"]


def test_bars_refuse_an_arm_without_figures(ax):
    with pytest.raises(ValueError, match="'ours' has no figures"):
        plots.bars(ax, {"ours": []}, ylabel="accuracy")


SWEEP = {
    "temperature": {0.01: {"msn": [0.1, 0.2], "raw pixels": [0.5]}, 0.1: {"msn": [0.3, 0.4], "raw pixels": [0.5]}},
    "stem": {"conv": {"msn": [0.9]}, "linear": {"msn": [0.8]}},
}


def test_a_sweep_has_a_panel_per_knob_a_line_per_arm_and_a_point_per_seed():
    figure = plots.sweep(SWEEP, ylabel="accuracy", levels={"supervised": 0.95}, chosen={"temperature": 0.1})
    left, right = figure.axes
    assert [ax.get_xlabel() for ax in figure.axes] == ["temperature", "stem"]
    assert [ax.get_ylabel() for ax in figure.axes] == ["accuracy", ""]
    mean, seeds = left.lines[:2]
    assert mean.get_xydata().tolist() == [[0.01, pytest.approx(0.15)], [0.1, pytest.approx(0.35)]]
    assert seeds.get_xydata().tolist() == [[0.01, 0.1], [0.01, 0.2], [0.1, 0.3], [0.1, 0.4]]
    assert left.get_ylim() == right.get_ylim()
    assert 0.1 in [line.get_xdata()[0] for line in left.lines if line.get_linewidth() == 0.8]  # the setting in use
    assert [text.get_text() for text in left.texts + right.texts] == [" supervised 0.95"]  # its name stands once
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["msn", "raw pixels"]
    assert left.lines[2].get_color() == plots.looks(["raw pixels"])[0]["color"]


def test_settings_of_a_sweep_are_placed_by_value_by_logarithm_or_in_their_order():
    whole = {"labels": {1: {"paws": [0.1]}, 2: {"paws": [0.2]}, 4: {"paws": [0.3]}}}
    figure = plots.sweep(SWEEP | whole, ylabel="accuracy")
    assert [ax.get_xscale() for ax in figure.axes] == ["linear", "linear", "linear"]
    assert figure.axes[2].get_xticks().tolist() == [1, 2, 4]
    assert [label.get_text() for label in figure.axes[1].get_xticklabels()] == ["conv", "linear"]
    (ax,) = plots.sweep({"rate": {0.001: {"a": [1]}, 0.1: {"a": [2]}}}, ylabel="loss").axes
    assert ax.get_xscale() == "log"


@pytest.mark.parametrize(
    ("panels", "chosen", "message"),
    [
        ({}, {}, "A sweep of no knob"),
        (SWEEP, {"stem": "none"}, r"'none' is no setting of 'stem'; there are \['conv', 'linear'\]"),
        ({"rate": {1: {"a": [1]}, 2: {"b": [1]}}}, {}, "The settings of 'rate' have different arms"),
    ],
)
def test_a_sweep_that_does_not_fit_together_is_refused(panels, chosen, message):
    with pytest.raises(ValueError, match=message):
        plots.sweep(panels, ylabel="accuracy", chosen=chosen)


def test_responses_are_means_with_the_range_over_seeds_and_crosses_where_there_is_no_value():
    panels = {"a": {"x": {1e-3: [0.1, 0.3], 1e-2: [0.4]}, "y": {1e-3: [0.5], 1e-2: []}}, "b": {"x": {1e-3: [0.2]}}}
    figure = plots.responses(panels, xlabel="rate", ylabel="accuracy", levels={"chance": 0.1})
    left, right = figure.axes
    assert [ax.get_title() for ax in figure.axes] == ["a", "b"]
    assert (left.get_xlabel(), left.get_ylabel(), right.get_ylabel()) == ("rate", "accuracy", "")
    assert (left.get_xscale(), right.get_xscale()) == ("log", "linear")
    x, y = left.containers
    assert x[0].get_xydata().tolist() == [[1e-3, pytest.approx(0.2)], [1e-2, 0.4]]
    assert x[2][0].get_segments()[0][:, 1].tolist() == pytest.approx([0.1, 0.3])
    assert y[0].get_xydata().tolist() == [[1e-3, 0.5]]
    crosses = [line for line in left.lines if line.get_marker() == "x"]
    assert [line.get_xdata().tolist() for line in crosses] == [[1e-2]]
    assert crosses[0].get_color() == y[0].get_color()
    assert left.get_ylim() == right.get_ylim()
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["x", "y"]
    assert [text.get_text() for text in right.texts] == [" chance 0.1"]


@pytest.mark.parametrize(
    ("settings", "scale", "ticks"),
    [
        ([0.1, 0.9], "linear", ["0.1", "0.9"]),
        ([0.1, 1.0], "log", ["0.1", "1"]),
        ([0.0, 0.01, 0.1], "linear", ["0", "0.01", "0.1"]),
        ([0, 1, 2], "linear", ["0", "1", "2"]),
        (["b", "a"], "linear", ["b", "a"]),
    ],
)
def test_an_axis_of_responses_is_logarithmic_from_a_decade_on_and_zero_stands_in_order(settings, scale, ticks):
    (ax,) = plots.responses({"": {"": {setting: [1.0] for setting in settings}}}, xlabel="x", ylabel="y").axes
    assert ax.get_xscale() == scale
    assert [label.get_text() for label in ax.get_xticklabels()] == ticks
    even = np.diff(ax.get_xticks())
    assert scale == "log" or np.allclose(even, even[0])
    with pytest.raises(ValueError, match="no panel"):
        plots.responses({}, xlabel="x", ylabel="y")


def test_panels_stand_in_rows_over_the_whole_column():
    figure, axes = plots.panels(3, columns=2, height=2)
    assert len(axes) == len(figure.axes) == 3
    assert figure.get_size_inches().tolist() == [plots.WIDTH, 4]
    with pytest.raises(ValueError, match="0 axes in 2 columns"):
        plots.panels(0)


def test_an_axis_of_counts_has_whole_numbers_alone(ax):
    plots.curve(ax, [1, 2, 3], {"paws": [0.1, 0.2, 0.3]}, xlabel="labels per class", ylabel="accuracy")
    assert ax.get_xticks().tolist() == [1, 2, 3]
    ax.clear()
    plots.curve(ax, range(1, 31), {"paws": range(30)}, ylabel="accuracy")
    assert all(tick == round(tick) for tick in ax.get_xticks())


def test_no_text_of_a_figure_is_smaller_than_nine_points_where_it_is_shown():
    sizes = {"medium": 1, "small": 0.833}
    smallest = plots.STYLE["font.size"] * min(sizes[plots.STYLE[f"{part}.labelsize"]] for part in ("xtick", "ytick"))
    dots = plots.WIDTH * plots.STYLE["figure.dpi"]
    assert dots <= 854  # pixels of the widest column
    shown = 733 / dots  # pixels of the column in a window of 1,280
    assert smallest * plots.STYLE["figure.dpi"] / 72 * shown >= 9 * 96 / 72  # a point is 96 / 72 pixels


@pytest.mark.parametrize("layout", ["channels first", "channels last"])
def test_an_image_grid_puts_each_image_in_its_place(ax, layout):
    images = np.zeros((3, 3, 4, 4), dtype=np.uint8)
    images[2] = 128
    if layout == "channels last":
        images = images.transpose(0, 2, 3, 1)
    plots.image_grid(ax, images, columns=2, gap=1)
    sheet = np.asarray(ax.images[0].get_array())
    assert sheet.shape == (9, 9, 3)
    assert (sheet[:4, :4] == 0).all()
    np.testing.assert_allclose(sheet[5:, :4], 128 / 255)
    assert (sheet[5:, 5:] == 1).all()  # no fourth image: white


@pytest.mark.parametrize("shape", [(4, 4), (0, 3, 4, 4), (2, 5, 4, 4)])
def test_an_image_grid_refuses_other_shapes(ax, shape):
    with pytest.raises(ValueError, match="give"):
        plots.image_grid(ax, np.zeros(shape))


def test_faces_are_opaque_white(ax):
    plots.bars(ax, {"ours": [1.0]}, ylabel="accuracy")
    assert ax.get_facecolor() == ax.figure.get_facecolor() == (1.0, 1.0, 1.0, 1.0)


def test_a_map_names_each_class_at_the_middle_of_its_points_and_leaves_out_absent_ones(ax):
    points = [[0.0, 0.0], [2.0, 2.0], [1.0, 1.0], [9.0, 9.0]]
    plots.class_map(ax, points, [0, 0, 0, 2], ["mug", "bowl", "pan"])
    assert {text.get_text(): tuple(text.get_position()) for text in ax.texts} == {"mug": (1.0, 1.0), "pan": (9.0, 9.0)}
    assert len(ax.lines) == 2


def test_scores_have_a_panel_a_probe_and_the_method_by_its_name():
    axes = Figure().subplots(1, 2)
    found = {"knn": {"method": 0.7, "raw_pixels": 0.5}, "snn": {"method": 0.6}}
    plots.scores(axes, found, method="PAWS")
    assert [ax.get_title() for ax in axes] == ["k-NN", "nearest neighbours"]
    assert [label.get_text() for label in axes[0].get_xticklabels()] == ["PAWS", "raw pixels"]
    assert [bar.get_height() for bar in axes[0].patches] == [0.7, 0.5]


def test_an_arm_has_the_same_look_wherever_it_stands_and_two_arms_never_share_one():
    colours = {}
    for order in (["method", "random_init", "raw_pixels", "supervised"], ["method", "supervised", "raw_pixels"]):
        (ax,) = Figure().subplots(1, 1, squeeze=False)[0]
        plots.scores([ax], {"knn": dict.fromkeys(order, 0.5)}, method="MSN")
        named = zip([label.get_text() for label in ax.get_xticklabels()], ax.lines, strict=True)
        colours[len(order)] = {name: line.get_color() for name, line in named}
    assert colours[3].items() <= colours[4].items()
    assert len(set(colours[4].values())) == 4
    others = [look["color"] for look in plots.looks(["all", "supervised", "two", "three", "four", "five"])]
    assert len(set(others)) == 6
    assert others[1] == colours[4]["supervised"]
    assert [look["color"] for look in plots.looks(["untrained", "pixels", "cooked earlier"])] == [
        look["color"] for look in plots.looks(["random init", "raw pixels", "cooked"])
    ]


def test_arms_of_no_fixed_look_leave_those_of_known_arms_to_them():
    fixed = {look["color"] for look in plots.looks(list(plots.KNOWN))}
    assert not fixed & {look["color"] for look in plots.looks(["local SGD", "SlowMo", "synchronous"])}


def test_scores_without_a_panel_are_refused(ax):
    with pytest.raises(ValueError, match="2 probes for 1 axes"):
        plots.scores([ax], {"knn": {"method": 0.7}, "snn": {"method": 0.6}}, method="PAWS")


ROWS = [
    plots.VerdictRow("wins", "ours 0.5, control 0.3", [1.0, 2.0, 9.0], needed=1, holds=True, words="holds"),
    plots.VerdictRow("free", "ours 0.3, control 0.3", [-0.5, -7.0], needed=-1, holds=False, words="does not hold"),
    plots.VerdictRow("large", "", [], needed=1, holds=False, words="not testable"),
]


def test_a_verdict_is_a_row_of_a_point_a_seed_its_mean_and_words(ax):
    drawn = plots.verdicts(ax, ROWS)
    points = [line for line in drawn.lines if len(line.get_xdata()) == 1]
    assert [float(point.get_xdata()[0]) for point in points] == [1.0, 2.0, 6.0, -0.5, -4.0]  # the far ones at the edge
    assert [point.get_marker() for point in points] == ["^", "^", ">", "s", "<"]
    means = [float(line.get_xdata()[0]) for line in drawn.lines if line.get_color() == "black"]
    assert means == [4.0, -3.75]
    assert {"wins", "ours 0.5, control 0.3", "holds", "not testable"} <= {text.get_text() for text in drawn.texts}


def test_where_the_mean_has_to_lie_is_shaded_from_the_margin_on(ax):
    shaded = plots.verdicts(ax, ROWS).patches
    assert [(bar.get_x(), bar.get_x() + bar.get_width()) for bar in shaded] == [(1.0, 6.0), (-1.0, 6.0)]


def test_arrows_are_explained_where_there_are_some(ax):
    assert "arrow: a seed further out" in plots.verdicts(ax, ROWS).get_xlabel()
    near = [ROWS[0]._replace(in_margins=[1.0, 2.0])]
    assert "arrow" not in plots.verdicts(Figure().subplots(), near).get_xlabel()


def test_the_text_of_a_verdict_is_of_nine_points_or_more(ax):
    drawn = plots.verdicts(ax, ROWS)
    texts = [*drawn.texts, drawn.xaxis.label, *drawn.get_xticklabels()]
    assert min(text.get_fontsize() for text in texts if text.get_text()) >= 9


def test_no_verdict_is_no_figure(ax):
    with pytest.raises(ValueError, match="no verdicts to draw"):
        plots.verdicts(ax, [])
