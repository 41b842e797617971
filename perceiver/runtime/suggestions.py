"""Suggestions for keys that a config does not have: misspelled, moved, or named as in other code bases."""

import difflib
import inspect
import re
from collections.abc import Sequence

from omegaconf import DictConfig, OmegaConf

from perceiver.runtime.nodes import import_target, walk
from perceiver.runtime.synonyms import ALIASES, MOVED_KEYS, SHORT_KEYS, SYNONYMS

ALTERNATIVES = {
    "attention": "attention.every_n_epochs=0 switches it off",
    "logger": "logger=none switches it off",
    "schedule": "schedule=constant leaves the learning rate as it is",
    "callbacks": "callbacks=[] leaves out all",
}
"""What to write in order to do without a part that every run has."""


def nearest(name: str, names: Sequence[str]) -> str:
    """The end of a message about a wrong name: the most similar right one, or all of them."""
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; there are: {', '.join(sorted(names))}"


def must_be_chosen(group: str) -> str:
    """The message about a part that is missing or not one of its choices."""
    alternative = f"; {ALTERNATIVES[group]}" if group in ALTERNATIVES else ""
    return f"must be one of the choices in conf/{group}: {group}=…{alternative}"


def unknown_key(parent: DictConfig, key: str, typed: str | None = None) -> str:
    """The message about a key that a config does not have.

    Args:
        parent: the node without the key.
        key: the whole key.
        typed: the key of the override, of which `key` is the first unknown part.
    """
    root, name = parent._get_root(), key.rpartition(".")[2]
    assert isinstance(root, DictConfig)
    whole = key if typed is None or key.startswith(f"{typed}.") else typed
    if whole == key and "_target_" in parent and name in inspect.signature(import_target(parent)[0]).parameters:
        return f"{whole}: not in conf, but {parent['_target_']} takes it: +{whole}=…"
    above = key.removesuffix(name)
    names = _names(parent)
    short = [alias.removeprefix(above) for alias in SHORT_KEYS if above and alias.startswith(above)]
    siblings = [other for other in (*names, *short) if other != name]
    similar = [above + other for other in difflib.get_close_matches(name, siblings, n=1)]
    hint = _suggestion(root, whole, similar)
    if hint is None and parent is root:
        hint = "train.py --cfg job shows all keys"
    elif hint is None:
        empty = "takes no keys" if "_target_" in parent else "is not set"
        hint = f"there are: {', '.join(names)}" if names else f"{above.removesuffix('.')} {empty}"
    return f"{whole}: no such key; {hint}"


def _suggestion(root: DictConfig, key: str, similar: Sequence[str]) -> str | None:
    """The keys or overrides that an unknown key probably stands for; `similar` are keys of the same node."""
    if key in MOVED_KEYS:
        return f"did you mean {MOVED_KEYS[key]}?"
    name = key.rpartition(".")[2]
    alias = ALIASES.get(name.lower().replace("-", "_"))
    if "overrides" in root:  # the config of a command for finished runs
        alias = alias or next((known for known in SYNONYMS if known.rpartition(".")[2] == key), None)
        setting = alias if alias and _is_key(alias) else key
        close = similar[:1] or [one for one in _names(root) if key in one.split("_")]
        hint = f"did you mean {' or '.join(close)}?" if close else f"there are: {', '.join(_names(root))}"
        return f"{hint}; a setting of the run goes into overrides='[\"{setting}=…\"]'"
    parts = key.split(".")
    if parts[0] == "callbacks" and len(parts) > 1 and parts[1] not in (root.get("callbacks") or {}):
        return f"choose it first: callbacks=[default,{parts[1]}]"
    if parts[:2] == ["model", "encoders"] and parts[2] not in (OmegaConf.select(root, "model.encoders") or {}):
        return f"choose it first: +encoder@{'.'.join(parts[:3])}=…"
    nodes = walk(OmegaConf.to_container(root, resolve=False))
    own = ((found, value) for found, value in nodes if found.partition(".")[0] != "hydra")
    keys = [found for found, value in own if not (isinstance(value, str) and "${" in value)]
    found: Sequence[str] = [other for other in keys if other.rpartition(".")[2] == name and other != key][:3]
    if not found and alias and (SHORT_KEYS.get(alias, alias) in keys or not _is_key(alias) or "hydra" in alias):
        found = [alias]
    if not found and alias == "data.root":
        found = ["data=image_folder data.root=…"]
    found = found or similar
    return f"did you mean {' or '.join(found)}?" if found else None


def _is_key(text: str) -> bool:
    """Whether an entry of `SYNONYMS` is a key below the root, and not an override."""
    return re.fullmatch(r"\w+\.[\w.]+", text) is not None


def _names(node: DictConfig) -> list[str]:
    return [str(name) for name in node if name != "hydra" and not str(name).startswith("_")]
