import json

import pytest

from eqcohvit.evaluation.report import suite_table
from eqcohvit.evaluation.results import Row
from eqcohvit.evaluation.suite import (
    PROTOCOL_VERSION,
    check_comparable,
    check_same_version,
    read_beside,
    rows_beside,
)


def results(version=PROTOCOL_VERSION, name="a", value=0.5, **protocol):
    """What a results.json of the suite holds."""
    counts = {"train_images": 20, "test_images": 10, "data_fingerprint": "f", "test_data_fingerprint": "t"}
    rows = [vars(row("rotation", "strict", value, name)), vars(row("rotation", "strict", 0.1, "raw pixels", "pixels"))]
    found = {"suite": "r2", "protocol": counts | protocol, "models": [{"name": name}], "rows": rows}
    return found if version is None else found | {"protocol_version": version}


def row(transform, protocol, value, encoder="a", part="backbone"):
    settings = {"task": "r2", "transform": transform, "protocol": protocol}
    return Row(encoder, part, f"R2 {transform}, {protocol}", [value], settings=settings)


def test_a_file_without_a_version_has_the_first_one():
    check_same_version([("old", {}), ("kept", {"protocol_version": "1"})])
    with pytest.raises(ValueError, match="different protocol versions cannot stand side by side: old has 1, new has 2"):
        check_same_version([("old", {}), ("new", {"protocol_version": "2"})])


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (results("0"), "y has 0"),
        (results(None), "y has 1"),
        (results(test_data_fingerprint="u"), "y and x cannot stand in one table: test_data_fingerprint is u and t"),
        (results(train_images=30), "train_images is 30 and 20"),
        (results(test_draws=50), "test_draws is 50 and 1"),
        (results() | {"suite": None}, "suite is None and r2"),
    ],
)
def test_results_that_cannot_be_compared_are_refused(other, message):
    check_comparable({"x": results(), "y": results(value=0.9)})
    with pytest.raises(ValueError, match=message):
        check_comparable({"x": results(), "y": other})


def test_models_of_other_files_come_without_their_controls():
    (found,) = rows_beside({"x": results(name="b", value=0.75)}, ["a"])
    assert (found.encoder, found.mean) == ("b", 0.75)
    with pytest.raises(ValueError, match="two models of one name cannot stand in one table: a of x"):
        rows_beside({"x": results()}, ["a"])


def test_files_beside_must_be_results(tmp_path):
    path = tmp_path / "results.json"
    for text in ("", "{}", "[]", json.dumps({"rows": [], "models": []})):
        path.write_text(text)
        with pytest.raises(ValueError, match="beside needs results.json files that --suite has written, got"):
            read_beside([str(path)])
    path.write_text(json.dumps(results()))
    assert read_beside([str(path)])[str(path)]["suite"] == "r2"


def test_table_of_the_suite_has_a_column_for_each_transformation_and_protocol():
    numbers = {("rotation", "strict"): 0.5, ("gaussian_blur", "strict"): 0.25, ("rotation", "paper"): 0.75}
    rows = [row(*key, value) for key, value in numbers.items()] + [row("gaussian_blur", "paper", 0.25)]
    rows += [row("rotation", "strict", 0.125, "raw pixels", "pixels"), row("rotation", "strict", 0.9, "a", "both")]
    page = suite_table(rows)
    assert "<th colspan=2>rotation</th><th colspan=1>gaussian blur</th>" in page
    assert "<th>strict</th><th>strict</th><th>paper</th><th>strict</th>" in page  # mean, rotation, rotation, blur
    model, pixels = page.split("<tbody>")[1].split("</tr>")[:2]
    assert [cell.split(">")[1].split("<")[0] for cell in model.split("<td")[1:]] == ["0.375", "0.500", "0.750", "0.250"]
    assert [cell.split(">")[1].split("<")[0] for cell in pixels.split("<td")[1:]] == ["", "0.125", "", ""]
    assert model.count("class=best") == 4 and "class=best" not in pixels and ">both<" not in page
