"""Search spaces of users, by module:function: found, checked, and refused with the cause."""

import sys

import pytest

from common.errors import UserError
from nas import find_space, frostnet_space


def test_a_space_of_ones_own_is_found_by_module_and_function(tmp_path, monkeypatch):
    (tmp_path / "my_spaces.py").write_text(
        "from nas import frostnet_space\ndef narrow(width, input_size, num_classes):\n"
        "    return frostnet_space(width / 2, input_size, num_classes)\ndef wrong(*_):\n    return 3\n"
    )
    monkeypatch.chdir(tmp_path)
    space = find_space("my_spaces:narrow")(1.0, 32, 10)
    assert space.name == "my_spaces:narrow" and space.stages == frostnet_space(0.5, 32, 10).stages
    with pytest.raises(UserError, match="returned a int"):
        find_space("my_spaces:wrong")(1.0, 32, 10)


OWN = """
from dataclasses import replace
from common.errors import UserError
from nas import frostnet_space
number = 3
def none(): pass
def named(width, size): pass
def fails(width, input_size, num_classes): return {}["x"]
def leaves(width, input_size, num_classes): raise SystemExit(2)
def refuses(width, input_size, num_classes): raise UserError("width: too odd")
def broken(width, input_size, num_classes):
    return replace(frostnet_space(width, input_size, num_classes), name="mine", stages=())
def large(width, input_size, num_classes): return frostnet_space(width, 224, num_classes)
def alone(width, input_size, num_classes):
    space = frostnet_space(width, input_size, num_classes)
    def one(stage):
        return replace(stage, slots=(replace(stage.slots[0], candidates=stage.slots[0].candidates[:1]),))
    return replace(space, stages=tuple(map(one, space.stages)))
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A working folder with modules of one's own, forgotten afterwards."""
    files = {
        "own_good": OWN,
        "own_syntax": "def f(:\n",
        "own_raises": "1 / 0\n",
        "own_leaves": "raise SystemExit('no GPU')\n",
    }
    for name, text in files.items():
        (tmp_path / f"{name}.py").write_text(text)
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    "name, words",
    [
        ("nonsense", "must be one of"),
        (":f", "must be module:function"),
        (".own_good:f", "must be module:function"),
        ("own_good:", "must be module:function"),
        ("no_such:f", "module 'no_such' does not import: ModuleNotFoundError: No module named 'no_such'"),
        ("own_good.py:f", "module 'own_good.py' does not import: ModuleNotFoundError: .* without .py"),
        ("own_syntax:f", "module 'own_syntax' does not import: SyntaxError: .*own_syntax.py, line 1"),
        ("own_raises:f", "module 'own_raises' does not import: ZeroDivisionError: division by zero"),
        ("own_leaves:f", "module 'own_leaves' does not import: SystemExit: no GPU"),
        ("own_good:wide", "module 'own_good' has no function 'wide'"),
        ("own_good:number", "module 'own_good' has no function 'number'"),
        ("own_good:none", r"none: too many positional arguments; must take \(width, input_size, num_classes\)"),
        ("own_good:named", r"named: too many positional arguments; must take"),
    ],
)
def test_a_name_that_leads_to_no_function_is_refused_with_the_cause(own, name, words):
    with pytest.raises(UserError, match=f"space: '{name}'.*{words}"):
        find_space(name)


@pytest.mark.parametrize(
    "function, words",
    [
        ("fails", ": KeyError: 'x'"),
        ("leaves", ": SystemExit: 2"),
        ("refuses", ": width: too odd"),
        ("broken", ": space 'mine': stages: none"),
        ("large", " returned input_size 224 and num_classes 10, was asked for 32 and 10"),
        ("alone", " holds one network; give a slot a second candidate"),
    ],
)
def test_a_function_that_gives_no_space_to_search_is_refused_with_the_cause(own, function, words):
    with pytest.raises(UserError, match=f"space: 'own_good:{function}'{words}"):
        find_space(f"own_good:{function}")(1.0, 32, 10)
