"""Rows, columns and lanes: no two things stand in one place."""

import networkx as nx
from hypothesis import given
from hypothesis import strategies as st

from tests.strategies import examples
from tests.zoo.graphs import flow_of, flows
from zoo.drawing.layout import cuts, layout, rows_of


@examples(40)
@given(flows())
def test_no_two_boxes_and_no_two_tensors_share_a_place(flow):
    rows = rows_of(flow, {})
    plan = layout(flow, rows)
    boxes = [(plan.lanes[n], rows[n]) for n in flow]
    assert len(set(boxes)) == len(flow)
    lines = {(plan.via[a, b], row, a) for a, b in flow.edges for row in range(rows[a] + 1, rows[b])}
    assert not {(lane, row) for lane, row, _ in lines} & set(boxes)
    assert len({(lane, row) for lane, row, _ in lines}) == len(lines)


@examples(40)
@given(flows())
def test_rows_follow_the_longest_path_which_keeps_the_first_lane(flow):
    rows = rows_of(flow, {})
    assert all(rows[a] < rows[b] for a, b in flow.edges)
    assert max(rows.values()) + 1 == nx.dag_longest_path_length(flow) + 1
    lanes = layout(flow, rows).lanes
    assert {rows[n] for n in flow if lanes[n] == 0} >= set(range(max(rows.values()) + 1))


@examples(40)
@given(flows(), st.integers(2, 6))
def test_columns_cover_all_rows_once(flow, most):
    rows = rows_of(flow, {})
    edges = cuts(flow, rows, most)
    assert edges == sorted(set(edges)) and edges[0] == 0 and edges[-1] == max(rows.values()) + 1


def test_a_chain_of_blocks_is_cut_between_them():
    """Between blocks one tensor crosses, inside them two."""
    flow = flow_of([edge for i in range(0, 12, 3) for edge in [(i, i + 1), (i + 1, i + 2), (i + 2, i + 3), (i, i + 3)]])
    assert cuts(flow, rows_of(flow, {}), 7)[1] % 3 == 1


def test_a_constant_stands_just_above_its_first_reader():
    flow = flow_of([(0, 1), (1, 2), (2, 3), (4, 2), (4, 3)])
    flow.nodes[4]["kind"] = "get_attr"
    assert rows_of(flow, {}) == {0: 0, 1: 1, 2: 2, 3: 3, 4: 1}
