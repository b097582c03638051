"""ONNX: an integer graph as quantize and dequantize pairs around float operators."""
