"""Settings of every test.

One thread per test: the networks are tiny, and threads that wait for one another on a busy machine make minutes of
seconds. Property tests (hypothesis) draw the same examples in every run, so that a failure is never a matter of luck;
`make test-slow` draws at random, and EXAMPLES=2000 sets how many.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is imported, and by the processes that tests start

import hypothesis
import pytest

hypothesis.settings.register_profile("deterministic", derandomize=True, database=None, deadline=None)
hypothesis.settings.register_profile("random", derandomize=False, deadline=None, print_blob=True)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "deterministic"))


def pytest_collection_modifyitems(items):
    """Mark property tests, so that `-m property` runs them alone."""
    for item in items:
        if hypothesis.is_hypothesis_test(getattr(item, "obj", None)):
            item.add_marker(pytest.mark.property)
