"""Several processes that train together: two gloo ranks on the CPU against one."""

import contextlib
import os
import signal
import socket
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from common import distributed
from common.cli import guard
from common.errors import UserError
from common.runs import Run
from quant import QuantConfig, Schedule
from supernet import Plan, Search, Supernet
from tasks import Classification, Recipe, Stream, fit
from tests.spaces import latency_of, tiny_space
from tests.tasks.test_engine import Stopped, pictures, same, tiny_model, watched

RECIPE = Recipe(Schedule(epochs=4, float_epochs=1, observer_freeze=0.4, bn_freeze=0.7), lr=0.1)


def double_model() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(216, 3)).double()


def gradients(model: nn.Module, stream: Stream, step: int) -> list[torch.Tensor]:
    x, y = stream.batch(step)
    F.cross_entropy(model(x.double()), y).backward()
    distributed.average([model])
    return [p.grad for p in model.parameters()]


def train(path, task=None):
    """Dropout, batch norm, every phase; two ranks 12 of 50 images a step, four steps an epoch."""
    held_out = {"val": pictures(9, 1), "test": pictures(1, 2)}  # one rank has nothing of the test part
    stream = Stream(pictures(50), 6 * distributed.world_size(), seed=0)
    fitted = fit(tiny_model(), task or Classification(3), stream, held_out, RECIPE, Run(path), torch.zeros(2, 3, 8, 8))
    return fitted.model.state_dict(), fitted.float_metrics, fitted.metrics


def stopped_and_resumed(path):
    # in the first epoch, in quantized training, when batch norm stands still
    for already, stop in ((0, 3), (3, 6), (4, 15)):
        with contextlib.suppress(Stopped):
            train(path, watched(already, stop_at=stop))
        torch.manual_seed(distributed.rank() + 99)  # what was drawn before is forgotten
    return train(path)


def searching() -> Search:
    torch.manual_seed(0)
    space = tiny_space(8, 3)
    images = 6 * distributed.world_size()
    train, val = Stream(pictures(50), images, seed=0), Stream(pictures(30, 1), images, seed=1)
    return Search(
        Supernet(space),
        Plan(2, 3, 3, 6),
        latency_of(space),
        0.9,
        F.cross_entropy,
        train.batch,
        val.batch,
        QuantConfig(),
    )


def searched(search: Search) -> tuple[dict, list[dict]]:
    """Its end and what it logged, each path that it ran included."""
    rows = []
    while not search.finished:
        choice = search._path(search.step_index, search.plan.phase(search.step_index))
        rows.append(search.step() | {"path": str(choice)})
    search.assert_same()
    return search.state_dict(), rows


def search_resumed_at(step: int) -> tuple[dict, list[dict]]:
    """As `searched`, by a search that goes on from rank 0's checkpoint; the rows from `step` on."""
    first, second = searching(), searching()
    for _ in range(step):
        first.step()
    torch.manual_seed(distributed.rank() + 99)
    second.load_state_dict(distributed.from_main(first.state_dict))
    return searched(second)


def said(call) -> str:
    with pytest.raises(UserError) as error:
        call()
    return str(error.value)


def unequal():
    alphas = {"ops.0": torch.zeros(3), "ops.1": torch.zeros(3)}
    distributed.assert_equal(alphas, "alphas")
    alphas["ops.1"][2] += 1e-7 * distributed.rank()
    return said(lambda: distributed.assert_equal(alphas, "alphas"))


def statistics():
    """Running statistics of batch norm after a step on other data per rank, and those of a frozen one."""
    moving, still = nn.BatchNorm1d(2), nn.BatchNorm1d(2).eval()
    moving(torch.tensor([[0.0, 1.0], [2.0, 5.0]]) + 10.0 * distributed.rank())
    still.running_mean += distributed.rank()
    distributed.average([moving, still])
    return moving.running_mean, moving.running_var, still.running_mean


def one_rank(number: int, port: int, path: Path) -> None:
    as_rank(number, port)
    with distributed.joined():
        stream = Stream(pictures(50), 12, seed=3)
        found = {
            "numbers": [distributed.rank(), distributed.world_size(), distributed.is_main()],
            "from_main": distributed.from_main(lambda: {"from": distributed.rank()}),
            "gradients": gradients(double_model(), Stream(pictures(50), 24, seed=0, augment=False), 5),
            "batches": [stream.batch(step) for step in range(2 * stream.steps_per_epoch)],
            "statistics": statistics(),
            "reduced": [
                reduce_(torch.tensor([distributed.rank(), 2.0]))
                for reduce_ in (distributed.sum_, distributed.mean_, distributed.max_)
            ],
            "unequal": unequal(),
            "metrics": Classification(3).evaluate(tiny_model(), pictures(301, 1)),
            "whole": train(path / "whole"),
            "resumed": stopped_and_resumed(path / "parts"),
            "search": searched(searching()),
            "search_resumed": {step: search_resumed_at(step) for step in (4, 11)},
        }
        torch.save(found, path / f"{number}.pt")
        distributed.only_main()
        torch.save(
            {"numbers": [distributed.rank(), distributed.world_size(), distributed.is_main()]},
            path / f"alone{number}.pt",
        )


def trouble(case: str) -> None:
    """What goes wrong on one rank or on all."""
    if case == "all" or case == f"rank {distributed.rank()}":
        raise UserError("field: 7, must be 8")
    if case == "Ctrl-C":
        raise KeyboardInterrupt
    if case == "kill" and distributed.rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    distributed.barrier()


@guard
def program(case: str) -> None:
    with distributed.joined():
        print(f"a line for {case}")
        trouble(case)


def troubled_rank(number: int, ports: dict[str, int], path: Path) -> None:
    for case, port in ports.items():
        as_rank(number, port)
        with (
            open(path / f"{case} {number}", "w") as said,
            contextlib.redirect_stdout(said),
            contextlib.redirect_stderr(said),
        ):
            with pytest.raises(SystemExit) as end:
                program(case)
            print("exit", end.value.code)
        distributed.stop()


def as_rank(number: int, port: int) -> None:
    """The environment that torchrun makes."""
    os.environ |= {
        "RANK": str(number),
        "LOCAL_RANK": str(number),
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    torch.set_num_threads(1)


def free_ports(count: int) -> list[int]:
    """Different ports that nothing listens on: all sockets are open until the last is drawn."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for s in sockets:
            s.bind(("127.0.0.1", 0))
        return [s.getsockname()[1] for s in sockets]


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """What each of two ranks found, and their folder."""
    path = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(one_rank, (*free_ports(1), path), nprocs=2)
    return [torch.load(path / f"{number}.pt", weights_only=True) for number in range(2)], path


def test_one_process_is_the_only_rank():
    with distributed.joined():
        assert (distributed.rank(), distributed.world_size(), distributed.is_main()) == (0, 1, True)
        distributed.only_main()
    tensors = [torch.ones(3), torch.tensor(0.1)]
    before, random = [t.clone() for t in tensors], torch.get_rng_state()
    distributed.mean_each_(tensors)
    for reduce_ in (distributed.sum_, distributed.mean_, distributed.max_):
        assert reduce_(tensors[0]) is tensors[0]
    distributed.reseed(0, 0)
    assert same(tensors, before) and torch.equal(torch.get_rng_state(), random)
    distributed.assert_equal({"a": torch.ones(1)}, "weights")
    assert (
        list(range(5))[distributed.share()] == [0, 1, 2, 3, 4]
        and distributed.from_main(lambda: 7) == 7
        and distributed.launcher() == ["python"]
    )


def test_ranks_have_numbers_and_rank_0_goes_on_alone(two):
    found, path = two
    assert [row["numbers"] for row in found] == [[0, 2, True], [1, 2, False]]
    assert [row["from_main"] for row in found] == [{"from": 0}] * 2
    assert torch.load(path / "alone0.pt")["numbers"] == [0, 1, True] and not (path / "alone1.pt").exists()


def test_two_ranks_have_the_gradient_of_one_with_the_same_batch(two):
    stream = Stream(pictures(50), 24, seed=0, augment=False)
    expected = gradients(double_model(), stream, 5)
    for row in two[0]:
        for got, wanted in zip(row["gradients"], expected, strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-14)
    assert same(two[0][0]["gradients"], two[0][1]["gradients"])
    assert not torch.allclose(
        expected[0], gradients(double_model(), Stream(pictures(50), 12, seed=0, augment=False), 5)[0]
    )


@pytest.mark.parametrize("batch, count", [(12, 2), (21, 3), (50, 2), (50, 50)])
def test_ranks_share_an_epoch_without_overlap(monkeypatch, batch, count):
    images, streams = replace(pictures(50), labels=torch.arange(50)), []
    monkeypatch.setattr(distributed, "world_size", lambda: count)
    for number in range(count):
        monkeypatch.setattr(distributed, "rank", lambda number=number: number)
        streams.append(Stream(images, batch, seed=3))
    per_epoch, size = streams[0].steps_per_epoch, streams[0].batch_size
    for epoch in range(2):
        steps = range(epoch * per_epoch, (epoch + 1) * per_epoch)
        seen = [int(i) for stream in streams for step in steps for i in stream.batch(step)[1]]
        assert len(set(seen)) == len(seen) == per_epoch * size > 50 - size and size == batch


def test_more_ranks_than_pictures_are_refused(monkeypatch):
    monkeypatch.setattr(distributed, "world_size", lambda: 51)
    monkeypatch.setattr(distributed, "rank", lambda: 0)
    assert "51 share 50 training images; add --processes 1" in said(lambda: Stream(pictures(50), 60, seed=0))


def test_each_rank_draws_its_own_batches_and_augmentation(two):
    first, second = (row["batches"] for row in two[0])
    assert len(first) == len(second) == 2 * (50 // 12)
    assert all(len(x) == 6 for x, _ in first) and not any(torch.equal(a, b) for (a, _), (b, _) in zip(first, second))


def test_sums_means_and_maxima_are_equal_on_all_ranks(two):
    for row in two[0]:
        assert [found.tolist() for found in row["reduced"]] == [[1.0, 4.0], [0.5, 2.0], [1.0, 2.0]]


def test_running_statistics_are_averaged_and_frozen_ones_left_alone(two):
    (mean, var, still), (mean_1, var_1, still_1) = (row["statistics"] for row in two[0])
    torch.testing.assert_close(mean, 0.1 * torch.tensor([6.0, 8.0]))  # of the ranks' means (1, 3) and (11, 13)
    torch.testing.assert_close(var, 0.9 + 0.1 * torch.tensor([2.0, 8.0]))
    assert torch.equal(mean, mean_1) and torch.equal(var, var_1)
    assert still.tolist() == [0, 0] and still_1.tolist() == [1, 1]


def test_unequal_alphas_are_named_on_every_rank(two):
    for row in two[0]:
        assert row["unequal"].startswith("ranks: alphas differ between rank 0 and rank 1 (ops.1)")


def test_after_training_all_ranks_hold_the_same_bits(two):
    first, second = (row["whole"] for row in two[0])
    assert same(first, second)
    whole = Run(two[1] / "whole").load_checkpoint()
    assert same(whole["model"], first[0]) and whole["ranks"] == 2 and whole["step"] == 16
    one_process = train(two[1] / "one")[0]
    assert not same(one_process, first[0])  # other batches, other dropout: the ranks did not train alone


def test_a_stopped_training_of_two_ranks_ends_in_the_same_bits(two):
    for row in two[0]:
        assert same(row["resumed"], row["whole"])
    (whole, parts) = (Run(two[1] / name) for name in ("whole", "parts"))
    assert same(whole.load_checkpoint(), parts.load_checkpoint())
    assert [r | {"seconds": 0} for r in whole.read_log()] == [r | {"seconds": 0} for r in parts.read_log()]
    assert [row["step"] for row in whole.read_log()] == [4, 8, 12, 16]


def test_all_ranks_report_what_one_process_finds(two):
    expected = Classification(3).evaluate(tiny_model(), pictures(301, 1))
    assert [row["metrics"] for row in two[0]] == [expected] * 2


def test_a_search_of_two_ranks_finds_one_architecture(two):
    """Two GPUs that end in two architectures were a defect of other searches: paths and alphas that drift apart."""
    (first, rows), (second, rows_1) = (row["search"] for row in two[0])
    assert same(first["alphas"], second["alphas"]) and any(alpha.any() for alpha in first["alphas"].values())
    assert (
        same(first, second) and rows == rows_1 and {row["phase"] for row in rows} == {"base", "float", "quant", "joint"}
    )
    alone, rows_alone = searched(searching())
    assert not same(first["alphas"], alone["alphas"]) and [r["path"] for r in rows[:9]] == [
        r["path"] for r in rows_alone[:9]
    ]


@pytest.mark.parametrize("step", [4, 11])
def test_a_stopped_search_of_two_ranks_ends_in_the_same_bits(two, step):
    for row in two[0]:
        (end, rows), (expected, expected_rows) = row["search_resumed"][step], row["search"]
        assert same(end, expected) and rows == expected_rows[step:]


def test_a_search_of_two_ranks_is_not_continued_by_one(two):
    assert "was begun by 2, and these are 1; add --processes 2" in said(
        lambda: searching().load_state_dict(two[0][0]["search"][0])
    )


def test_a_run_of_two_ranks_is_not_continued_by_one(two):
    assert "was begun by 2, and these are 1; add --processes 2" in said(lambda: train(two[1] / "whole"))


def test_what_ends_one_rank_ends_all_and_is_said_once(tmp_path):
    cases = ("rank 0", "rank 1", "all", "Ctrl-C", "kill")
    ports = dict(zip(cases, free_ports(len(cases)), strict=True))
    context = torch.multiprocessing.spawn(troubled_rank, (ports, tmp_path), nprocs=2, join=False)
    for process in context.processes:
        process.join(120)
    said = {case: [(tmp_path / f"{case} {number}").read_text() for number in (0, 1)] for case in ports}
    assert all(
        lines[0].startswith(f"a line for {case}") and lines[1].count("a line") == 0 for case, lines in said.items()
    )
    for case in ("rank 0", "rank 1", "all"):
        assert "".join(said[case]).count("error: field: 7, must be 8\n") == 1, said[case]
    ends = {case: [line.splitlines()[-1] for line in lines if line] for case, lines in said.items()}
    assert ends == {case: ["exit 2"] * 2 for case in ("rank 0", "rank 1", "all")} | {
        "Ctrl-C": ["exit 130"] * 2,
        "kill": ["exit 2"],
    }
    assert "".join(said["Ctrl-C"]).count("stopped; the same command goes on from the last checkpoint") == 1
    assert "error: ranks: another process is gone (" in said["kill"][0]
