import pytest

from nas import frostnet_space
from tests.latency_lut.tables import made_up


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    """Tables of 32 px and of 48 px, on disk."""
    folder = tmp_path_factory.mktemp("lut")
    tables = made_up(folder / "small.json"), made_up(folder / "large.json", frostnet_space(0.5, 48, 10), ratio=1.5)
    for table in tables:
        table.save()
    return tables
