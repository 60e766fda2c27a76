import warnings

import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image
from tests.data.data_tools import png

from eqcohvit.data import DatasetSource, FolderSource, SpritesSource
from eqcohvit.evaluation.context import Evaluation
from eqcohvit.evaluation.extraction import CentralView
from eqcohvit.evaluation.features import PixelEncoder
from eqcohvit.evaluation.images import ProbeImages, check_test_data, missing_classes
from eqcohvit.evaluation.settings import DataSettings, EvaluationSettings


def keys(samples, part):
    return torch.cat([batch.keys for batch, _ in samples.blocks(part, 8)]).tolist()


def test_one_source_is_split_into_disjoint_training_and_test_images():
    source = SpritesSource(num_samples=100)
    samples = ProbeImages(source, source, num_train=50, num_test=40)
    train, test = keys(samples, "train"), keys(samples, "test")
    assert len(train) == 50 and len(test) == 40 and not set(train) & set(test)
    assert keys(samples, "test") == test


def test_a_small_source_gives_each_image_once(photos):
    source = FolderSource(str(photos))
    train = keys(ProbeImages(source, source, num_train=1000, num_test=4), "train")
    assert len(train) == len(set(train)) == 20


def test_the_same_file_for_fitting_and_testing_is_refused(tmp_path):
    for name in ("a.parquet", "b.parquet", "c.parquet"):
        (tmp_path / name).write_bytes(name.encode())
    (tmp_path / "link.parquet").symlink_to(tmp_path / "a.parquet")
    (tmp_path / "hard.parquet").hardlink_to(tmp_path / "b.parquet")
    a, b, c = (str(tmp_path / f"{name}.parquet") for name in "abc")

    def check(data_files, test_data_files, dataset_name=None, train_dir=None):
        check_test_data(DataSettings(**locals()))

    check(f"{a},{b}", c)
    check("hf://one.parquet", "hf://two.parquet")
    twice = [
        (a, a),
        (a, str(tmp_path / "link.parquet")),
        (f"{a},{b}", str(tmp_path / "*.parquet")),
        (b, str(tmp_path / "hard.parquet")),
    ]
    twice += [(a, str(tmp_path / "x" / ".." / "a.parquet")), ("hf://one.parquet", "hf://one.parquet")]
    (tmp_path / "x").mkdir()
    for data_files, test_data_files in twice:
        with pytest.raises(
            ValueError, match="test_data_files must share no file with data_files, but .* is in both"
        ) as error:
            check(data_files, test_data_files)
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="share no file with data_files, but .*a.parquet is in both"):
        check("a.parquet", "?.parquet", dataset_name=str(tmp_path))
    with pytest.raises(ValueError, match="share no file with train_dir"):
        check(None, a, train_dir=str(tmp_path))


def sorted_files(folder, num_files, num_rows, num_classes=10, row_group_size=None):
    """Parquet files of tiny pictures whose gray value is the class; the rows of all files together are sorted by
    class."""
    total = num_files * num_rows
    labels = [index * num_classes // total for index in range(total)]
    for file in range(num_files):
        own = labels[file * num_rows : (file + 1) * num_rows]
        rows = {"image": [png(value) for value in own], "label": own}
        columns = Features({"image": Image(), "label": ClassLabel(num_classes=num_classes)})
        Dataset.from_dict(rows, features=columns).to_parquet(folder / f"{file}.parquet", batch_size=row_group_size)
    return DatasetSource("parquet", data_files=str(folder / "*.parquet"))


@pytest.mark.parametrize(("num_files", "num_rows"), [(1, 5000), (20, 250)])
def test_images_of_sorted_data_are_of_all_classes(tmp_path, num_files, num_rows):
    source = sorted_files(tmp_path, num_files, num_rows, row_group_size=num_rows)
    samples = ProbeImages(source, source, num_train=200, num_test=100)
    for part in ("train", "test"):
        labels = torch.cat([batch.labels for batch, _ in samples.blocks(part, 4)])
        counts = labels.bincount(minlength=10)
        assert (counts > 0).all() and counts.max() < len(labels) / 4
        assert missing_classes(labels, 10) == ""


def test_missing_classes_are_told_in_one_line(tmp_path):
    assert missing_classes(torch.arange(1000) % 4, 10) == (
        "labels of 4 of 10 classes in 1000 images: the data seem to be sorted by class, shuffle them"
    )
    assert (
        missing_classes(torch.randint(100, (100,), generator=torch.Generator().manual_seed(0)), 100) == ""
    )  # 63 of them expected
    assert missing_classes(torch.full((50,), -1), 10) == ""


def test_an_evaluation_warns_once_of_a_part_without_some_classes(tmp_path):
    """Test files of four classes, sorted into files; the images to fit on are of all ten."""
    (tmp_path / "some").mkdir()
    train = sorted_files(tmp_path, 2, 100)
    sorted_files(tmp_path / "some", 5, 20)
    test = DatasetSource("parquet", data_files=[str(tmp_path / "some" / f"{file}.parquet") for file in range(2)])
    settings = EvaluationSettings(cache_dir=tmp_path / "cache")
    evaluation = Evaluation(settings, lambda: ProbeImages(train, test, 100, 40))
    view, encoders = CentralView(), [PixelEncoder(8)]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for part in ("train", "test", "test"):
            evaluation.features(part, view, encoders)
    lines = [str(one.message) for one in caught if "classes" in str(one.message)]
    assert len(lines) == 1
    assert "to test on: labels of 4 of 10 classes in 40 images" in lines[0] and "\n" not in lines[0]
