"""The atlas of a run: by the callback at the end of training, and by the command for a checkpoint."""

import numpy as np
import pytest

from tests.runs import assert_refused, script, trained

pytestmark = pytest.mark.slow


def arrays(path):
    with np.load(path) as file:
        return dict(file)


def test_callback_and_command_give_the_same_atlas(tmp_path):
    run = trained(tmp_path / "run", "callbacks=[atlas]", "callbacks.atlas.top=3", "callbacks.atlas.num_samples=59")
    attention = run / "attention"
    at_end = arrays(attention / "atlas.npz")
    assert at_end["num_samples"] == 59
    assert at_end["image/weight"].shape == (5, 3)
    assert (attention / "atlas.html").stat().st_size < 4_000_000
    options = ["checkpoint=last", "atlas=true", "atlas_top=3", "atlas_samples=59"]
    ended = script("experiments/inspect_attention.py", f"run={run}", *options, f"output={tmp_path}/again.html")
    assert ended.ok, ended.err
    again = arrays(tmp_path / "again.npz")
    for name, values in at_end.items():
        np.testing.assert_array_equal(again[name], values)
    whole = script("experiments/inspect_attention.py", f"run={run}", "atlas=true", "atlas_split=test")
    assert whole.ok, whole.err
    assert arrays(attention / "atlas.npz")["image/weight"].shape == (5, 12)
    for wrong in ("atlas_top=0", "atlas_split=all", "atlas_layers=[self0]", "atlas_samples=x", "inputs=[a.png]"):
        refused = script("experiments/inspect_attention.py", f"run={run}", "atlas=true", wrong)
        assert_refused(refused, wrong.partition("=")[0].removeprefix("atlas_"))
