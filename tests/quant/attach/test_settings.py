"""Settings from a stranger: everything QuantConfig says can be written as JSON, and nothing else is taken."""

import json
from dataclasses import asdict, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

import quant
from quant import Override, QuantConfig, QuantError
from quant.attach.config import OP_TYPES
from quant.attach.settings import config_from, load_settings
from tests.strategies import examples

TEXTS = st.text(st.characters(codec="ascii", categories=("L", "N", "P")), min_size=1, max_size=20)
GLOBS = st.lists(TEXTS, max_size=3).map(tuple)
WEIGHTS = st.sampled_from([f"{method}:{bits}" for method in quant.WEIGHT_QUANTIZERS for bits in (2, 8)])
ACTIVATIONS = st.sampled_from([f"{method}:{bits}" for method in quant.ACTIVATION_QUANTIZERS for bits in (2, 8)])
COUNTS = st.dictionaries(st.sampled_from(OP_TYPES), st.integers(0, 9))
ROUNDING = ACTIVATIONS.filter(lambda spec: not spec.startswith("qil"))  # whose values others than layers may read
OVERRIDES = st.builds(Override, TEXTS, st.just("float") | WEIGHTS, st.none() | ACTIVATIONS, st.none() | ROUNDING)
CONFIGS = st.builds(
    QuantConfig,
    st.sampled_from(tuple(quant.ENGINES)),
    WEIGHTS,
    ACTIVATIONS,
    ROUNDING,
    st.none() | st.just("dorefa:6"),
    st.none() | st.lists(st.sampled_from(OP_TYPES), min_size=1, max_size=3).map(tuple),
    COUNTS,
    COUNTS,
    GLOBS,
    st.lists(OVERRIDES, max_size=2).map(tuple),
    st.lists(GLOBS, max_size=2).map(tuple),
    st.booleans(),
    st.booleans(),
    st.integers(0, 9),
)


@given(CONFIGS)
def test_every_configuration_survives_json(config):
    assert config_from(json.loads(json.dumps(asdict(config)))) == config


def test_what_is_missing_keeps_its_default():
    assert config_from({}) == QuantConfig()
    assert config_from({"weight": "dorefa:3"}) == replace(QuantConfig(), weight="dorefa:3")


def test_overrides_are_written_as_objects():
    config = config_from({"overrides": [{"match": "fc*", "weight": "int8:8", "activation": "float"}]})
    assert config.overrides == (Override("fc*", "int8:8", "float"),)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ([], r"settings: \[\]; write an object"),
        ("int8", "settings: 'int8'; write an object"),
        ({"weights": "int8"}, "settings: 'weights' is not known here; choose from engine, weight,"),
        ({"weight": 8}, "weight: 8; write a short text in quotes"),
        ({"weight": ""}, "weight: ''; write a short text"),
        ({"weight": None}, "weight: None; write a short text"),
        ({"weight": "int8:²"}, "weight: 'int8:²'; write a short text"),
        ({"weight": "x" * 5000}, r"weight: 'x+\.\.\.x+'; write a short text"),
        ({"weight": "pact:4"}, "weight: 'pact:4': 'pact' does not quantize weights; choose from int8,"),
        ({"activation": "int9"}, "activation: 'int9:8': 'int9' does not quantize activations"),
        ({"activation": "int8:9"}, "activation: 'int8:9': bits: 9,.*takes 2 to 8"),
        ({"activation": "int8:1"}, "activation: 'int8:1': bits: 1"),
        ({"activation": "int8:four"}, "activation: 'int8:four': 'four' is no number of bits"),
        ({"residual": "int8,x=1"}, "residual:.*no option 'x'"),
        ({"weight": "qil:3,levels=seed"}, "weight: 'qil:3,levels=seed': the option levels=seed is gone; 'qil:4' has"),
        ({"gradient": "int8:8"}, "gradient:.*'int8' does not quantize gradients"),
        ({"engine": "tensorrt"}, "engine: 'tensorrt' is not one of reference,"),
        ({"op_types": "conv"}, "op_types: 'conv'; write a list"),
        ({"op_types": ["conv", "convolution"]}, "op_types: 'convolution' is no kind of operation; choose from conv,"),
        ({"op_types": [["conv"]]}, r"op_types\[0\]: \['conv'\]; write a short text"),
        ({"skip_first": 1}, "skip_first: 1; write an object"),
        ({"skip_first": {"convs": 1}}, "skip_first: 'convs' is not known here; choose from conv,"),
        ({"skip_first": {"conv": -1}}, r"skip_first\.conv: -1; write a whole number from 0 on"),
        ({"skip_last": {"conv": True}}, r"skip_last\.conv: True; write a whole number"),
        ({"skip_last": {"conv": 1.0}}, r"skip_last\.conv: 1\.0; write a whole number"),
        ({"ignore": ["a", 3]}, r"ignore\[1\]: 3; write a short text"),
        ({"share": ["add*"]}, r"share\[0\]: 'add\*'; write a list"),
        ({"freeze_bn": 1}, "freeze_bn: 1; write true or false"),
        ({"quantize_input": "no"}, "quantize_input: 'no'; write true or false"),
        ({"seed": None}, "seed: None; write a whole number"),
        ({"overrides": {"match": "fc"}}, "overrides: .*; write a list"),
        ({"overrides": ["fc"]}, r"overrides\[0\]: 'fc'; write an object"),
        ({"overrides": [{"weight": "int8"}]}, r"overrides\[0\]: .*; say which layers and what of them"),
        ({"overrides": [{"match": "fc"}]}, r"overrides\[0\]: .*; say which layers and what of them"),
        (
            {"overrides": [{"match": "fc", "weights": "int8"}]},
            r"overrides\[0\]: 'weights' is not known here; choose from match, weight",
        ),
        ({"overrides": [{"match": "fc", "weight": "int7"}]}, "overrides 'fc': weight: 'int7:8'"),
    ],
)
def test_a_mistake_is_named_with_its_field_its_value_and_the_mend(settings, message):
    with pytest.raises(QuantError, match=f"^{message}"):
        config_from(settings)


SPEC_LIKE = st.text("int8pact:0123456789,.=kx- ", max_size=12)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | SPEC_LIKE,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from([*OP_TYPES, "match", "weight", "x"]), inner, max_size=3)
    ),
    max_leaves=6,
)


@examples(200)
@given(st.dictionaries(st.sampled_from([*QuantConfig.__dataclass_fields__, "x"]), JSON, max_size=3))
def test_whatever_a_stranger_writes_is_a_configuration_or_a_quant_error(value):
    try:
        assert isinstance(config_from(value), QuantConfig)
    except QuantError as error:
        assert str(error)


def test_a_file_is_read(tmp_path):
    path = tmp_path / "settings.json"
    path.write_text('{"weight": "lsq:4", "skip_first": {"conv": 1}}')
    assert load_settings(path) == QuantConfig(weight="lsq:4", skip_first={"conv": 1})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "not a settings file in JSON"),
        (b"\xff\xfe", "not a settings file in JSON"),
        (b'{"seed": NaN}', "NaN is not a JSON number"),
        (b'{"seed": 1, "seed": 2}', "'seed' stands there twice: leave one"),
        (b"[" * 100_000, "not a settings file in JSON"),
        (b'{"weight": ' + b"[" * 500 + b"]" * 500 + b"}", "weight: .*; write a short text"),
        (b'{"seed": ' + b"9" * 4000 + b"}", "seed: 9+.*; write a whole number"),
        (b'{"seed": "x"}', "seed: 'x'; write a whole number"),
    ],
)
def test_a_bad_file_is_named(tmp_path, content, message):
    path = tmp_path / "settings.json"
    path.write_bytes(content)
    with pytest.raises(QuantError, match=f"settings.json: .*{message}"):
        load_settings(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(QuantError, match="none.json: cannot be read"):
        load_settings(tmp_path / "none.json")
    with pytest.raises(QuantError, match="cannot be read"):
        load_settings(tmp_path)
