"""Overrides: texts as typed, and one grammar for the command line and for finished runs."""

import json
import shutil

import pytest

from perceiver.runtime.config import resolved, type_of
from perceiver.runtime.errors import ConfigError
from perceiver.runtime.overrides import apply_overrides, expand_short_key, interpolations, quote_texts, text_value
from tests.runs import SMALL, assert_refused, composed, image_tree, script, trained

HINTS = {"data.root": str, "optimizer.lr": float, "logger.name": str | None, "logger.tags": list[str]}


@pytest.mark.parametrize(
    "text",
    [
        *("2024_11_27", "2024-11-27", "1e3", "007", "-1_0", "null", "on", "True", "nan", "[a]", "{a: 1}", "it's"),
        *("photos #2", "a=b", "größe", "a b", "x [2]", "~/x", "C:\\x", "a\\", 'say "a"', "日本", "(1)", "a;b&c", "$x"),
    ],
)
def test_a_text_is_read_as_typed(text):
    assert text_value(f"run={text}") == text
    assert apply_overrides({"seed": 1, "data": NODE}, [f"data.project={text}"], {})["data"]["project"] == text


NODE = {"_target_": "perceiver.runtime.loggers.wandb.WandB", "project": "x", "name": None, "tags": ["x"]}


@pytest.mark.parametrize(
    ("typed", "becomes"),
    [
        ("optimizer.lr=1e-3", "optimizer.lr=1e-3"),
        ("logger.name=null", "logger.name=null"),
        ("logger.name=1_0", 'logger.name="1_0"'),
        ("logger.tags=[a,1e5]", 'logger.tags=[a,"1e5"]'),
        ("data.root=2024_1,2024_2", 'data.root="2024_1","2024_2"'),
        ('data.root="2024_1"', 'data.root="2024_1"'),
        ("inputs=[007.png,1e5]", 'inputs=[007.png,"1e5"]'),
        ("inputs=[a #1.png,é.png]", 'inputs=["a #1.png","é.png"]'),
        ("unknown=1_0", "unknown=1_0"),
        ("unknown=a=b", "unknown=a=b"),
        ("~data.root", "~data.root"),
    ],
)
def test_quotes_are_added_to_texts_only(typed, becomes):
    assert quote_texts(typed, HINTS.get) == becomes
    assert quote_texts(becomes, HINTS.get) == becomes


def test_folders_and_files_may_have_any_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(next(image_tree(tmp_path / "2024_11_27").rglob("*.png")), "1e5")
    shutil.copy("1e5", "a #1.png")
    image_tree(tmp_path / "2024")
    options = ["data=image_folder", "trainer.max_epochs=1", "loader.batch_size=5"]
    trained("2024_11_28", *options, "data.root=2024")  # a number for Hydra
    assert script("experiments/evaluate.py", "run=2024_11_28", "overrides=[data.root=2024_11_27]").ok
    ended = script("experiments/predict.py", "run=2024_11_28", "inputs=[1e5,a #1.png]", "output=1e3")
    assert ended.ok, ended.err
    assert [one["input"] for one in json.loads((tmp_path / "1e3/predictions.json").read_text())] == ["1e5", "a #1.png"]


@pytest.mark.parametrize(
    ("short", "full"),
    [
        ("data.root=x/data.root", "data.source.root=x/data.root"),
        ("~data.augment", "~data.readers.image.augment"),
        ("+data.clips.augment.gain=3", "+data.readers.audio.augment.gain=3"),
        ("data.fold=1,2", "data.source.fold=1,2"),
        ("data.roots=x", "data.roots=x"),
        ("data=digits", "data=digits"),
        ("data.source.root=x", "data.source.root=x"),
        ("hydra.data.root=x", "hydra.data.root=x"),
    ],
)
def test_short_keys_are_expanded(short, full):
    assert expand_short_key(short) == expand_short_key(full) == full


@pytest.fixture(scope="module")
def digits():
    """A config and its interpolations."""
    with composed(*SMALL, "trainer.gradient_clip_val=1.0") as cfg:
        return resolved(cfg), interpolations(cfg)


@pytest.fixture(scope="module")
def sounds():
    with composed("experiment=audio_tagging") as cfg:
        return resolved(cfg), interpolations(cfg)


class TestGrammar:
    @pytest.mark.parametrize(
        ("typed", "key", "value"),
        [
            ("trainer.gradient_clip_val=2", "trainer.gradient_clip_val", 2),
            ("data.augment=null", "data.readers.image.augment", None),
            ("optimizer.betas=[0.5, 0.75]", "optimizer.betas", [0.5, 0.75]),
            ("data.augment={crop_padding: 7}", "data.readers.image.augment.crop_padding", 7),
            ("+trainer.val_check_interval=3", "trainer.val_check_interval", 3),
            ("trainer.strategy=ddp", "trainer.strategy", "ddp"),
            ("logger.name=1_0", "logger.name", "1_0"),
            ('logger.name="null"', "logger.name", "null"),
            ("seed=7", "loader.seed", 7),  # interpolated from it
        ],
    )
    def test_values_have_the_type_of_the_key(self, digits, typed, key, value):
        config = apply_overrides(digits[0], [typed], digits[1])
        found = config
        for name in key.split("."):
            found = found[name]
        assert found == value
        assert type(found) is type(value)
        assert type_of(config, "data.source.num_classes") is int

    def test_a_key_may_be_left_out(self, digits):
        config = apply_overrides(digits[0], ["~data.augment"], digits[1])
        image = digits[0]["data"]["readers"]["image"]
        assert config["data"]["readers"]["image"] == {name: image[name] for name in image if name != "augment"}

    @pytest.mark.parametrize(
        ("typed", "said"),
        [
            ("data=cifar10", ["data=cifar10", "chosen", "data.readers.image.image_size=…"]),
            ("encoder@model.encoders.image=image_pixels", ["encoder@model.encoders.image=image_pixels", "model."]),
            ("model.decoder=queries", ["model.decoder=queries", "chosen"]),
            ("seed=1,2", ["seed=1,2", "one value"]),
            ("~data.augmend", ["~data.augmend", "no such key"]),
            ("~data", ["~data", "chosen"]),
            ("+nosuch=1", ["nosuch", "no such key"]),
            ("batch_size=1", ["did you mean loader.batch_size?"]),
            ("seed=[", ["seed=[", "quotes"]),
        ],
    )
    def test_an_invalid_override_of_a_finished_run_is_refused(self, digits, typed, said):
        with pytest.raises(ConfigError) as raised:
            apply_overrides(digits[0], [typed], digits[1])
        assert [part for part in said if part not in str(raised.value)] == []


class TestInterpolations:
    """Values that are interpolated from overridden ones change with them, but not those of the trained model."""

    @pytest.mark.parametrize(
        ("typed", "key"),
        [
            ("data.clips.sample_rate=8000", "model.encoders.audio.log_mel.sample_rate=16000"),
            ("data.clips.seconds=8", "model.encoders.audio.positions.max_resolution=["),
        ],
    )
    def test_a_change_of_the_model_is_refused_with_both_keys(self, sounds, typed, key):
        with pytest.raises(ConfigError) as raised:
            apply_overrides(sounds[0], ["loader.batch_size=7", typed], sounds[1])
        assert expand_short_key(typed) in str(raised.value)
        assert key in str(raised.value)
        assert "batch_size" not in str(raised.value)

    def test_the_value_of_the_model_may_be_given_too(self, sounds):
        typed = ["data.clips.sample_rate=8000", "model.encoders.audio.log_mel.sample_rate=16000"]
        with pytest.raises(ConfigError, match="max_resolution") as raised:
            apply_overrides(sounds[0], typed, sounds[1])
        more = (
            str(raised.value).partition("trained with ")[2].partition(",  which")[0].split(", which")[0].split(" and ")
        )
        config = apply_overrides(sounds[0], [*typed, *more], sounds[1])
        assert config["model"] == sounds[0]["model"]
        assert config["data"]["readers"]["audio"]["sample_rate"] == 8000

    def test_an_override_of_the_model_changes_its_other_values(self, digits):
        config = apply_overrides(digits[0], ["model.memory.dim=26"], digits[1])
        assert config["model"]["decoder"]["dim"] == config["model"]["memory"]["cross_attention"]["qk_dim"] == 26

    def test_only_interpolations_of_the_config_alone_are_evaluated_again(self, tmp_path):
        image_tree(tmp_path)
        with composed(*SMALL, "data=image_folder", f"data.root={tmp_path}") as cfg:
            config, interpolated = resolved(cfg), interpolations(cfg)
        assert "logger.group" not in interpolated
        changed = apply_overrides(config, ["data.root=elsewhere"], interpolated)["data"]["source"]
        assert changed == {**config["data"]["source"], "root": "elsewhere"}

    def test_interpolations_of_a_foreign_file_are_restricted(self, digits):
        evil = {"model.decoder.dim": "${oc.env:HOME}", "data._target_": "${seed}", "model.x": "${oc.create:{a: 1}}"}
        assert apply_overrides(digits[0], ["seed=7"], evil) == {**digits[0], "seed": 7}


@pytest.mark.parametrize(
    "typed",
    [
        *("batch_size=7", "+loader.drop_last=true", "overrides=loader.batch_size=7"),
        "overrides=[+loader.sizes=[7]]",
    ],
)
def test_a_setting_of_the_run_belongs_into_overrides(run, typed):
    ended = script("experiments/evaluate.py", f"run={run}", typed)
    assert_refused(ended, "overrides='[\"", "loader.")


@pytest.mark.parametrize("override", ["model.memory.dim=26", "data.channels=3", "data=cifar10", "data.root=x"])
def test_an_impossible_override_of_an_evaluation_is_named(run, override):
    ended = script("experiments/evaluate.py", f"run={run}", f'overrides=["{override}"]')
    assert_refused(ended, override.partition("=")[0].rpartition(".")[2])
