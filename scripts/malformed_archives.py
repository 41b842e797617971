"""What can be wrong with tars, folders and checkpoints, for `scripts/malformed_inputs.py`."""

import gzip
import io
import json
import os
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import torch

from scripts.malformed_faults import ANY_FILE, MILLION_WORDS, Payload, encoded, put, replaced
from scripts.malformed_trees import Table, Tree, write_tar


def members_of(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as archive:
        return {info.name: archive.extractfile(info).read() for info in archive}  # type: ignore[union-attr]


def in_tar(change: Callable[[dict[str, bytes], str], None]) -> Callable[[Table, Random], None]:
    """Change the members of a sample, whose key is given."""

    def spoil(table: Table, random: Random) -> None:
        members = members_of(table.path)
        change(members, random.choice(sorted(members)).partition(".")[0])
        write_tar(table.path, members)

    return spoil


def member(key: str, members: dict[str, bytes], *endings: str) -> str | None:
    """The member of a sample that has one of some endings."""
    return next((name for name in members if name.startswith(f"{key}.") and name.split(".")[1] in endings), None)


def without(*endings: str) -> Callable[[dict[str, bytes], str], None]:
    return lambda members, key: members.pop(str(member(key, members, *endings))) and None


def as_read(content: bytes) -> Callable[[dict[str, bytes], str], None]:
    return lambda members, key: put(members, str(member(key, members, "png", "wav")), content)


def told(classes: bytes, tags: object, captions: object, lines: bytes) -> Callable[[dict[str, bytes], str], None]:
    """Replace what is said of a sample, by what kind of thing that is."""

    def change(members: dict[str, bytes], key: str) -> None:
        name = str(member(key, members, "cls", "json", "txt"))
        json_told = {"tags": tags} if b"tags" in members[name] else {"captions": captions}
        members[name] = {"cls": classes, "txt": lines, "json": json.dumps(json_told).encode()}[name.split(".")[1]]

    return change


def appended(info: tarfile.TarInfo, content: bytes = b"") -> Callable[[Table, Random], None]:
    def spoil(table: Table, random: Random) -> None:
        info.size = len(content) if info.isreg() else 0
        with tarfile.open(table.path, "a") as archive:
            archive.addfile(info, io.BytesIO(content))

    return spoil


def info_of(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


TAR_SAMPLE: dict[str, Callable[[Table, Random], None]] = {
    "a text in it": in_tar(as_read(b"no image and no sound")),
    "an empty file in it": in_tar(as_read(b"")),
    "half a file in it": in_tar(
        lambda members, key: as_read(
            members[name := str(member(key, members, "png", "wav"))][: len(members[name]) // 2]
        )(members, key)
    ),
    "no file to read": in_tar(lambda members, key: members.pop(str(member(key, members, "png", "wav"))) and None),
    "nothing is said": in_tar(
        lambda members, key: members.pop(str(member(key, members, "cls", "json", "txt"))) and None
    ),
    "a wrong class": in_tar(told(b"3", [3], ["a \0 dog"], b"a \0 dog")),
    "a negative class": in_tar(told(b"-1", [-1], ["a \ud800 dog"], b"a \x1b dog")),
    "no class": in_tar(told(b"cat", ["cat"], [5], b"\xff\xfe")),
    "an empty one": in_tar(told(b"", 7, [], b"")),
    "a class of half": in_tar(told(b"0.5", [0.5], [MILLION_WORDS], MILLION_WORDS.encode())),
}
TAR_WHOLE: dict[str, Callable[[Table, Random], None]] = {
    **{name: (lambda table, random, spoil=spoil: spoil(table.path, random)) for name, spoil in ANY_FILE.items()},
    "an image": lambda table, random: replaced(encoded(1, "png"))(table.path, random),
    "a way out": appended(info_of("../victim.png"), b"x"),
    "an absolute path": appended(info_of("/tmp/victim.png"), b"x"),
    "a link out": appended(info_of("999999.png", tarfile.SYMTYPE, "/etc/hostname")),
    "a hard link": appended(info_of("999999.png", tarfile.LNKTYPE, "000000.png")),
    "a device": appended(info_of("999999.png", tarfile.CHRTYPE)),
    "a name twice": lambda table, random: appended(info_of(next(iter(members_of(table.path)))), b"x")(table, random),
    "compressed": lambda table, random: (table.path.write_bytes(gzip.compress(table.path.read_bytes())), None)[1],
    "joined to another": lambda table, random: (table.path.write_bytes(table.path.read_bytes() * 2), None)[1],
    "a header damaged": lambda table, random: (
        table.path.write_bytes(bytes([*(c := table.path.read_bytes())[:124], c[124] ^ 1, *c[125:]])),
        None,
    )[1],
}


def way_back(tree: Tree, random: Random) -> Path:
    link = random.choice(tree.folders) / "back"
    link.symlink_to(tree.root)
    return link


def second_spelling(tree: Tree, random: Random) -> Path:
    (tree.root / "valid").mkdir()
    return tree.root


def strange_class(tree: Tree, random: Random) -> Path:
    for stage in ("train", "val", "test"):
        os.rename(tree.root / stage / "cat", os.fsencode(tree.root / stage) + b"/\xff")
    return tree.root


def unknown_class(tree: Tree, random: Random) -> Path:
    folder = tree.root / random.choice(("val", "test"))
    (folder / "cat").rename(folder / "fly")
    return folder


def emptied_folder(tree: Tree, random: Random) -> Path:
    folder = tree.root / random.choice(("train", "val", "test"))
    for path in (*tree.images, *tree.sounds):
        if path.is_relative_to(folder):
            path.unlink()
    return folder


FOLDER: dict[str, Callable[[Tree, Random], Path]] = {
    "a link back": way_back,
    "two folders for validation": second_spelling,
    "a class that is not UTF-8": strange_class,
    "a class only to be tested": unknown_class,
    "no file": emptied_folder,
}


def saved(change: Callable[[dict[str, Any]], None]) -> Callable[[Path, Random], None]:
    def spoil(path: Path, random: Random) -> None:
        content = torch.load(path, weights_only=True)
        change(content)
        torch.save(content, path)

    return spoil


def flipped_weights(path: Path, random: Random) -> None:
    """A bit of the largest record, which holds weights; not of its header, whose padding means nothing."""
    with zipfile.ZipFile(path) as archive:
        record = max(archive.infolist(), key=lambda info: info.file_size)
        weights = archive.read(record)
    content = bytearray(path.read_bytes())
    content[content.index(weights) + random.randrange(len(weights))] ^= 1 << random.randrange(8)
    path.write_bytes(content)


def into_itself(content: dict[str, Any]) -> None:
    content["description"]["config"]["model"]["more"] = content["description"]["config"]


CHECKPOINT: dict[str, Callable[[Path, Random], None]] = {
    **ANY_FILE,
    "a text": replaced(b"no checkpoint"),
    "a bit flipped": flipped_weights,
    "a program": saved(lambda content: put(content, "more", Payload(Path("MARKER")))),
    "a program alone": lambda path, random: torch.save(Payload(Path("MARKER")), path),
    "a config that names os.system": saved(
        lambda content: put(
            content["description"]["config"], "model", {"_target_": "os.system", "command": "touch MARKER"}
        )
    ),
    "a config that names torch.hub.load": saved(
        lambda content: put(content["description"]["config"]["model"], "_target_", "torch.hub.load")
    ),
    "a config that names a function of ours": saved(
        lambda content: put(
            content["description"]["config"]["data"], "_target_", "perceiver.data.sources.cifar.read_pickle"
        )
    ),
    "nothing told": saved(lambda content: content.pop("description") and None),
    "no step": saved(lambda content: content.pop("global_step") and None),
    "only weights": lambda path, random: torch.save(torch.load(path, weights_only=True)["state_dict"], path),
    "a config of 5": saved(lambda content: put(content["description"], "config", 5)),
    "a config that holds itself": saved(into_itself),
    "class names of 5": saved(lambda content: put(content["description"], "class_names", 5)),
    "a vocabulary of 5": saved(lambda content: put(content["description"], "vocabulary", 5)),
    "weights of 5": saved(lambda content: put(content, "state_dict", 5)),
}
