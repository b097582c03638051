"""Names of networks: their forms, near ones, and messages about unknown ones."""

import pytest

from common.errors import UserError
from zoo.catalog import Catalog, check, near

CATALOG = Catalog("detector", heads={"ssd": "a head", "rpn": "two stages"}, alone={"yolo": "a network"})


def test_names_are_the_forms_with_a_backbone_and_the_networks_without():
    assert CATALOG.names == ("ssd:<backbone>", "rpn:<backbone>", "yolo")


@pytest.mark.parametrize("name, known", [("yolo", True), ("ssd:net", True), ("ssd:a:b", True), ("ssd", False)])
def test_a_head_needs_a_backbone(name, known):
    assert CATALOG.knows(name) == known


@pytest.mark.parametrize("name", ["ssd", "ssd:", "yolo:net", ":net", "other", ""])
def test_another_name_is_refused_with_the_forms(name):
    assert not CATALOG.knows(name)
    with pytest.raises(UserError, match=f"arch: '{name}' is no detector; the forms are ssd:<backbone>, rpn:<b.*, yolo"):
        CATALOG.find(name)


def test_a_name_finds_its_row_and_its_backbone():
    assert CATALOG.find("yolo") == ("a network", "")
    assert CATALOG.find("rpn:resnet18") == ("two stages", "resnet18")
    assert CATALOG.find("ssd:module:function") == ("a head", "module:function")


def test_near_names_come_best_first_and_are_five_at_most():
    known = [f"resnet{n}" for n in (20, 32, 44, 56, 110, 18)]
    assert near("resnet1", known).split(", ")[0] == "resnet18" and near("resnet", known).count(",") == 4


def test_where_no_name_is_near_the_first_ones_are_given():
    assert near("zzz", ["a", "b", "c", "d", "e", "f"]) == "a, b, c, d, e"


def test_values_that_no_architecture_could_hold_are_refused():
    check(num_classes=10, input_size=32)
    with pytest.raises(UserError, match="num_classes: 0, must be "):
        check(input_size=32, num_classes=0)
