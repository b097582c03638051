"""What earlier search systems got wrong, and the tests that keep it right here. A test below reads this table and looks
each of them up.

 1  The latency loss reaches the alphas and points to the cheaper candidate.
        supernet/test_alphas.py::test_the_latency_gradient_points_to_cheaper_ops_and_shallower_stages
        test_acceptance.py::test_a_step_of_the_search_moves_alphas_to_cheaper_candidates_while_the_target_is_missed
 2  A stopped search goes on to the same end, in every phase.
        supernet/test_loop.py::test_an_interrupted_search_ends_as_an_uninterrupted_one_bit_for_bit
        test_search_resume.py::test_a_stopped_search_goes_on_to_the_same_end
 3  Target and table speak in the same unit.
        latency_lut/test_table.py::test_latencies_are_in_milliseconds
        test_acceptance.py::test_a_target_in_milliseconds_means_the_milliseconds_of_the_table
 4  No entry of the table is negative, zero or not a number; implausible pairs are remarked.
        latency_lut/test_table.py::test_every_calibrated_latency_is_a_positive_number
        latency_lut/test_table.py::test_a_part_as_quick_as_an_empty_call_is_an_error_and_never_zero
        latency_lut/test_table_json.py::test_numbers_that_are_none_are_refused
        latency_lut/test_build.py::test_a_larger_kernel_that_was_measured_faster_is_remarked
 5  An impossible target fails at once with the feasible range.
        test_search_errors.py::test_an_impossible_target_fails_at_once_with_the_feasible_range
        nas/test_derive.py::test_an_impossible_target_names_the_feasible_range
 6  A missing entry is an error, never a constant.
        latency_lut/test_table.py::test_a_block_of_no_space_is_an_error_and_no_guess
        latency_lut/test_table.py::test_a_missing_input_size_names_the_command_that_adds_it
 7  What is timed runs in evaluation and inference mode, on quantized channels_last inputs.
        latency_lut/test_timing.py::test_callables_run_in_inference_mode_and_only_they
        latency_lut/test_timing.py::test_a_network_in_training_mode_is_refused
        latency_lut/test_build.py::test_parts_are_fed_quantized_channels_last_tensors_and_give_such
 8  What is derived meets the target by the table, whatever the scores; the knapsack is exact.
        test_acceptance.py::test_derived_networks_meet_the_target_whatever_the_scores
        nas/test_derive.py::test_the_front_equals_brute_force
        nas/test_derive.py::test_the_best_under_a_target_is_the_best_of_all_networks_under_it
 9  A path computes what the network of its architecture computes, in float and under fake-quant.
        supernet/test_model.py::test_a_path_computes_what_the_network_of_its_architecture_computes
10  The alphas are identical on two ranks.
        common/test_distributed.py::test_a_search_of_two_ranks_finds_one_architecture
        common/test_distributed.py::test_unequal_alphas_are_named_on_every_rank
11  Alphas learn from ever other pictures, which train no weights; the test pictures are not opened.
        test_acceptance.py::test_alphas_see_other_pictures_in_every_step_and_none_that_train_weights
        test_acceptance.py::test_a_search_opens_no_picture_outside_the_training_part
        tasks/test_holdout.py::test_images_that_move_alphas_evaluate_networks_and_train_weights_are_disjoint
12  A whole search runs on a CPU.
        test_search.py::test_a_search_writes_an_architecture_that_meets_the_target
13  The optimizers' state survives the boundaries of phases.
        test_acceptance.py::test_momentum_goes_on_across_every_boundary_of_phases
        test_acceptance.py::test_the_moments_of_the_alphas_go_on_from_step_to_step
14  A table of another engine, thread count or torch is refused.
        latency_lut/test_table.py::test_another_engine_or_thread_count_is_refused
        latency_lut/test_table.py::test_every_other_part_of_the_identity_is_refused_with_both_values
        test_search_errors.py::test_another_engine_or_torch_is_refused
"""

import ast
import itertools
import re
from pathlib import Path
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import quant
import search as program
from common.errors import UserError
from nas import SPACES
from nas.derive import Scores, best_under, front, latency_range
from supernet import SAMPLERS, Plan, Search, Supernet
from supernet.finalists import finalists, path_latency
from tasks.data import classification
from tests import ROOT
from tests.latency_lut.tables import made_up
from tests.search_program import world  # noqa: F401
from tests.spaces import latency_of, tiny_space
from tests.strategies import examples

FOLDER = ROOT / "tests"
SPACE = tiny_space()


# ---- the table above ---------------------------------------------------------------------------------------


def test_every_item_has_a_test():
    items = [int(number) for number in re.findall(r"^ ?(\d+)  [A-Z]", __doc__, re.MULTILINE)]
    assert items == list(range(1, 15))
    assert all("::test_" in part for part in re.split(r"^ ?\d+  (?=[A-Z])", __doc__, flags=re.MULTILINE)[1:])


@pytest.mark.parametrize("reference", re.findall(r"[\w/]+\.py::\w+", __doc__))
def test_the_tests_that_are_named_exist(reference):
    file, name = reference.split("::")
    defined = {node.name for node in ast.parse((FOLDER / file).read_text()).body if isinstance(node, ast.FunctionDef)}
    assert name in defined


# ---- a search ----------------------------------------------------------------------------------------------


def batch(step):
    generator = torch.Generator().manual_seed(step)
    return torch.randn(8, 3, 16, 16, generator=generator), torch.arange(8) % 4


def searching(plan, target_ms=0.9, loss=F.cross_entropy) -> Search:
    torch.manual_seed(0)

    def held_out(step):
        return batch(1000 + step)

    return Search(
        Supernet(SPACE), plan, latency_of(SPACE), target_ms, loss, batch, held_out, quant.QuantConfig(engine="fbgemm")
    )


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("target_ms, wanted", [(0.7, "cheaper"), (1.3, "slower")])
def test_a_step_of_the_search_moves_alphas_to_cheaper_candidates_while_the_target_is_missed(sampler, target_ms, wanted):
    """With a task loss that says nothing. Uniform alphas expect 1.0 ms; candidates cost more the higher their index."""
    s = searching(Plan(0, 0, 0, 1, sampler=sampler), target_ms, lambda outputs, _: 0.0 * outputs.sum())
    assert s.alphas.expected_latency(s.latency).item() == pytest.approx(1.0)
    s.step()
    sign = 1 if wanted == "cheaper" else -1
    for alpha in (alpha for stage in list(s.alphas.ops)[1:] for alpha in stage):
        assert (sign * alpha.grad.diff() > 0).all()
        assert sign * alpha[0] > sign * alpha[2], "the step itself, not only its gradient"
    for alpha in list(s.alphas.depths)[1:]:
        assert sign * alpha[0] > sign * alpha[1], "shallower is cheaper"


def test_momentum_goes_on_across_every_boundary_of_phases():
    """At each first step of a phase the stem's buffer is the same object, updated as SGD updates it."""
    plan = Plan(2, 2, 2, 3)
    s, phases = searching(plan), []
    while not s.finished:
        weight = s.supernet.stem.conv.weight
        state = s.optimizer.optimizer.state[weight]
        buffer, before = state.get("momentum_buffer"), weight.detach().clone()
        expected = None if buffer is None else plan.momentum * buffer
        phases.append(s.step()["phase"])
        assert s.supernet.stem.conv.weight is weight
        if len(phases) > 1 and phases[-1] != phases[-2]:
            after = s.optimizer.optimizer.state[weight]["momentum_buffer"]
            assert after is buffer and expected.abs().max() > 0
            torch.testing.assert_close(after, expected + weight.grad + plan.weight_decay * before)
    assert list(dict.fromkeys(phases)) == ["base", "float", "quant", "joint"]


def test_no_weight_loses_its_momentum_when_quantizers_are_attached():
    s = searching(Plan(3, 6, 1, 1))
    for _ in range(9):
        s.step()
    buffers = {p: row["momentum_buffer"] for p, row in s.optimizer.optimizer.state.items()}
    assert set(buffers) == set(s.supernet.parameters()), "two fair rounds give every candidate a gradient"
    s.step()
    assert s.attached and set(s.supernet.parameters()) == set(buffers)
    assert all(s.optimizer.optimizer.state[p]["momentum_buffer"] is buffer for p, buffer in buffers.items())


def test_the_moments_of_the_alphas_go_on_from_step_to_step():
    s = searching(Plan(0, 0, 1, 9, alpha_every=3))
    alpha, seen = s.alphas.ops[1][0], []
    while not s.finished:
        if "expected_ms" in s.step():
            state = s.alpha_optimizer.state[alpha]
            seen.append((state["exp_avg_sq"], state["exp_avg_sq"].clone(), alpha.grad.clone(), int(state["step"])))
    assert [step for *_, step in seen] == [1, 2, 3]
    for (moment, before, _, _), (same, after, gradient, _) in zip(seen, seen[1:]):
        assert same is moment
        torch.testing.assert_close(after, 0.999 * before + 0.001 * gradient.square())


# ---- derivation --------------------------------------------------------------------------------------------


@st.composite
def scored(draw):
    """Random scores and latencies of the tiny space, and a target between its fastest and slowest network."""
    number, ms = st.floats(-1e3, 1e3), st.floats(1e-3, 10.0)

    def rows(value):
        return [
            [draw(st.lists(value, min_size=(n := len(slot.candidates)), max_size=n)) for slot in stage.slots]
            for stage in SPACE.stages
        ]

    depths = [draw(st.lists(number, min_size=(n := len(s.slots) - s.min_depth + 1), max_size=n)) for s in SPACE.stages]
    latency = latency_of(SPACE, draw(ms), draw(ms))
    latency.blocks = rows(ms)
    fastest, slowest = latency_range(SPACE, latency)
    return Scores(rows(number), depths), latency, fastest + draw(st.floats(0, 1)) * (slowest - fastest)


@examples(40)
@given(scored())
def test_derived_networks_meet_the_target_whatever_the_scores(problem):
    scores, latency, target_ms = problem
    points = front(SPACE, scores, latency)
    for point in best_under(points, target_ms, len(points)):
        assert path_latency(point.choice, latency) <= target_ms * (1 + 1e-12)
    with mock.patch("supernet.finalists.BASELINE_DRAWS", 20):
        networks = finalists(SPACE, [points], scores, latency, target_ms, derived=3, baselines=1, seed=0)
    assert networks[0].kind == "derived"
    assert all(path_latency(n.choice, latency) <= target_ms * (1 + 1e-12) for n in networks)


def test_a_target_in_milliseconds_means_the_milliseconds_of_the_table(tmp_path):
    table = made_up(tmp_path / "table.json", SPACE)
    latency = table.for_space(SPACE)
    predicted = table.predict(SPACE.architecture(SPACE.random(torch.Generator().manual_seed(0)))).latency_ms
    assert program.find_target(program.SearchConfig("", target_ms=predicted), table, SPACE, latency) == predicted
    for wrong_unit in (predicted / 1000, predicted / 1e6):
        with pytest.raises(UserError, match="target_ms"):
            program.find_target(program.SearchConfig("", target_ms=wrong_unit), table, SPACE, latency)


# ---- pictures ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """80 training images, each of a different colour; the other splits hold files that are no images."""
    root = tmp_path_factory.mktemp("pictures")
    for number in range(80):
        folder = root / "train" / f"class{number % 4}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), (3 * number, 255 - 3 * number, 60 * (number % 4))).save(folder / f"{number}.png")
    for split in ("val", "test"):
        for c in range(4):
            (root / split / f"class{c}").mkdir(parents=True)
            (root / split / f"class{c}" / "broken.png").write_bytes(b"no picture")
    return root


def colours(images, part) -> list[int]:
    """The numbers of a batch's pictures, by the colour of their middle, which augmentation does not move out."""
    red = images[:, 0, 8, 8] * part.std[0] + part.mean[0]
    return (red * 255 / 3).round().int().tolist()


def test_alphas_see_other_pictures_in_every_step_and_none_that_train_weights(pictures, monkeypatch):
    monkeypatch.setitem(SPACES, "frostnet", lambda width, size, classes: tiny_space(size, classes))
    config = program.SearchConfig("", data="imagefolder", data_root=str(pictures), input_size=16, batch_size=4).filled()
    space = config.find_space()(1.0, 16, 4)
    search, parts = program.build(config, space, latency_of(space), 0.9, "fbgemm")
    batches = [search.val(step)[0] for step in range(4)]
    held_out = [colours(images, parts.alphas) for images in batches]
    trained = {number for step in range(32) for number in colours(search.train(step)[0], parts.weights)}
    assert not any(torch.equal(a, b) for a, b in itertools.combinations(batches, 2))
    assert len({*held_out[0], *held_out[1]}) == len(parts.alphas) == 8, "no picture twice before all have been seen"
    assert len(trained) == len(parts.weights) == 64
    assert not trained & {number for numbers in held_out for number in numbers}
    assert not trained & {int(image[0, 8, 8]) // 3 for image in parts.evaluation.images}


def test_a_search_opens_no_picture_outside_the_training_part(world, pictures, monkeypatch):  # noqa: F811
    opened, really = [], Image.open
    monkeypatch.setattr(Image, "open", lambda path, *args: opened.append(Path(path)) or really(path, *args))
    program.main(world)
    assert {path.relative_to(pictures).parts[0] for path in opened} == {"train"}
    assert len(set(opened)) == 80


def test_the_other_pictures_would_stop_who_opens_them(pictures):
    with pytest.raises(UserError, match="broken.png"):
        classification("imagefolder", pictures, 16)
