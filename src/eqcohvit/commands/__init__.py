"""The commands, such as `python -m eqcohvit.commands.pretrain`; each module has `cli(argv)`, which returns the exit
code."""
