from eqcohvit.cli import did_you_mean

FLAGS = ["--help", "--learning_rate", "--lora_rank", "--max_steps"]


def test_did_you_mean_knows_initials_and_near_names():
    assert did_you_mean("--ms", FLAGS) == "; did you mean '--max_steps'?"
    assert did_you_mean("--lr", FLAGS) == "; did you mean '--learning_rate' or '--lora_rank'?"
    assert did_you_mean("--max_step", FLAGS) == "; did you mean '--max_steps'?"
    assert did_you_mean("--quality", FLAGS) == ""
