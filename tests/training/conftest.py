import pytest
from tiny_training import tiny_run

from prunekit.training import TrainResult


@pytest.fixture(scope="session")
def uninterrupted() -> TrainResult:
    return tiny_run()
