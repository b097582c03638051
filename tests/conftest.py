"""Settings of every test.

One thread per test: the networks are tiny, and threads that wait for one another on a busy machine make minutes of
seconds. Property tests (hypothesis) draw the same examples in every run, so that a failure is never a matter of luck;
`make test-slow` draws at random, and EXAMPLES=2000 sets how many.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is imported, and by the processes that tests start

import hypothesis
import pytest

# Deadlines and the check of slow generation measure the machine, not the code: on a busy one they fail at random.
TIMELESS = {"deadline": None, "suppress_health_check": [hypothesis.HealthCheck.too_slow]}
hypothesis.settings.register_profile("deterministic", derandomize=True, database=None, **TIMELESS)
hypothesis.settings.register_profile("random", derandomize=False, print_blob=True, **TIMELESS)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "deterministic"))


def pytest_collection_modifyitems(items):
    """Mark property tests, so that `-m property` runs them alone."""
    for item in items:
        if hypothesis.is_hypothesis_test(getattr(item, "obj", None)):
            item.add_marker(pytest.mark.property)


@pytest.fixture(autouse=True, scope="session")
def one_process():
    """Programs train in the test's own process, unless a test asks for more with --processes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("common.launch.cpu_count", lambda: 1)
        yield
