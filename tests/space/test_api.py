"""The page's endpoints through gradio_client, as other programs use them."""

import json
import os
import re
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import psutil
import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image
from tests.image_kinds import kinds, turned_kinds
from tests.patience import PATIENCE, until

from eqcohvit import EqCohViTFeatureExtractionPipeline
from layout import MAX_QUEUE

SETTINGS = {"angle": 25, "shift_y": 2}
KEY = "se2+color_jitter"


def walk_of(model, picture, choice, black=False):
    return model.walk(model.canvas([picture], choice.path), choice, SETTINGS, black)


def make_client(server):
    """A client that waits as long as a busy machine needs."""
    return Client(server, verbose=False, download_files=False, httpx_kwargs={"timeout": PATIENCE})


@pytest.fixture(scope="module")
def client(server):
    return make_client(server)


def test_features_are_those_of_the_pipeline(client, model, picture_files):
    extract = EqCohViTFeatureExtractionPipeline(model=model.model.eqcohvit, image_processor=model.processor)
    for tokens in ("cls", "patches"):
        answer = client.predict(handle_file(str(picture_files[0])), tokens, api_name="/features")
        direct = extract(Image.open(picture_files[0]), tokens=tokens)
        for part in ("invariant", "equivariant"):
            np.testing.assert_allclose(answer[part], direct[part], atol=1e-5)


@pytest.mark.parametrize("name", ["I;16", "RGBA", "CMYK", "F to 255", "RGB TIFF 6"])
def test_features_of_unusual_pictures_are_those_of_the_pipeline(client, model, tmp_path, name):
    extract = EqCohViTFeatureExtractionPipeline(model=model.model.eqcohvit, image_processor=model.processor)
    (tmp_path / "picture.tif").write_bytes((kinds() | turned_kinds())[name].content)
    answer = client.predict(handle_file(str(tmp_path / "picture.tif")), "mean", api_name="/features")
    direct = extract(str(tmp_path / "picture.tif"), tokens="mean")
    for part in ("invariant", "equivariant"):
        np.testing.assert_allclose(answer[part], direct[part], atol=1e-5)


def test_states_are_those_of_the_model(client, demo, model, picture_files, make_picture):
    answer = client.predict(handle_file(str(picture_files[1])), KEY, SETTINGS, api_name="/states")
    walk = walk_of(model, make_picture(1), demo.choices[KEY])
    assert answer["psnr"] == pytest.approx(walk.psnr, abs=1e-4)
    assert answer["readings"]["angle"]["true"] == pytest.approx(25, abs=1e-3)
    black = client.predict(handle_file(str(picture_files[1])), KEY, SETTINGS, True, api_name="/states")
    assert black["psnr"] == pytest.approx(walk_of(model, make_picture(1), demo.choices[KEY], black=True).psnr, abs=1e-4)
    assert len(answer["reconstructions"]) == 2 and answer["reconstructions"][0].startswith("data:image/png;base64,")


def test_fifty_requests_at_once_are_all_answered_with_their_own_picture(
    server, demo, model, picture_files, make_picture
):
    expected = [walk_of(model, make_picture(i), demo.choices[KEY]).psnr for i in range(12)]
    assert len({tuple(round(value, 3) for value in values) for values in expected}) == 12
    clients = [make_client(server) for _ in range(5)]

    def ask(i):
        return clients[i % 5].submit(handle_file(str(picture_files[i % 12])), KEY, SETTINGS, api_name="/states")

    with ThreadPoolExecutor(50) as pool:
        jobs = list(pool.map(ask, range(50)))
        answers = list(pool.map(lambda job: job.result(timeout=PATIENCE), jobs))
    assert MAX_QUEUE >= 50
    for i, answer in enumerate(answers):
        assert answer["psnr"] == pytest.approx(expected[i % 12], abs=1e-4)


def test_endpoints_have_names_and_types(client):
    endpoints = client.view_api(return_format="dict")["named_endpoints"]
    assert set(endpoints) == {"/features", "/states"}
    types = {p["parameter_name"]: p["python_type"]["type"] for p in endpoints["/states"]["parameters"]}
    assert types == {
        "picture": "filepath",
        "transformation": "str",
        "values": "dict(str, Any)",
        "black_corners": "bool",
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("text", "rotation", {}), "cannot be read as a picture"),
        (("picture", "teleport", {}), "Unknown transformation 'teleport'; known: rotation"),
        (("picture", "rotation", {"angel": 30}), "rotation has no slider 'angel'; known: angle."),
        (("picture", "rotation", {"angle": 400}), "angle must be a number from -45 to 45, got 400"),
        (("picture", "rotation", {"angle": None}), "angle must be a number from -45 to 45, got None"),
        (("picture", None, {}), "Unknown transformation None; known: rotation"),
        (("picture", ["rotation"], {}), r"Unknown transformation \['rotation'\]; known: rotation"),
        (("picture", "rotation", None), "values must be the sliders' values by name, such as {}, got None"),
        (("picture", "rotation", {}, "yes"), "black_corners must be true or false, got 'yes'"),
        (("picture", "rotation", [1]), r"values must be the sliders' values by name, such as {}, got \[1\]"),
    ],
)
def test_bad_requests_get_a_message(client, picture_files, tmp_path, arguments, message):
    (tmp_path / "text.png").write_text("no picture")
    file = {"text": tmp_path / "text.png", "picture": picture_files[0]}[arguments[0]]
    with pytest.raises(AppError, match=message):
        client.predict(handle_file(str(file)), *arguments[1:], api_name="/states")


@pytest.mark.parametrize("endpoint", ["/features", "/states"])
@pytest.mark.parametrize("sent", ["photo.png", None, 3, {"a": 1}, ["photo.png"], {"path": "photo.png"}])
def test_what_is_no_uploaded_picture_is_named(client, sent, endpoint):
    arguments = ("cls",) if endpoint == "/features" else ("rotation", {})
    message = r"picture must be an uploaded file \(in Python handle_file\('photo.jpg'\) of gradio_client\), got "
    message += re.escape(repr(sent))
    with pytest.raises(AppError, match=message):
        client.predict(sent, *arguments, api_name=endpoint)


@pytest.mark.parametrize("tokens", ["first", None, 3, ["cls"]])
def test_unknown_tokens_are_named(client, picture_files, tokens):
    message = rf"Unknown tokens {re.escape(repr(tokens))}; known: cls, mean, patches, all"
    with pytest.raises(AppError, match=message):
        client.predict(handle_file(str(picture_files[0])), tokens, api_name="/features")


def test_upload_above_the_limit_is_refused(server, tmp_path):
    file = tmp_path / "large.bmp"
    Image.new("RGB", (2000, 1800)).save(file)
    with pytest.raises(Exception, match="413|size|large"):
        Client(server, verbose=False).predict(handle_file(str(file)), "rotation", {}, api_name="/states")


def test_files_of_the_server_cannot_be_named(server, tmp_path):
    """A request that names a path which was never uploaded gets no answer about it."""
    secret = tmp_path / "secret.png"
    Image.new("RGB", (40, 40), "red").save(secret)
    for file in ({"path": str(secret), "meta": {"_type": "gradio.FileData"}}, {"path": str(secret)}, str(secret)):
        body = json.dumps({"data": [file, "rotation", {}]}).encode()
        asked = urllib.request.Request(f"{server}gradio_api/call/states", body, {"Content-Type": "application/json"})
        event = json.load(urllib.request.urlopen(asked))["event_id"]
        answer = urllib.request.urlopen(f"{server}gradio_api/call/states/{event}").read().decode()
        assert "event: error" in answer and "psnr" not in answer
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(f"{server}gradio_api/file={secret}")
    assert caught.value.code in (403, 404)


def test_memory_stays_bounded(client, picture_files):
    """After a start, 30 requests leave the process where it was; `-m slow` asks 500."""
    assert _growth(client, picture_files, 20, 30) < 30


@pytest.mark.slow
def test_memory_stays_bounded_over_500_requests(client, picture_files):
    growth = _growth(client, picture_files, 50, 500)
    print(f"grown by {growth:.1f} MiB over 500 requests")
    assert growth < 40


def _growth(client, files, warm_up, count):
    """MiB by which the process grows over `count` requests after `warm_up` ones."""
    process, sizes = psutil.Process(), []
    for i in range(warm_up + count):
        client.predict(handle_file(str(files[i % len(files)])), KEY, {"angle": i % 45}, api_name="/states")
        sizes.append(process.memory_info().rss / 2**20)
    return sizes[-1] - sizes[warm_up - 1]


def test_old_files_of_visitors_are_deleted_and_the_examples_stay(client, demo, picture_files, monkeypatch):
    """Eleven minutes later, where the test's page keeps files for ten: what was uploaded is gone."""
    client.predict(handle_file(str(picture_files[3])), "rotation", {}, api_name="/states")
    uploaded = list(Path(os.environ["GRADIO_TEMP_DIR"]).rglob("3.png"))
    assert uploaded

    class Later(datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime.now(tz) + timedelta(minutes=11)

    monkeypatch.setattr("gradio.route_utils.datetime", Later)
    assert until(lambda: not any(file.exists() for file in uploaded))
    assert all(path.is_file() for path in demo.examples.values())
