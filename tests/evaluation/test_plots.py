import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg

from eqcohvit.evaluation import plots
from eqcohvit.evaluation.figures import figures_of_rows
from eqcohvit.evaluation.results import Row

NAMES = [f"user/a-very-long-repository-name-with-many-words-{index}" for index in range(6)]


def test_names_of_six_models_do_not_overlap_beside_the_bars():
    settings = {"transform": "rotation", "protocol": "strict"}
    rows = [Row(name, "backbone", "R2", [0.1 * index], settings=settings) for index, name in enumerate(NAMES)]
    figure = plots.r2_bars(rows)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    labels = figure.axes[0].get_yticklabels()
    boxes = sorted((label.get_window_extent() for label in labels), key=lambda box: box.y0)
    assert [label.get_text().replace("\n", "") for label in labels] == NAMES
    assert all(lower.y1 <= upper.y0 for lower, upper in zip(boxes, boxes[1:], strict=False))
    assert all(box.x0 >= 0 for box in boxes)


def test_the_lowest_panel_of_each_column_has_numbers_and_where_nothing_moves_one_panel_is_enough():
    names = ["rotation", "translation", "color_jitter", "zoom"]
    pairs = [{"transform": name, "protocol": protocol} for name in names for protocol in ("strict", "paper")]
    common = {"task": "r2", "pooling": "cls_mean", "layer": "last"}
    rows = [Row("a", "backbone", str(pair), [0.5], settings=pair | common) for pair in pairs]
    (bars,) = figures_of_rows(rows)
    figure = bars.draw()
    FigureCanvasAgg(figure).draw()
    panels = [axis for axis in figure.axes if axis.get_visible()]
    titles = [axis.get_title() for axis in panels]
    assert titles == [", ".join(pair.values()).replace("_", " ") for pair in pairs if pair != pairs[5]]
    numbered = [bool(axis.get_xlabel()) and any(x.get_visible() for x in axis.get_xticklabels()) for axis in panels]
    assert numbered == [False] * 3 + [True] * 4  # panels 4 to 7 of two rows: below the fourth there is none


def test_numbers_below_the_scatter_do_not_touch():
    """Eight columns, of parameters whose numbers are long."""
    true = np.linspace(-0.1, 0.12, 20)[:, None]
    found = {(f"model {index}", "backbone"): true for index in range(8)}
    figure = plots.scatter(found, true, ["shift_x"], {key: [1.0] for key in found})
    FigureCanvasAgg(figure).draw()
    for axis in figure.axes:
        low, high = axis.get_xlim()
        labels = [label for label in axis.get_xticklabels() if low <= label.get_position()[0] <= high]
        boxes = [label.get_window_extent() for label in labels]
        assert len(boxes) >= 2 and all(left.x1 + 2 < right.x0 for left, right in zip(boxes, boxes[1:], strict=False))
