import copy
import gc
import os
import signal

# Before torch and wandb are imported: they read these once.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ |= {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "WANDB_ERROR_REPORTING": "false"}

import numpy as np
import pytest
from PIL import Image

# torch and Lightning are imported by fixtures only: the process that starts xdist's workers needs neither, and the
# workers would wait for its imports.


def pytest_collection_finish():
    """Exclude what the imports have left from garbage collection, which otherwise takes a tenth of the time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000)


@pytest.fixture(scope="session", autouse=True)
def _signals_as_from_a_terminal():
    """Heed the signals that a run heeds, also where pytest was started by nohup or in the background."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _files_of_conf_are_parsed_once():
    """Give Hydra a copy of what it has parsed before, as long as the file is the same: a fifth of composing."""
    from hydra._internal.core_plugins.file_config_source import FileConfigSource

    parse, parsed = FileConfigSource.load_config, {}

    def load_config(self, config_path):
        state = os.stat(os.path.join(self.path, self._normalize_file_name(config_path)))
        key = self.path, config_path, self.provider, state.st_mtime_ns, state.st_size, state.st_ino
        if key not in parsed:
            parsed[key] = parse(self, config_path)
        return copy.deepcopy(parsed[key])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FileConfigSource, "load_config", load_config)
        yield


@pytest.fixture(autouse=True)
def _seed():
    import torch

    torch.default_generator.manual_seed(0)  # `torch.manual_seed` writes a traceback for each kind of accelerator


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    """A finished run with W&B and attention events. Read-only."""
    from tests.runs import trained

    overrides = ["logger.mode=offline", "trainer.log_every_n_steps=2"]
    overrides += ["attention.every_n_epochs=1", "attention.num_samples=3"]
    return trained(tmp_path_factory.mktemp("finished") / "run", *overrides)


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    """Two images of noise, one with a name that is a glob pattern. Read-only."""
    folder, random = tmp_path_factory.mktemp("pictures"), np.random.default_rng(1)
    for name in ("one.png", "two [2].png"):
        Image.fromarray(random.integers(255, size=(37, 41, 3), dtype=np.uint8)).save(folder / name)
    return [folder / name for name in ("one.png", "two [2].png")]
