import json

import pytest

from eqcohvit.evaluation.results import Row, findings, format_tables, interval_note, training_seeds, wrap, write_results


def test_row_prints_its_interval():
    assert str(Row("a", "backbone", "R2", [0.5], half_width=0.0123)) == "0.500 ± 0.012"
    assert str(Row("a", "backbone", "R2", [0.5])) == "0.500"
    assert str(Row("a", "backbone", "R2", [0.4, 0.6])) == "0.500 ± 1.271"  # 12.706 * 0.1414 / sqrt(2)


def test_row_comes_back_from_its_file(tmp_path):
    rows = [Row("a", "backbone", "R2", [0.4, 0.5, 0.6]), Row("a", "backbone", "kNN-20", [0.4], half_width=0.1)]
    write_results(tmp_path / "results.json", {"command": "x", "rows": rows})
    read = [Row(**row) for row in json.loads((tmp_path / "results.json").read_text())["rows"]]
    assert [str(row) for row in read] == [str(row) for row in rows] and read[0].half_width == pytest.approx(
        4.3027 * 0.1 / 3**0.5
    )


@pytest.mark.parametrize(
    "names, whole",
    [(("run-seed0", "run-seed1"), "run"), (("x/seed-0", "x/seed-12"), "x"), (("seed0", "seed1"), "model")],
)
def test_training_seeds_have_a_line_of_their_own(names, whole):
    rows = [Row(name, "backbone", "R2", [value, value + 0.2]) for name, value in zip(names, (0.4, 0.6), strict=True)]
    (found,) = training_seeds([*rows, Row("raw pixels", "pixels", "R2", [0.1])])
    assert found.encoder == f"{whole}, 2 training seeds" and found.values == pytest.approx([0.5, 0.7])


def test_a_single_model_has_no_line_of_training_seeds():
    assert (
        training_seeds([Row("run-seed0", "backbone", "R2", [0.4]), Row("other-seed1", "backbone", "R2", [0.4])]) == []
    )


def test_tables_on_a_terminal_have_80_columns_and_whole_names():
    name = "user/a-very-long-repository-name-with-many-words"
    transforms = ("rotation", "color_jitter", "gaussian_blur")
    rows = [
        Row(name, part, f"R2 {transform}, strict", [0.5, 0.7], settings={"task": "r2"})
        for transform in transforms
        for part in ("equivariant", "pixels, g alone")
    ]
    lines = format_tables(rows).splitlines()
    assert max(map(len, lines)) <= 80
    first = lines[: lines.index("")]
    assert first[0].split("  ")[0] == "encoder" and first[2].strip("-") == ""
    assert "".join(line.split("  ")[0] for line in first[3:]) == name
    for transform in transforms:
        (heading,) = (index for index, line in enumerate(lines) if f"R2 {transform}," in line)
        column = lines[heading].index(f"R2 {transform},")
        assert lines[heading + 1][column:].startswith("strict")
        assert lines[heading + 3][column:].startswith("0.600 ± 1.271")


def test_a_table_on_a_terminal_leaves_out_parts_that_it_measures_nothing_of():
    metrics = [f"{name} of a long name" for name in ("first", "second", "third", "fourth")]
    rows = [Row("model", "backbone", metric, [0.5]) for metric in metrics]
    rows.append(Row("model", "backbone, g alone", metrics[0], [0.25]))
    first, second = (text.splitlines() for text in format_tables(rows).split("\n\n"))
    assert [line.split()[:3] for line in first[2:]] == [["model", "backbone", "0.500"], ["backbone,", "g", "alone"]]
    assert [line.split() for line in second[2:]] == [["model", "backbone", "0.500", "0.500"]]


def r2_row(encoder, part, value, half, metric="R2 rotation, strict"):
    return Row(encoder, part, metric, [value], settings={"task": "r2"}, half_width=half)


def test_verdicts_say_what_is_guessing_and_what_is_no_better_than_pixels():
    rows = [
        r2_row("a", "equivariant", 0.06, 0.11),
        r2_row("b", "equivariant", 0.47, 0.18),
        r2_row("c", "equivariant", 0.90, 0.02),
        r2_row("c", "invariant", 0.01, 0.05),
        r2_row("random weights (a)", "equivariant", 0.0, 0.1),
        r2_row("raw pixels", "pixels", 0.3, 0.1),
        r2_row("raw pixels", "pixels, g alone", 0.95, 0.1),
    ]
    assert findings(rows) == [
        "a: the equivariant part could be guessing in R2 rotation, strict (0.060 ± 0.110).",
        "b: the equivariant part is not clearly above raw pixels in R2 rotation, strict (0.470 ± 0.180, pixels "
        "0.300 ± 0.100).",
    ]
    shift = "R2 translation, strict"
    both = [r2_row("a", "equivariant", 0.0, 0.1), r2_row("a", "equivariant", -0.1, 0.05, shift)]
    assert findings(both) == [
        "a: the equivariant part could be guessing in R2 rotation, strict (0.000 ± 0.100); R2 translation, strict "
        "(-0.100 ± 0.050)."
    ]


def test_errors_of_angles_are_in_one_line():
    def error(encoder, part, degrees):
        return Row(encoder, part, "median error of angle, rotation, strict (degrees)", degrees, headline=False)

    rows = [
        error("a", "equivariant", [5.0, 6.0]),
        error("a", "invariant", [22.0]),
        error("a", "both", [7.0]),
        error("random weights", "equivariant", [21.0]),
        error("random weights", "invariant", [20.0]),
        error("raw pixels", "pixels", [9.04]),
        Row("a", "equivariant", "median error of shift_x, translation, strict (fraction of the side)", [0.1]),
    ]
    assert findings(rows) == [
        "Median error of angle, rotation, strict: a equivariant 5.5°, invariant 22.0°; random weights 21.0°; "
        "raw pixels 9.0°."
    ]


def test_the_note_on_intervals_says_what_they_cover():
    one = r2_row("a", "equivariant", 0.06, 0.11)
    assert interval_note([Row("a", "b", "kNN-20", [0.5])]) == ""
    assert interval_note([one]) == (
        "±: half of a 95 % interval, over the test images (bootstrap). It does not include other training runs."
    )
    assert "over the seeds of the probe" in interval_note([one, Row("a", "b", "kNN-20", [0.5, 0.6])])
    assert "of several training seeds." in interval_note([one, Row("a, 3 training seeds", "b", "kNN-20", [0.5, 0.6])])


def test_long_names_are_broken_behind_their_separators():
    assert wrap("vit_small_patch16_224.augreg_in1k", 14) == "vit_small_\npatch16_224.\naugreg_in1k"
    assert wrap("raw pixels", 26) == "raw pixels"
