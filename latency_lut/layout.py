"""An ONNX part between channels_last tensors, as it stands inside a network.

onnxruntime's integer convolutions work on channels_last tensors. It turns a network's picture once and its last
features once; a part in a session of its own is turned at both ends, which no network pays (2 to 10 % of a block, more
of a small one). With a transpose of our own at each end the two meet, and the runtime takes both out.
"""

import onnx
from onnx import helper

TO_CONTIGUOUS, TO_CHANNELS_LAST = (0, 3, 1, 2), (0, 2, 3, 1)  # what the axes of the new tensor were in the old one


def channels_last(model: bytes) -> bytes:
    """The same ONNX model with (N, H, W, C) in the place of each input and output (N, C, H, W)."""
    loaded = onnx.load_from_string(model)
    graph = loaded.graph
    for value in filter(_is_picture, graph.input):
        graph.node.insert(0, _turned(value, TO_CONTIGUOUS, into=value.name))
    for value in filter(_is_picture, graph.output):
        graph.node.append(_turned(value, TO_CHANNELS_LAST))
    return loaded.SerializeToString(deterministic=True)


def _is_picture(value: onnx.ValueInfoProto) -> bool:
    return len(value.type.tensor_type.shape.dim) == 4


def _turned(value: onnx.ValueInfoProto, perm: tuple[int, ...], into: str = "") -> onnx.NodeProto:
    """The transpose between an inner tensor and the channels_last one that `value` is made to describe."""
    inner, outer = value.name, f"{value.name}_channels_last"
    sizes = [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
    kind = value.type.tensor_type.elem_type
    value.CopyFrom(helper.make_tensor_value_info(outer, kind, [sizes[axis] for axis in TO_CHANNELS_LAST]))
    return helper.make_node("Transpose", [outer if into else inner], [inner if into else outer], perm=perm)
