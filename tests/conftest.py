"""One thread a test: the networks are tiny, and threads that wait for one another on a busy machine make minutes of
seconds.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is imported, and by the processes that tests start
