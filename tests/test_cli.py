import dataclasses

import pytest

from eqcohvit.cli import check_choices, check_numbers, did_you_mean, exit_code_of, given_settings, setting

FLAGS = ["--help", "--learning_rate", "--lora_rank", "--max_steps"]


def test_did_you_mean_knows_initials_and_near_names():
    assert did_you_mean("--ms", FLAGS) == "; did you mean '--max_steps'?"
    assert did_you_mean("--lr", FLAGS) == "; did you mean '--learning_rate' or '--lora_rank'?"
    assert did_you_mean("--max_step", FLAGS) == "; did you mean '--max_steps'?"
    assert did_you_mean("--quality", FLAGS) == ""


@dataclasses.dataclass
class Settings:
    rate: float | None = setting(1.0, "a number")
    kinds: list[str] = setting((), "names", ("round", "square"))


def test_the_first_number_or_choice_that_cannot_work_is_named():
    check_numbers(Settings(0.0), not_negative=["rate"])
    check_numbers(Settings(None), positive=["rate"], not_negative=["rate"])
    for settings, limits, message in (
        (Settings(0.0), {"positive": ["rate"]}, "rate must be positive, got 0.0"),
        (Settings(-1.0), {"not_negative": ["rate"]}, "rate must not be negative, got -1.0"),
        (Settings(float("nan")), {}, "rate must be a finite number, got nan"),
    ):
        with pytest.raises(ValueError, match=message):
            check_numbers(settings, **limits)
    check_choices(Settings(kinds=["round", "square"]))
    with pytest.raises(ValueError, match="kinds must be one of round, square, got 'squar'; did you mean 'square'?"):
        check_choices(Settings(kinds=["round", "squar"]))
    check_choices(Settings(kinds=["flat"]), {"kinds": {"flat": 1}})  # a registry as it is now


def test_settings_of_a_python_caller_have_paths_as_text_and_no_unknown_names(tmp_path):
    assert given_settings({"kinds": tmp_path, "rate": None}, Settings) == {"kinds": str(tmp_path)}
    with pytest.raises(ValueError, match="unknown setting 'kind'; did you mean 'kinds'?"):
        given_settings({"kind": 1}, Settings)


@pytest.mark.parametrize(
    ("error", "code"),
    [(ValueError("a\n  b"), 2), (FileNotFoundError("a b"), 2), (ConnectionError("a b"), 1), (KeyError("a b"), 1)],
)
def test_exit_code_of_a_failure_and_its_line(error, code, capsys):
    def fail():
        raise error

    assert exit_code_of(fail, KeyError) == code
    assert capsys.readouterr().err.replace("'", "") == "error: a b\n"
    assert exit_code_of(lambda: None) == 0
    with pytest.raises(RuntimeError):
        exit_code_of(lambda: (_ for _ in ()).throw(RuntimeError()))
