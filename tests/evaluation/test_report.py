from eqcohvit.evaluation.report import protocol_notes, render_page
from eqcohvit.evaluation.results import Row


def page(*rows):
    return render_page({}, [Row(*row) for row in rows], [])


def test_page_explains_what_it_shows_and_nothing_else():
    both = page(("a", "backbone", "linear", [0.5]), ("raw pixels", "pixels", "kNN-20", [0.25]))
    assert "<b>linear</b>" in both and "<b>kNN</b>" in both and "<b>linearity</b>" not in both
    moves = page(("a", "backbone", "linearity of zoom, strict", [0.5]))
    assert "<b>linearity</b>" in moves and "<b>linear</b>" not in moves


def test_page_names_the_controls_that_it_has():
    assert "a, beside" not in page(("a", "backbone", "depth RMSE ↓", [0.5]))
    rows = [("a", "backbone", "R2 zoom, strict", [0.5]), ("random weights (a)", "backbone", "R2 zoom, strict", [0.1])]
    assert "<p class='faint'>a, beside random weights</p>" in page(*rows)
    assert "beside random weights and raw pixels</p>" in page(*rows, ("raw pixels", "pixels", "R2 zoom, strict", [0.2]))


def test_page_tells_which_protocol_gives_g_away():
    pairs = [
        ("rotation", "paper"),
        ("rotation", "strict"),
        ("zoom", "strict"),
        ("color_jitter", "paper"),
        ("hue", "change"),
    ]
    rows = [
        Row("raw pixels", "pixels", f"R2 {name}, {protocol}", [0.5], settings={"transform": name, "protocol": protocol})
        for name, protocol in pairs
    ]
    notes = ["rotation, paper: the black border tells it", "zoom, strict: sharpness tells it"]
    assert protocol_notes(rows) == notes
    text = render_page({}, rows, [])
    assert f"<b>Gives g away</b>: {'; '.join(notes)}." in text and text.count("tells it") == 2


def test_g_alone_is_never_the_best_and_names_may_break(tmp_path):
    settings = {"task": "r2", "transform": "rotation", "protocol": "strict", "pooling": "cls_mean", "layer": "last"}
    rows = [
        Row("a_long/name", part, "R2 rotation, strict", [value], settings=settings)
        for part, value in (("backbone", 0.5), ("backbone, g alone", 0.9))
    ]
    rows.append(Row("a", "backbone, g alone", "R2 zoom, strict", [0.7], False, settings | {"transform": "zoom"}))
    page = render_page({}, rows, [])
    assert "<td class=best>0.500</td>" in page and "<td>0.900</td>" in page
    assert "<th rowspan=2>a_<wbr>long/<wbr>name</th>" in page
