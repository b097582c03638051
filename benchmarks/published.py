"""Latencies and file sizes that the ancestors published, to stand beside ours (arXiv:2006.09679 and the README of its
code).
"""

# Classification/README of the ancestor: AMD Ryzen Threadripper 1950X, 4 threads, PyTorch 1.6. Float is unfolded.
# name: float MB, INT8 MB, float ms, INT8 ms on fbgemm, on qnnpack
README = {
    "resnet18": (46.81, 11.78, 366, 245, 243),
    "shufflenet_v2_x0_5": (5.56, 1.48, 157, 89, 91),
    "shufflenet_v2_x1_0": (9.24, 2.44, 255, 372, 348),
    "mobilenet_v2": (14.21, 3.58, 282, 143, 133),
    "mobilenet_v2_relu": (14.21, 3.58, 282, 112, 99),
    "mobilenet_v3_large": (22.07, 5.81, 286, 160, 151),
    "mobilenet_v3_small": (10.91, 2.92, 164, 99, 100),
    "mobilenet_v3_large_relu": (22.06, 5.57, 258, 131, 123),
    "mobilenet_v3_small_relu": (10.90, 2.77, 148, 79, 77),
}
# The paper's comparison of networks: float ms, INT8 ms; machine, threads and engine not stated.
PAPER = {
    "frostnet_small_0_5": (125, 43), "frostnet_base_0_5": (137, 49), "frostnet_large_0_5": (151, 53),
    "frostnet_small_0_75": (158, 58), "frostnet_large_0_75": (200, 67),
    "frostnet_small_1_0": (185, 62), "frostnet_base_1_0": (233, 70), "frostnet_large_1_0": (234, 78),
    "frostnet_base_1_25": (273, 97), "frostnet_large_1_25": (297, 100),
    "mobilenet_v3_small": (113, 57), "mobilenet_v3_large": (197, 80),
    "ghostnet_0_5": (197, 433), "ghostnet_1_0": (229, 381), "ghostnet_1_3": (298, 773),
    "efficientnet_lite0": (197, 82), "efficientnet_lite1": (273, 109), "efficientnet_lite2": (350, 133),
}  # fmt: skip
