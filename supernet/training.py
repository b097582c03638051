"""A search from its last checkpoint to its end: progress bar, log and checkpoints in a run's folder."""

import time

from tqdm import tqdm

from common import distributed
from common.runs import ALPHAS, CHECKPOINT, Run
from supernet.loop import Search

ALPHA_ROWS = 100  # about that many rows in alphas.jsonl


def train(search: Search, run: Run, checkpoint_seconds: float) -> None:
    """Run all steps of a search, on every rank; rank 0 writes.

    Args:
        search: A new search; it goes on from the run's checkpoint where there is one.
        run: Its folder.
        checkpoint_seconds: Seconds between two checkpoints; the last step is always followed by one.

    Raises:
        UserError: The checkpoint belongs to another search, the loss is not finite, or the ranks differ.
    """
    _resume(search, run)
    search.assert_same()
    saved = time.monotonic()
    with tqdm(total=search.plan.steps, initial=search.step_index, desc="search", unit="step") as bar:
        while not search.finished:
            row = search.step()
            if distributed.is_main():
                _log(run, search, row)
            figures = {key: f"{row[key]:.3g}" for key in ("loss", "expected_ms", "mu") if key in row}
            bar.set_postfix({"phase": row["phase"]} | figures, refresh=False)
            bar.update()
            if search.finished:
                search.assert_same()
            if distributed.is_main() and (time.monotonic() - saved > checkpoint_seconds or search.finished):
                search.refuse_broken()
                run.save_checkpoint(search.state_dict())
                saved = time.monotonic()


def _resume(search: Search, run: Run) -> None:
    state = distributed.from_main(lambda: run.load_checkpoint() if run.has(CHECKPOINT) else None)
    if state is None:
        return
    search.load_state_dict(state)
    if distributed.is_main():
        run.rewind_log(search.step_index - 1)
    print(f"going on at step {search.step_index} of {search.plan.steps}")


def _log(run: Run, search: Search, row: dict) -> None:
    """A step's line in log.jsonl and, after some of the alpha steps and the last, the probabilities in alphas.jsonl."""
    run.append_log(row)
    plan = search.plan
    every = max(1, plan.joint_steps // (plan.alpha_every * ALPHA_ROWS))
    number = (row["step"] - plan.joint_from) // plan.alpha_every
    last = row["step"] + plan.alpha_every >= plan.steps
    if "mu" in row and (number % every == 0 or last):
        run.append_log({"step": row["step"], **_probabilities(search)}, ALPHAS)


def _probabilities(search: Search) -> dict:
    """Of the alphas: "ops" [stage][slot][candidate] and "depths" [stage][depth - min_depth]."""
    ops, depths = search.alphas.probabilities(search.plan.temperature_at(search.step_index - 1))
    return {"ops": [[p.tolist() for p in stage] for stage in ops], "depths": [p.tolist() for p in depths]}
