"""The license of continued weights: that of the base model's card, from a folder, from a run's folder or from the Hub's
cache."""

import huggingface_hub
import pytest

from eqcohvit.publish.license import describe_base, hub_id, license_of

BODY = "# A model\n\nlicense: mit\n"


def make_card(folder, front_matter):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "README.md").write_text(f"---\n{front_matter}\n---\n{BODY}" if front_matter else BODY)
    return str(folder)


def settings(init_from):
    return {"init_from": str(init_from), "model_preset": None}


def test_license_of_own_weights_is_ours():
    assert license_of({"model_preset": "micro", "init_from": None}).fields == {"license": "apache-2.0"}


@pytest.mark.parametrize(
    ("front_matter", "fields"),
    [
        ("license: mit", {"license": "mit"}),
        ("license: cc-by-nc-4.0\nlicense_name: ignored", {"license": "cc-by-nc-4.0"}),
        (
            "license: other\nlicense_name: dinov3-license\nlicense_link: https://example.com/license",
            {"license": "other", "license_name": "dinov3-license", "license_link": "https://example.com/license"},
        ),
        (
            "license: other\nlicense_name: own\nlicense_link: javascript:alert(1)",
            {"license": "other", "license_name": "own"},
        ),
    ],
)
def test_license_of_continued_weights_is_that_of_the_base_models_card(front_matter, fields, tmp_path):
    license = license_of(settings(make_card(tmp_path / "base", front_matter)))
    assert license.fields == fields
    name = fields.get("license_name", fields["license"])
    assert license.text == f"`{name}`, the license of another checkpoint, whose weights were trained further."


@pytest.mark.parametrize(
    "front_matter", ["", "tags: [vision]", "license: [mit, apache-2.0]", "license: '{{ x }}'", "license: [", "- mit"]
)
def test_license_that_cannot_be_read_is_other_and_has_to_be_named(front_matter, tmp_path):
    license = license_of(settings(make_card(tmp_path / "base", front_matter)))
    assert license.fields == {"license": "other", "license_name": "license-of-the-base-model"}
    assert "its license applies" in license.text and "Name it in" in license.text


def test_license_of_a_run_is_that_of_the_model_in_its_folder(tmp_path):
    make_card(tmp_path / "run" / "model", "license: bsd-3-clause")
    assert license_of(settings(tmp_path / "run")).fields == {"license": "bsd-3-clause"}
    assert license_of(settings(tmp_path / "run" / "checkpoints" / "step-2")).fields["license"] == "other"


def test_license_of_a_model_of_the_hub_is_read_from_there(monkeypatch, tmp_path):
    def download(repo_id, filename, **_):
        assert (repo_id, filename) == ("someone/vit", "README.md")
        return str(tmp_path / "someone" / "README.md")

    make_card(tmp_path / "someone", "license: other\nlicense_name: own\nlicense_link: LICENSE.md")
    monkeypatch.setattr(huggingface_hub.repocard, "hf_hub_download", download)
    license = license_of(settings("someone/vit"))
    link = "https://huggingface.co/someone/vit/blob/main/LICENSE.md"
    assert license.fields == {"license": "other", "license_name": "own", "license_link": link}
    assert "the license of [someone/vit](https://huggingface.co/someone/vit)" in license.text


def test_license_of_a_model_of_the_hub_that_cannot_be_reached_is_linked():
    license = license_of(settings("someone/vit"))  # tests have no network
    assert (
        license.fields["license"] == "other" and license.fields["license_link"] == "https://huggingface.co/someone/vit"
    )


def test_run_that_goes_on_from_a_published_state_of_continued_weights_is_none_of_own_weights():
    published = {"model_preset": None}  # where it continued from was a place of another machine
    assert describe_base(published) == "another checkpoint" and license_of(published).fields["license"] == "other"


def test_places_of_this_machine_are_no_names_of_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "a").mkdir(parents=True)
    assert [hub_id(name) for name in ("runs/a", "./b", "/c", None, "someone/vit")] == [
        None,
        None,
        None,
        None,
        "someone/vit",
    ]
