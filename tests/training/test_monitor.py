import json

import torch
from PIL import Image

from eqcohvit.training.arguments import PretrainArguments
from eqcohvit.training.build import build_model, build_module
from eqcohvit.training.monitor import MetricsLog, Progress, StepBar, describe_size, duration, read_metrics, save_samples


def test_metrics_log_drops_what_the_resumed_run_will_write_again(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path)
    for step in (10, 20, 30):
        log.write(step, {"loss": step / 10})
    MetricsLog(path, resume_step=20).write(30, {"loss": 7.0})
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"step": 10, "loss": 1.0}, {"step": 20, "loss": 2.0}, {"step": 30, "loss": 7.0},
    ]  # fmt: skip


def test_progress_gives_means_since_the_last_line():
    progress = Progress(max_steps=10, samples_per_step=4)
    for value in (1.0, 3.0):
        progress.add_terms({"loss": torch.tensor(value)})
    means = {name: value.item() for name, value in progress.means().items()}
    text, figures = progress.line(2, means, num_steps=2)
    assert means == {"loss": 2.0} and figures["loss"] == 2.0
    assert text.startswith("step  2/10  loss 2  ") and "wait 0%" in text
    progress.add_terms({"loss": torch.tensor(9.0)})
    assert progress.means()["loss"] == 9.0


def test_progress_lines_fit_100_columns(monkeypatch):
    now = 0.0
    monkeypatch.setattr("eqcohvit.training.monitor.time.perf_counter", lambda: now)
    progress = Progress(max_steps=1_250_000, samples_per_step=2048)
    now = 100 * 0.35
    means = {"loss": 12.345, **{f"ssl/{name}": 1.0 for name in "abcdef"}, "grad_norm/encoder": 3.0}
    text, figures = progress.line(124_950, means, num_steps=100, shown="R2 equi -0.123 inv -0.012")
    assert text.startswith("step  124950/1250000  loss 12.35  R2 equi -0.123 inv -0.012  5851 samples/s")
    assert text.endswith("  wait 0%  ETA 109 h 22")  # 1,125,050 steps of 0.35 s
    assert len(text) <= 100 and set(means) < set(figures)


def test_durations_are_short():
    assert [duration(seconds) for seconds in (0, 65.4, 3599.6, 7384)] == ["0:00", "1:05", "1 h 00", "2 h 03"]


def test_lines_are_plain_in_a_log(capsys):
    bar = StepBar(10, 3, is_main=True)
    bar.advance()
    bar.say("step 4/10")
    StepBar(10, 3, is_main=False).say("of another process")
    bar.close()
    assert capsys.readouterr() == ("step 4/10\n", "")


def test_lines_stay_above_the_bar_of_a_terminal(capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    bar = StepBar(10, 3, is_main=True)
    bar.say("step 4/10")
    bar.advance()
    bar.close()
    out, err = capsys.readouterr()
    assert out == "step 4/10\n" and "3/10" in err


def test_metrics_are_read_again(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert read_metrics(path) == []
    MetricsLog(path).write(0, {"probe/r2/equivariant": float("nan")})
    path.open("a").write('{"step": 20, "lo')
    assert [line["step"] for line in read_metrics(path)] == [0]


def test_progress_averages_what_accumulated_batches_know_once_over_the_steps():
    progress = Progress(max_steps=10, samples_per_step=4)
    for loss, norm in ((1.0, None), (2.0, 4.0), (3.0, None), (6.0, 8.0)):  # two steps of two batches
        progress.add_terms({"loss": torch.tensor(loss), **({} if norm is None else {"grad_norm": torch.tensor(norm)})})
    assert {name: value.item() for name, value in progress.means().items()} == {"loss": 3.0, "grad_norm": 6.0}
    resumed = Progress(10, 4, json.loads(json.dumps(progress.state())))
    resumed.add_terms({"loss": torch.tensor(8.0)})
    assert {name: value.item() for name, value in resumed.means().items()} == {"loss": 4.0, "grad_norm": 6.0}


def test_metrics_log_survives_a_line_cut_short_by_a_kill(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 10, "loss": 1.0}\n{"step": 20, "lo\xc3')
    MetricsLog(path, resume_step=20).write(30, {"loss": 3.0})
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [10, 30]


def test_progress_goes_on_from_its_state_exactly():
    values = [{"loss": torch.tensor(x), "norm": torch.tensor(1 / (1 + x))} for x in (0.1, 0.7, 1e-7, 33.3)]
    whole, first = Progress(10, 4), Progress(10, 4)
    for terms in values:
        whole.add_terms(terms)
    for terms in values[:2]:
        first.add_terms(terms)
    second = Progress(10, 4, json.loads(json.dumps(first.state())))
    for terms in values[2:]:
        second.add_terms(terms)
    assert all(torch.equal(value, second.means()[name]) for name, value in whole.means().items())


def test_size_counts_what_is_trained_and_what_memory_that_takes():
    args = PretrainArguments(
        image_size=16, patch_size=8, feature_dim=16, equivariant_dim=8, decoder_dim=16, projector_dim=16
    )
    module = build_module(args, build_model(args))
    encoder, total = (sum(p.numel() for p in part.parameters()) for part in (module.model.eqcohvit, module))
    assert f"encoder of {encoder / 1e6:.2f} M parameters, {total / 1e6:.2f} M trained" in describe_size(module)
    module.model.eqcohvit.backbone.requires_grad_(False)
    left = total - sum(p.numel() for p in module.model.eqcohvit.backbone.parameters())
    text = describe_size(module)
    assert (
        f"{left / 1e6:.2f} M trained" in text and f"({(4 * total + 12 * left) / 2**20:.0f} MiB with optimizer)" in text
    )


def test_save_samples_shows_the_pixels(tmp_path):
    red = torch.tensor([1.0, 0.0, 0.0])[:, None, None].expand(2, 3, 8, 8)
    blue = torch.tensor([0.0, 0.0, 1.0])[:, None, None].expand(2, 1, 3, 8, 8)
    mean, std = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
    normalized = [(x - 0.5) / 0.25 for x in (red, red, blue, blue)]
    save_samples(tmp_path / "samples" / "step-1.png", *normalized, mean, std, [0.5])
    sheet = Image.open(tmp_path / "samples" / "step-1.png")
    cell, gap, header = 112, 4, 20
    assert sheet.size == (4 * (cell + gap) + gap, header + 2 * (cell + gap) + gap)
    centers = [sheet.getpixel((gap + column * (cell + gap) + 50, header + gap + 50)) for column in range(4)]
    assert centers == [(255, 0, 0), (255, 0, 0), (0, 0, 255), (0, 0, 255)]
