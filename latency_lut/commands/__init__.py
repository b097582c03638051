"""The subcommands of python -m latency_lut, one file each: `command(config)` runs it.

A command whose results are kept also has `start_over(config)`, which --restart runs first.
"""

# Imported only if chosen: the zoo and pandas take seconds.
COMMANDS = {
    "build": (
        "measure what every block of a search space takes as INT8, and how well their sums predict networks",
        "latency_lut.commands.build:command",
    ),
    "validate": (
        "compare a table's predictions with fresh random networks, timed on this CPU",
        "latency_lut.commands.validate:command",
    ),
    "show": ("print what a table holds, and draw it", "latency_lut.commands.show:command"),
    "predict": (
        "predict what a network takes by a table, block by block, without running it",
        "latency_lut.commands.predict:command",
    ),
    "merge": (
        "join tables of the same kind of machine, engine, threads and batch size into one file",
        "latency_lut.commands.merge:command",
    ),
    "diff": (
        "compare two tables, of this or of other machines: speed, ranking, and the parts that differ most",
        "latency_lut.commands.diff:command",
    ),
    "bench": (
        "time whole networks on this CPU, side by side: INT8 on every engine, and float",
        "latency_lut.commands.bench:command",
    ),
}
RESTARTS = {
    name: (COMMANDS[name][0], f"latency_lut.commands.{name}:start_over") for name in ("build", "validate", "bench")
}
