"""Sources of videos: files in tables, the lists of UCF101, and segments of web videos with sound and frames."""

from pathlib import Path

import pytest

from perceiver.data.files import SOUNDS, VIDEOS, Segment, UnreadableError
from perceiver.data.sources.lists import UCF101, ListedFiles
from perceiver.data.sources.web_videos import AudioSet, VGGSound
from perceiver.data.splits import HeldOut
from perceiver.types import STAGES

BOTH = {"video": VIDEOS, "audio": SOUNDS}


def make(root: Path, *names: str, **texts: str) -> Path:
    """Make empty files, and texts; in their names, a double underscore stands for the folder."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    for name, text in texts.items():
        path = root / name.replace("__", "/").replace("_csv", ".csv").replace("_txt", ".txt")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def found(source, roles=BOTH) -> dict[str, list[tuple[dict[str, str], dict]]]:
    """Return the parts, below the root, and targets of the samples of each stage."""
    items = {stage: source.items(stage, roles) for stage in STAGES}
    return {
        stage: [
            (
                {role: str(part).removeprefix(f"{source.root}/") for role, part in table[i].parts.items()},
                table[i].targets,
            )
            for i in range(len(table))
        ]
        for stage, table in items.items()
        if table is not None
    }


def listed(root: Path, table="t.csv", num_classes=2, group_column=None, val_fraction=0.0, test_fraction=0.0):
    held_out = HeldOut(val_fraction=val_fraction, test_fraction=test_fraction)
    return ListedFiles(
        root=str(root), table=table, num_classes=num_classes, group_column=group_column, held_out=held_out
    )


class TestListedFiles:
    def test_a_video_is_read_for_frames_and_sound_and_a_column_replaces_one_of_them(self, tmp_path):
        table = "path,label,audio\na/x.mp4,zebra,\nb.mkv,ape,c.wav\n"
        files = found(listed(make(tmp_path, t_csv=table)))
        assert files == {
            "train": [({"video": "a/x.mp4"}, {"label": 1}), ({"video": "b.mkv", "audio": "c.wav"}, {"label": 0})]
        }
        table = "path,label\na/x.mp4,zebra\nb.wav,ape\n"
        files = found(listed(make(tmp_path, t_csv=table)))
        assert [set(parts) for parts, _ in files["train"]] == [{"video", "audio"}, {"audio"}]

    def test_start_and_stop_make_a_part_of_a_recording(self, tmp_path):
        source = listed(make(tmp_path, t_csv="path,label,start,stop\nx.mp4,a,1.5,4\nx.mp4,b,4,7\n"))
        items = source.items("train", BOTH)
        assert items[0].parts["video"] == items[0].parts["audio"] == Segment(tmp_path / "x.mp4", 1.5, 4.0)
        assert items[0].id != items[1].id

    def test_stages_are_those_of_the_table_or_keep_groups_together(self, tmp_path):
        table = "path,label,split\nx.mp4,a,train\ny.mp4,b,test\nz.mp4,a,train\n"
        assert {stage: len(items) for stage, items in found(listed(make(tmp_path, t_csv=table))).items()} == {
            "train": 2,
            "test": 1,
        }
        rows = "".join(f"{i}.mp4,{'ab'[i % 2]},g{i // 5}\n" for i in range(65))
        source = listed(make(tmp_path, t_csv="path,label,group\n" + rows), group_column="group", test_fraction=0.4)
        groups = {
            stage: {int(parts["video"].partition(".")[0]) // 5 for parts, _ in items}
            for stage, items in found(source).items()
        }
        assert groups.keys() == {"train", "test"}
        assert not groups["train"] & groups["test"]
        assert groups["train"] | groups["test"] == set(range(13))

    @pytest.mark.parametrize(
        ("table", "error", "named"),
        [
            ("path\nx.mp4\n", UnreadableError, r"t\.csv: .*'label'"),
            ("path,label\n", UnreadableError, r"t\.csv"),
            ("path,label\nx.mp4,a\nx.txt,b\n", UnreadableError, "line 3: 'x.txt'"),
            ("path,label\nx.mp4,a\n../x.mp4,b\n", UnreadableError, r"line 3: '\.\./x\.mp4'"),
            ("path,label\nx.mp4,a\ny.mp4,\n", UnreadableError, "line 3: label"),
            ("path,label,split\nx.mp4,a,train\ny.mp4,b,dev\n", UnreadableError, "line 3: split='dev'"),
            ("path,label,start,stop\nx.mp4,a,3,2\ny.mp4,b,0,1\n", UnreadableError, "line 2: stop=2"),
            ("path,label\nx.mp4,a\ny.mp4,b\nz.mp4,c\n", ValueError, "num_classes=2.* 3: a, b, c"),
        ],
    )
    def test_errors_name_the_line_and_the_value(self, tmp_path, table, error, named):
        source = listed(make(tmp_path, t_csv=table))
        with pytest.raises(error, match=named):
            found(source)


TRAIN = "".join(
    f"{name}/v_{name}_g{g:02d}_c{c:02d}.avi {n}\n" for n, name in enumerate("AB", 1) for g in range(9) for c in (1, 2)
)
LISTS = {
    "ucfTrainTestlist__classInd_txt": "1 A\n2 B\n",
    "ucfTrainTestlist__trainlist02_txt": TRAIN,
    "ucfTrainTestlist__testlist02_txt": "A/v_A_g20_c01.avi\nB/v_B_g21_c03.avi\n",
}


class TestUCF101:
    @pytest.mark.parametrize("folder", ["", "UCF-101/"])
    def test_lists_give_the_samples_and_validation_holds_out_groups(self, tmp_path, folder):
        root = make(tmp_path, f"{folder}A/v_A_g20_c01.avi", **LISTS)
        files = found(UCF101(root=str(root), num_classes=2, split=2, val_fraction=0.3))
        assert files["test"] == [
            (dict.fromkeys(BOTH, f"{folder}A/v_A_g20_c01.avi"), {"label": 0}),
            (dict.fromkeys(BOTH, f"{folder}B/v_B_g21_c03.avi"), {"label": 1}),
        ]
        groups = {stage: {parts["video"][-14:-8] for parts, _ in files[stage]} for stage in ("train", "val")}
        assert not groups["train"] & groups["val"]
        assert len(files["train"]) + len(files["val"]) == 36

    @pytest.mark.parametrize(
        ("name", "text", "named"),
        [
            ("classInd", "1 A\nB\n", r"classInd\.txt: line 2: 'B'"),
            ("classInd", "1 A\n2 C\n", r"trainlist02\.txt: 'B'"),
            ("trainlist02", "A/v_A_g01_c01.avi 1\nnothing\n", r"trainlist02\.txt: line 2: 'nothing'"),
        ],
    )
    def test_errors_name_the_list_and_the_line(self, tmp_path, name, text, named):
        root = make(tmp_path, **LISTS | {f"ucfTrainTestlist__{name}_txt": text})
        with pytest.raises(UnreadableError, match=named):
            UCF101(root=str(root), num_classes=2, split=2, val_fraction=0.0).items("train", BOTH)
        with pytest.raises(ValueError, match="split=4"):
            UCF101(root=str(root), num_classes=2, split=4, val_fraction=0.0)


class TestWebVideos:
    FILES = (
        "v/AAAAAAAAAAA_000030.mp4",
        "v/AAAAAAAAAAA_000090.mp4",
        "v/BBBBBBBBBBB_000010.mkv",
        "a/BBBBBBBBBBB_000010.wav",
    )

    def test_vggsound_finds_segments_by_their_start(self, tmp_path, caplog):
        table = "AAAAAAAAAAA,30,dog,train\nAAAAAAAAAAA,90,cat,train\nBBBBBBBBBBB,10,dog,test\nCCCCCCCCCCC,0,cat,train\n"
        root = make(tmp_path, *self.FILES, vggsound_csv=table)
        files = found(VGGSound(root=str(root), num_classes=2, val_fraction=0.0))
        assert files == {
            "train": [
                (dict.fromkeys(BOTH, self.FILES[0]), {"label": 1}),
                (dict.fromkeys(BOTH, self.FILES[1]), {"label": 0}),
            ],
            "test": [({"video": self.FILES[2], "audio": self.FILES[3]}, {"label": 1})],
        }
        assert "1 of 3" in caplog.text
        assert "CCCCCCCCCCC" in caplog.text

    @pytest.mark.parametrize(
        ("row", "named"),
        [("AAAAAAAAAAA,30,dog,dev", "line 2: split='dev'"), ("AAAAAAAAAAA,x,cat,train", "line 2: start='x'")],
    )
    def test_errors_name_the_line(self, tmp_path, row, named):
        root = make(tmp_path, *self.FILES, vggsound_csv=f"AAAAAAAAAAA,30,dog,train\n{row}\n")
        with pytest.raises((UnreadableError, ValueError), match=named):
            found(VGGSound(root=str(root), num_classes=2 - row.endswith("dev"), val_fraction=0.0))

    def test_audioset_reads_the_frames_of_its_videos(self, tmp_path):
        segments = '# YTID\nAAAAAAAAAAA, 30.000, 40.000, "/m/1"\nBBBBBBBBBBB, 10.000, 20.000, "/m/1,/m/2"\n'
        labels = "index,mid,display_name\n0,/m/1,Dog\n1,/m/2,Cat\n"
        root = make(tmp_path, *self.FILES, train_csv=segments, labels_csv=labels)
        settings = {"train_segments": "train.csv", "eval_segments": None, "class_labels": "labels.csv"}
        make_source = lambda: AudioSet(root=str(root), num_classes=2, val_fraction=0.0, **settings)  # noqa: E731
        parts = [parts for parts, _ in found(make_source())["train"]]
        assert parts == [dict.fromkeys(BOTH, self.FILES[0]), {"video": self.FILES[2], "audio": self.FILES[3]}]
        parts = [parts for parts, _ in found(make_source(), {"video": VIDEOS})["train"]]
        assert parts == [{"video": self.FILES[0]}, {"video": self.FILES[2]}]
