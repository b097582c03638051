"""One file per subcommand of python -m latency_lut; each offers `command(words)`, its own name among the words."""

COMMANDS = ("build", "validate", "show", "merge", "diff", "predict", "bench")
