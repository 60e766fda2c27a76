import numpy as np
import pytest
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker, get_available_trackers
from accelerate.utils import LoggerType
from PIL import Image

from eqcohvit.training.trackers import Trackers, check_tracker


class Tiny(GeneralTracker):
    """A tracker that notes what it is given."""

    requires_logging_directory = False

    def __init__(self, name="tiny", takes_images=True, broken=False):
        self._name, self.broken, self.noted = name, broken, []
        super().__init__()
        if takes_images:
            self.log_images = lambda values, step, **options: self.note("images", values, step, options)

    @property
    def name(self):
        return self._name

    @property
    def tracker(self):
        return self

    def store_init_configuration(self, values):
        pass

    def log(self, values, step=None, **options):
        self.note("log", values, step, options)

    def note(self, *what):
        if self.broken:
            raise ConnectionError("no\nnetwork")
        self.noted.append(what)

    def finish(self):
        self.note("finish")


@pytest.fixture
def picture(tmp_path):
    Image.new("RGB", (6, 4), (255, 0, 0)).save(tmp_path / "step-3.png")
    return tmp_path / "step-3.png"


def make(*trackers):
    accelerator, said = Accelerator(cpu=True), []
    accelerator.trackers = list(trackers)
    return Trackers(accelerator, said.append), said


def test_trackers_get_figures_and_pictures(picture):
    first, tensorboard, plain = Tiny(), Tiny("tensorboard"), Tiny("plain", takes_images=False)
    trackers, said = make(first, tensorboard, plain)
    trackers.log({"loss": 1.0}, 3)
    trackers.log_picture("samples", picture, 3)
    assert plain.noted == [("log", {"loss": 1.0}, 3, {})] and said == []
    for tracker, options in ((first, {}), (tensorboard, {"dataformats": "NHWC"})):
        kind, values, step, given = tracker.noted[1]
        assert (kind, step, given) == ("images", 3, options)
        assert values["samples"].shape == (1, 4, 6, 3) and values["samples"].dtype == np.uint8
        assert values["samples"][0, 0, 0].tolist() == [255, 0, 0]


def test_a_tracker_that_fails_is_told_of_once_and_stops_no_other(picture):
    broken, whole = Tiny("broken", broken=True), Tiny("whole")
    trackers, said = make(broken, whole)
    for step in (1, 2):
        trackers.log({"loss": 1.0}, step)
    trackers.log_picture("samples", picture, 2)
    trackers.finish()
    assert [note[0] for note in whole.noted] == ["log", "log", "images", "finish"]
    assert said == ["the tracker broken failed, the run goes on without it (ConnectionError: no network)"]


def test_a_tracker_that_is_not_installed_is_refused():
    check_tracker("none")
    missing = next(
        str(name) for name in LoggerType.list() if str(name) not in ["all", *map(str, get_available_trackers())]
    )
    with pytest.raises(
        ValueError, match=f"report_to: the tracker '{missing}' is not installed; installed: .*; known: .*{missing}"
    ):
        check_tracker(missing)
    with pytest.raises(ValueError, match="the tracker 'wandbb' is unknown; "):
        check_tracker("wandbb")
