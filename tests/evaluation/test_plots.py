from matplotlib.backends.backend_agg import FigureCanvasAgg

from eqcohvit.evaluation import plots
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
