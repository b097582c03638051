"""Networks by name: `zoo.build("mobilenet_v2", num_classes=10)`; the FrostNets too. All untrained plain float modules.

`build`, `knows` and `NAMES` are those of the classifiers; `zoo.detectors`, `zoo.segmenters` and `zoo.generators` have
the same three. docs/zoo.md has each network's cost and how it differs from its namesakes elsewhere.
"""

from zoo.classifiers import NAMES, build, knows

__all__ = ["NAMES", "build", "knows"]
