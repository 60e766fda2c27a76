"""The commands: `python -m eqcohvit.commands.pretrain`, `evaluate`, `finetune` and `push_to_hub`; each has `cli(argv)`."""
