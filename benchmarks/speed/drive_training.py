"""Times one run of retrain.py or search.py from inside; benchmarks/speed/training.py starts it in two source trees.

    python drive_training.py retrain|search OUTPUT.json ARGUMENTS..

The tree is the working directory. Only names that both trees have are used.
"""

import json
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, os.getcwd())  # the tree that is measured, before the folder of this file


def drive_retrain(argv: list[str]) -> dict:
    """Images per second of the float and the quantized epochs, evaluation of the validation part included."""
    import retrain

    run = retrain.main(argv)
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    images = json.loads((run / "metrics.json").read_text())["train_images"]
    ends = [0.0, *(row["seconds"] for row in rows)]
    spent = {row["phase"]: end - start for row, start, end in zip(rows, ends, ends[1:])}
    floats, *_, last = spent.values()
    return {"float": images / floats, "quantized": images / last}


def drive_search(argv: list[str]) -> dict:
    """Steps per second of the weights by phase, and seconds to tune and evaluate all finalists."""
    import search
    from supernet.loop import Search
    from supernet.selection import Evaluator

    marks, tuning, step, evaluate = [], [], Search.step, Evaluator.evaluate

    def timed_step(self):
        row = step(self)
        marks.append((row["phase"], time.perf_counter()))
        return row

    def timed_evaluate(self, networks):
        begun = time.perf_counter()
        evaluate(self, networks)
        tuning.append((len(networks), time.perf_counter() - begun))

    Search.step, Evaluator.evaluate = timed_step, timed_evaluate
    search.measure = lambda archs, *_: dict.fromkeys(archs, 0.01)  # latencies are not what is timed here
    search.main(argv)
    phases = {}
    for (_, before), (phase, after) in zip(marks, marks[1:]):
        phases.setdefault(phase, []).append(after - before)
    rates = {phase: len(times) / sum(times) for phase, times in phases.items()}
    return {**rates, "tuned": sum(n for n, _ in tuning) / sum(seconds for _, seconds in tuning)}


def main(argv: list[str]) -> None:
    program, output, *rest = argv
    found = {"retrain": drive_retrain, "search": drive_search}[program](rest)
    Path(output).write_text(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1:])
