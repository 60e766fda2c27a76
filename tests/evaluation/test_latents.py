import datasets
import numpy as np
import pytest
from scipy.spatial.transform import Rotation
from tests.evaluation.latent_renders import draw_rows, write_parquet

from eqcohvit.data import CanvasStream, DatasetSource, SpritesSource, sequential
from eqcohvit.evaluation.latents import (
    CHANGE,
    ONE_PICTURE,
    Latent,
    RowsOfSource,
    choose_pairs,
    choose_pictures,
    make_targets,
    parse_circular,
    read_latents,
    relative_rotation,
    split_groups,
    unit_quaternion,
)

HALF = 0.5**0.5


# ---------------------------------------------------------------------------------------------------------- quaternions


def about(axis, degrees):
    """The rotation about an axis (x, y or z) by an angle."""
    values = np.zeros(4)
    values["xyz".index(axis)] = np.sin(np.radians(degrees) / 2)
    values[3] = np.cos(np.radians(degrees) / 2)
    return values


def test_relative_rotation_about_one_axis_is_the_difference_of_the_angles():
    first, second = np.stack([about("z", 30), about("z", -80)]), np.stack([about("z", 75), about("z", 80)])
    assert np.allclose(relative_rotation(first, second), [about("z", 45), about("z", 160)])


def test_relative_rotation_is_in_the_frame_of_the_first():
    """A quarter turn about x, then of that object about its own y: in the world that is a turn about z. Hand-computed
    products."""
    first = about("x", 90)[None]
    second = np.array([[0.5, 0.5, 0.5, 0.5]])  # (x 90) (y 90)
    assert np.allclose(relative_rotation(first, second), about("y", 90))


def test_relative_rotation_is_that_of_scipy():
    first, second = np.random.default_rng(0).normal(size=(2, 50, 4))
    expected = Rotation.from_quat(first).inv() * Rotation.from_quat(second)
    assert np.allclose(relative_rotation(first, second), expected.as_quat(canonical=True))


def test_both_signs_and_any_length_are_the_same_rotation():
    first, second = np.stack([about("x", 20), about("y", 50)]), np.stack([about("z", 120), about("x", 300)])
    expected = relative_rotation(first, second)
    assert np.allclose(relative_rotation(-2 * first, second), expected) and np.allclose(
        relative_rotation(first, -second), expected
    )
    assert (expected[:, 3] >= 0).all() and np.allclose(np.linalg.norm(expected, axis=1), 1)
    assert np.allclose(
        unit_quaternion(np.array([[0.0, -3, 0, 0]])), [[0, 1, 0, 0]]
    )  # the scalar is 0: the next component decides


def test_identity_is_what_changes_nothing():
    same = np.stack([about("x", 33), about("z", 200)])
    assert np.allclose(relative_rotation(same, same), [[0, 0, 0, 1]] * 2)


# -------------------------------------------------------------------------------------------------------------- targets


def test_circular_column_has_no_jump_where_it_starts_again():
    latent = Latent("yaw", np.array([[359.0], [1.0], [90.0]]), "circular", 360)
    near, also_near, quarter = latent.of_pictures(np.arange(3))
    assert np.linalg.norm(near - also_near) < 0.04 and np.allclose(quarter, [0, 1])
    change = latent.of_changes(np.array([0]), np.array([1]))
    assert np.allclose(change, [[np.cos(np.radians(2)), np.sin(np.radians(2))]])
    assert latent.components == ["cos", "sin"]


def test_targets_are_values_of_the_first_picture_or_differences():
    latent = Latent("place", np.array([[0.0, 5], [1, 7], [4, 9], [2, 11]]))
    pairs = np.array([[0, 1], [2, 3]])
    values = make_targets(latent, pairs, latent, pairs, ONE_PICTURE)
    assert values.train.tolist() == [[-2, -2], [2, 2]] and values.mean.tolist() == [2, 7] and values.names == ["0", "1"]
    changes = make_targets(latent, pairs, latent, pairs, CHANGE)
    assert changes.train.tolist() == [[1.5], [-1.5]] and changes.names == ["0"]  # the other one changes by 2 in both
    # 1 and -2 in one order, with the mean -0.5; -1 and 2 in the other
    assert changes.reverse.tolist() == [[-0.5], [2.5]] and values.reverse is None


def test_large_numbers_keep_their_differences():
    latent = Latent("time", 1.7e9 + np.arange(4.0)[:, None])
    pictures = np.arange(4)[:, None]
    targets = make_targets(latent, pictures, latent, pictures, ONE_PICTURE)
    assert targets.train[:, 0].tolist() == [-1.5, -0.5, 0.5, 1.5]


def test_column_that_does_not_vary_is_refused():
    latent = Latent("pose", np.tile(about("x", 10), (6, 1)), "quaternion")
    pairs = np.arange(6).reshape(3, 2)
    with pytest.raises(
        ValueError, match=r"column pose does not vary \(change\) among the 3 samples to fit on or the 3"
    ):
        make_targets(latent, pairs, latent, pairs, CHANGE)
    with pytest.raises(ValueError, match="lists of one length, got 4 to fit on and 2 to test on"):
        make_targets(latent, pairs, Latent("pose", np.zeros((6, 2))), pairs, CHANGE)


def test_circular_columns_need_a_period():
    assert parse_circular(["yaw=360", "hue=1"]) == {"yaw": 360.0, "hue": 1.0}
    for text in ("yaw", "yaw=", "yaw=0", "yaw=-1", "=360", "yaw=x", "yaw=nan"):
        with pytest.raises(ValueError, match="circular_columns must be COLUMN=PERIOD"):
            parse_circular([text])


# -------------------------------------------------------------------------------------------------------------- choices


def test_groups_are_held_out_whole():
    groups = np.repeat(np.arange(30), np.arange(1, 31))
    fit, test = split_groups(groups, num_train=200, num_test=100)
    assert (fit ^ test).all() and not set(groups[fit]) & set(groups[test]) and len(set(groups[test])) == 10
    assert split_groups(np.array(["a", "b"]), 1000, 1)[1].sum() == 1
    with pytest.raises(ValueError, match="all rows are of one group"):
        split_groups(np.zeros(5), 1, 1)


def test_pairs_are_of_one_group_and_all_groups_come_first():
    groups = np.array(["a"] * 5 + ["b"] * 2 + ["c"] + ["d"] * 9)
    rows = np.arange(17) != 16  # 8 of d
    pairs = choose_pairs(groups, rows, 100)
    assert (
        (groups[pairs[:, 0]] == groups[pairs[:, 1]]).all() and len(set(pairs.ravel())) == pairs.size and 16 not in pairs
    )
    assert sorted(groups[pairs[:, 0]][:3]) == ["a", "b", "d"] and sorted(groups[pairs[3:, 0]]) == ["a", "d", "d", "d"]
    assert np.array_equal(choose_pairs(groups, rows, 3), pairs[:3]) and not np.array_equal(
        choose_pairs(groups, rows, 100, seed=1), pairs
    )


def test_groups_of_one_picture_give_no_pair():
    with pytest.raises(ValueError, match="a change needs two pictures of one group, and each of the 4 groups has one"):
        choose_pairs(np.arange(4), np.ones(4, bool), 10)


def test_pictures_are_drawn_from_all_rows():
    rows = np.arange(1000) % 2 == 0
    chosen = choose_pictures(rows, 50)
    assert len(set(chosen)) == 50 and rows[chosen].all() and chosen.max() > 900 and chosen.min() < 100


# -------------------------------------------------------------------------------------------------------------- reading


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """96 renders in row groups of 7, one of which cannot be decoded; the value of `row` is the mean of the picture."""
    rows = draw_rows(num_groups=24, per_group=4, seed=3)
    rows["row"] = list(range(96))
    rows["image"] = [np.full((8, 8, 3), 2 * index, np.uint8) for index in range(96)]
    return write_parquet(tmp_path_factory.mktemp("renders") / "rows.parquet", rows, broken=[40], rows_per_group=7)


@pytest.mark.parametrize("builder", ["parquet", "arrow", "imagefolder"])
def test_columns_and_pictures_have_the_same_keys(path, tmp_path, builder):
    if builder == "parquet":
        source = DatasetSource("parquet", data_files=path)
    elif builder == "arrow":
        datasets.Dataset.from_parquet(path).save_to_disk(str(tmp_path / "saved"))
        source = DatasetSource("arrow", data_files=str(tmp_path / "saved" / "*.arrow"))
    else:
        source = image_folder(path, tmp_path)
    keys, latents, groups = read_latents(source, ["row", "place"], "object")
    assert len(set(keys.tolist())) == len(groups) == 96 and latents[1].values.shape == (96, 2)
    value = dict(zip(keys.tolist(), latents[0].values[:, 0].tolist(), strict=True))
    with pytest.warns(UserWarning, match="left out 1 images"):
        batches = list(sequential(source, 8, 32))
    shown = {
        int(key): canvas.float().mean().item() / 2
        for batch in batches
        for key, canvas in zip(batch.keys, batch.canvases, strict=True)
    }
    assert len(shown) == 95 and all(abs(value[key] - mean) < 0.01 for key, mean in shown.items())


def image_folder(path, folder):
    """The same rows as PNG files with a metadata file beside them."""
    rows = datasets.Dataset.from_parquet(path).cast_column("image", datasets.Image(decode=False))
    lines = []
    for index, row in enumerate(rows):
        (folder / f"{index:03}.png").write_bytes(row.pop("image")["bytes"])
        lines.append({"file_name": f"{index:03}.png", **row})
    datasets.Dataset.from_list(lines).to_json(folder / "metadata.jsonl")
    return DatasetSource("imagefolder", data_files=f"{folder}/*")


def test_chosen_rows_come_as_a_source_of_their_own(path):
    source = DatasetSource("parquet", data_files=path)
    keys, (row,), _ = read_latents(source, ["row"], None)
    wanted = np.isin(row.values[:, 0], [3, 4, 50, 95])
    chosen = RowsOfSource(source, keys[wanted])
    batch = next(iter(CanvasStream(chosen, 8, 4)))
    assert sorted(batch.canvases.float().mean(dim=(1, 2, 3)).tolist()) == [6, 8, 100, 190]
    assert chosen.fingerprint != RowsOfSource(source, keys[~wanted]).fingerprint


@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        (["height"], {}, "has no column height; its columns: image, object, yaw"),
        (["yaw"], {"group": "scene"}, "has no column scene"),
        (["object"], {}, "column object .* must hold numbers or lists of numbers, got str"),
        (["image"], {}, "column image .* must hold numbers or lists of numbers, got dict"),
        (["label"], {}, "column label .* holds classes"),
        (["ragged"], {}, "column ragged .* must hold numbers, or lists of numbers of one length"),
        (["missing"], {}, "column missing .* is empty in 1 of 96 rows"),
        (["infinite"], {}, "column infinite .* holds values that are not finite"),
        (
            ["place"],
            {"quaternions": ["place"]},
            r"quaternion column place .* must hold 4 numbers \(x, y, z, w\), got 2",
        ),
        (["zero"], {"quaternions": ["zero"]}, "quaternion column zero .* holds quaternions of length 0"),
        (["yaw"], {"group": "place"}, "group_column place .* must hold names or integers"),
    ],
)
def test_columns_that_cannot_be_regressed_are_refused(tmp_path_factory, columns, options, message):
    folder = tmp_path_factory.getbasetemp() / "refused"
    file = folder / "rows.parquet"
    if not file.exists():
        folder.mkdir()
        rows = draw_rows(num_groups=24, per_group=4, seed=3, side=8)
        rows |= {
            "label": [0, 1] * 48,
            "ragged": [[1.0], [1.0, 2.0]] * 48,
            "missing": [None, *range(95)],
            "zero": [[0.0] * 4] * 96,
        }
        rows |= {"infinite": [float("inf"), *range(95)]}
        write_parquet(file, rows)
    with pytest.raises(ValueError, match=message):
        read_latents(
            DatasetSource("parquet", data_files=str(file)),
            columns,
            options.get("group"),
            options.get("quaternions", ()),
        )


def test_sources_without_columns_are_refused():
    with pytest.raises(ValueError, match="target_columns needs a dataset with columns, got sprites"):
        read_latents(SpritesSource(), ["pose"], None)
