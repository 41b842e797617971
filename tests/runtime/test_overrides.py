"""What is overridden: texts as they were typed, one grammar for the command line and for finished runs."""

import json
import shutil

import pytest

from perceiver.runtime.config import resolved, type_of
from perceiver.runtime.errors import ConfigError
from perceiver.runtime.overrides import apply_overrides, expand_short_key, interpolations, quote_texts, text_value
from tests.runs import SMALL, composed, image_tree, script, trained

HINTS = {"data.root": str, "optimizer.lr": float, "logger.name": str | None, "logger.tags": list[str]}


@pytest.mark.parametrize(
    "text",
    [
        *("2024_11_27", "2024-11-27", "1e3", "007", "-1_0", "null", "on", "True", "nan", "[a]", "{a: 1}", "it's"),
        *("photos #2", "a=b", "größe", "a b", "x [2]", "~/x", "C:\\x", "a\\", 'say "a"', "日本", "(1)", "a;b&c", "$x"),
    ],
)
def test_a_text_arrives_as_it_was_typed(text):
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
def test_what_is_no_text_stays_what_it_was(typed, becomes):
    assert quote_texts(typed, HINTS.get) == becomes
    assert quote_texts(becomes, HINTS.get) == becomes


def test_folders_and_files_may_have_any_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(next(image_tree(tmp_path / "2024_11_27").rglob("*.png")), "1e5")
    shutil.copy("1e5", "a #1.png")
    image_tree(tmp_path / "2024")
    options = ["data=image_folder", "trainer.max_epochs=1", "loader.batch_size=5"]
    for root in ("2024_11_27", "2024"):
        trained("2024_11_28", *options, f"data.root={root}")
    assert script("experiments/evaluate.py", "run=2024_11_28", 'overrides=["data.root=2024_11_27"]').ok
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
def test_short_keys_stand_for_those_of_source_and_readers(short, full):
    assert expand_short_key(short) == expand_short_key(full) == full


@pytest.fixture(scope="module")
def digits():
    """A config and what in it is made of what."""
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
            ("trainer.gradient_clip_val=2", "trainer.gradient_clip_val", 2.0),
            ("data.augment=null", "data.readers.image.augment", None),
            ("optimizer.betas=[0.5, 0.75]", "optimizer.betas", [0.5, 0.75]),
            ("data.augment={crop_padding: 7}", "data.readers.image.augment.crop_padding", 7),
            ("+trainer.val_check_interval=3", "trainer.val_check_interval", 3),
            ("trainer.strategy=ddp", "trainer.strategy", "ddp"),
            ("logger.name=1_0", "logger.name", "1_0"),
            ('logger.name="null"', "logger.name", "null"),
            ("seed=7", "loader.seed", 7),  # made of it
        ],
    )
    def test_values_are_of_the_type_that_is_wanted(self, digits, typed, key, value):
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
    def test_what_makes_no_sense_for_a_finished_run_is_refused(self, digits, typed, said):
        with pytest.raises(ConfigError) as raised:
            apply_overrides(digits[0], [typed], digits[1])
        assert [part for part in said if part not in str(raised.value)] == []


class TestWhatFollows:
    """A value that is made of another follows it, in the data; the model stays the one that was trained."""

    @pytest.mark.parametrize(
        ("typed", "key"),
        [
            ("data.clips.sample_rate=8000", "model.encoders.audio.log_mel.sample_rate=16000"),
            ("data.clips.seconds=8", "model.encoders.audio.positions.max_resolution=["),
        ],
    )
    def test_what_would_change_the_model_is_refused_with_both_keys(self, sounds, typed, key):
        with pytest.raises(ConfigError) as raised:
            apply_overrides(sounds[0], ["loader.batch_size=7", typed], sounds[1])
        assert expand_short_key(typed) in str(raised.value)
        assert key in str(raised.value)
        assert "batch_size" not in str(raised.value)

    def test_unless_the_models_value_is_given_too(self, sounds):
        typed = ["data.clips.sample_rate=8000", "model.encoders.audio.log_mel.sample_rate=16000"]
        with pytest.raises(ConfigError, match="max_resolution") as raised:
            apply_overrides(sounds[0], typed, sounds[1])
        more = (
            str(raised.value).partition("trained with ")[2].partition(",  which")[0].split(", which")[0].split(" and ")
        )
        config = apply_overrides(sounds[0], [*typed, *more], sounds[1])
        assert config["model"] == sounds[0]["model"]
        assert config["data"]["readers"]["audio"]["sample_rate"] == 8000

    def test_what_the_user_changes_in_the_model_takes_along_what_is_made_of_it(self, digits):
        config = apply_overrides(digits[0], ["model.memory.dim=26"], digits[1])
        assert config["model"]["decoder"]["dim"] == config["model"]["memory"]["cross_attention"]["qk_dim"] == 26

    def test_only_what_depends_on_the_config_alone_is_made_anew(self, tmp_path):
        image_tree(tmp_path)
        with composed(*SMALL, "data=image_folder", f"data.root={tmp_path}") as cfg:
            config, made_of = resolved(cfg), interpolations(cfg)
        assert "logger.group" not in made_of
        changed = apply_overrides(config, ["data.root=elsewhere"], made_of)["data"]["source"]
        assert changed == {**config["data"]["source"], "root": "elsewhere"}

    def test_a_foreign_file_cannot_make_more_of_it(self, digits):
        evil = {"model.decoder.dim": "${oc.env:HOME}", "data._target_": "${seed}", "model.x": "${oc.create:{a: 1}}"}
        assert apply_overrides(digits[0], ["seed=7"], evil) == {**digits[0], "seed": 7}


@pytest.mark.parametrize("typed", ["batch_size=7", "+loader.drop_last=true", "overrides=loader.batch_size=7"])
def test_a_setting_of_the_run_in_the_wrong_place_is_told_the_right_one(run, typed):
    ended = script("experiments/evaluate.py", f"run={run}", typed)
    assert (ended.code, ended.err.count("\n")) == (1, 1)
    assert "overrides='[\"" in ended.err
    assert "loader." in ended.err
    assert script("experiments/evaluate.py", f"run={run}", "overrides=[loader.batch_size=7]").ok


@pytest.mark.parametrize("override", ["model.memory.dim=26", "data.channels=3", "data=cifar10", "data.root=x"])
def test_an_evaluation_that_cannot_be_names_the_override_in_one_sentence(run, override):
    ended = script("experiments/evaluate.py", f"run={run}", f'overrides=["{override}"]')
    assert (ended.code, ended.err.count("\n")) == (1, 1)
    assert override.partition("=")[0].rpartition(".")[2] in ended.err
