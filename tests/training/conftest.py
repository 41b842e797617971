import pytest

from tests.training.runs import trained


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    """A finished run with everything that a run has. Only read it."""
    overrides = ["logger.mode=offline", "attention.every_n_epochs=1", "attention.num_samples=3"]
    return trained(tmp_path_factory.mktemp("finished") / "run", *overrides)
