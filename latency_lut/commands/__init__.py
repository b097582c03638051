"""One file per subcommand of python -m latency_lut; each offers `command(argv)`."""
