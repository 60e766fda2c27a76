import html.parser
import json
import math
import re

from PIL import Image

from eqcohvit.training.health import HealthWatch
from eqcohvit.training.run_page import PAGE, render_run_page, write_run_page


def write(folder, lines):
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    path = write_run_page(
        folder,
        title="vicreg + rotation",
        state="step 2 of 4",
        settings={"max_steps": 4, "path": "a<b", "init_from": None},
        watch=HealthWatch({"ssl/variance": 25.0}, 0),
        about={"torch": "2"},
        command="python scripts/pretrain.py --path 'a<b'",
    )
    return check(path.read_text(encoding="utf-8"))


def check(text):
    """A page that a browser reads as it was meant: all elements are closed, and nothing comes from elsewhere."""
    open_elements: list[str] = []

    class Parser(html.parser.HTMLParser):
        def handle_starttag(self, tag, attrs):
            if tag not in ("meta", "img"):
                open_elements.append(tag)

        def handle_endtag(self, tag):
            assert open_elements.pop() == tag

    Parser().feed(text)
    assert not open_elements
    assert not re.search(r"(src|href)=['\"](?!data:)|url\(|@import|<script|https?://", text)
    return text


def line(step, **more):
    means = {"loss": 30.0 - step, "ssl/variance": 9.0, "recon/u_1": 0.5, "std/invariant": 0.4, "rank/invariant": 8.0}
    speed = {"samples_per_second": 100.0, "data_wait_share": 0.1}
    return {"step": step, "learning_rate": 1e-3, **means, "grad_norm/encoder": 1.0, **speed, **more}


def titles(text):
    return re.findall(r"<h3>(.*?)</h3>", text)


def test_page_has_a_chart_of_every_metric(tmp_path):
    known = {
        f"probe/{kind}/{part}": 0.5
        for kind in ("r2", "r2_paper", "knn")
        for part in ("equivariant", "invariant", "backbone")
    }
    text = write(
        tmp_path, [{"step": 0, **known}, line(1), line(2, **known, **{"teacher/entropy": 2.0, "separation": 0.3})]
    )
    assert titles(text) == [
        "What the parts know: R2, strict", "What the parts know: R2, with empty borders", "Nearest neighbors",
        "Loss", "SSL loss", "Reconstruction", "Standard deviation of the parts over the batch",
        "Effective rank of the parts",
        "Norm of the gradients, before clipping", "Learning rate", "Speed", "Waiting for data", "Teacher", "Separation",
    ]  # fmt: skip
    assert text.count("<span class='l0'>equivariant <b>0.500</b></span>") == 3
    assert "python scripts/pretrain.py --path &#x27;a&lt;b&#x27;" in text and "<dt>path</dt><dd>a&lt;b</dd>" in text
    assert "<dt>init_from</dt>" not in text and "<dt>torch</dt><dd>2</dd>" in text and "step 2 of 4" in text


def test_of_several_parameters_the_page_shows_the_one_that_is_read_best(tmp_path):
    """Whatever another part reads, and whatever was read best before."""
    scores = {"angle": (0.1, 0.7, 0.0), "shift_x": (0.4, 0.2, 0.9)}  # equivariant before and now, backbone
    lines = [
        line(step, **{f"probe/r2_of/{name}/equivariant": values[step] for name, values in scores.items()})
        | {f"probe/r2_of/{name}/backbone": values[2] for name, values in scores.items()}
        for step in (0, 1)
    ]
    shown = [title for title in titles(write(tmp_path, lines)) if "R2" in title or "probe" in title.lower()]
    assert shown == ["What the parts know of angle: R2, strict"]


def test_page_without_metrics_with_one_line_and_with_values_that_are_not_finite(tmp_path):
    assert "No metrics have been logged yet" in write(tmp_path, [])
    assert len(titles(write(tmp_path, [line(1)]))) == 9
    broken = write(tmp_path, [line(1), line(2, loss=math.nan, **{"recon/u_1": math.inf}), line(3)])
    assert len(titles(broken)) == 9 and broken.count("1 not finite") == 2
    assert "points='nan" not in broken and "'nan'" not in broken


def test_page_shows_the_newest_picture(tmp_path):
    (tmp_path / "samples").mkdir()
    for step in (9, 10):
        Image.new("RGB", (step, 4)).save(tmp_path / "samples" / f"step-{step}.png")
    text = write(tmp_path, [line(10)])
    assert text.count("data:image/png;base64,") == 1 and "Training images after step 10:" in text


def test_page_repeats_the_warnings_of_the_history_and_counts_bad_images(tmp_path):
    entry = {"source": "photos", "key": 1, "epoch": 0, "path": "a\x1b.jpg", "reason": "empty file (0 bytes)"}
    (tmp_path / "bad_images.jsonl").write_text(json.dumps(entry) + "\n" + '{"cut sh')
    text = write(tmp_path, [line(1), line(2, **{"ssl/variance": 25.0}), line(3, **{"ssl/variance": 25.0})])
    assert text.count("warning at step") == 1 and "warning at step 2: ssl/variance sits at 25" in text
    assert (
        "2 images could not be read and are left out (see bad_images.jsonl); the first: a\\x1b.jpg: empty file "
        "(0 bytes)" in text
    )


def test_more_than_eight_lines_are_dealt_into_charts(tmp_path):
    text = write(tmp_path, [line(1, **{f"recon/u_{k}": 0.1 * k for k in range(1, 13)})])
    assert titles(text).count("Reconstruction") == 1 and titles(text).count("Reconstruction, continued") == 1


def test_page_replaces_the_former_one_whole(tmp_path):
    write(tmp_path, [line(1)])
    write(tmp_path, [line(1), line(2)])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.jsonl", PAGE]


def test_long_runs_have_small_pages():
    history = [line(step) for step in range(1, 5001)]
    assert len(check(render_run_page("a", "b", history, None, [], {}, {}, ""))) < 200_000
