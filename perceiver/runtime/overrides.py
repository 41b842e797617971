"""One grammar for what is overridden: Hydra's, on the command line and for the config of a finished run.

Where a text is wanted it arrives as it was typed; Hydra alone would read the folder `2024_11_27` as a number.
"""

import copy
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override, Quote, QuotedString
from hydra.errors import HydraException, OverrideParseException
from hydra.grammar.gen.OverrideLexer import InputStream, OverrideLexer  # type: ignore[attr-defined]
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from perceiver.runtime.config import KNOWN, fits, hint_of
from perceiver.runtime.errors import ConfigError, about_unknown_root, explain, leaves
from perceiver.runtime.synonyms import SHORT

TEXTS: dict[str, Any] = {
    **dict.fromkeys(("run", "out"), str),
    **dict.fromkeys(("ckpt_path", "compare", "output", "checkpoint", "compare_checkpoint"), str | None),
    **dict.fromkeys(("inputs", "trusted", "overrides"), str | list[str]),
    **dict.fromkeys(("hydra.run.dir", "hydra.sweep.dir", "hydra.sweep.subdir"), str),
}
"""Keys of the commands that are or hold texts, and their types; those of a run's parts are found by what they build."""
NUMBERS = (OverrideLexer.INT, OverrideLexer.FLOAT, OverrideLexer.BOOL, OverrideLexer.NULL)
BETWEEN = (OverrideLexer.COMMA, OverrideLexer.BRACKET_OPEN, OverrideLexer.BRACKET_CLOSE)
PLAIN = re.compile(r"-?(0|[1-9][0-9]*)")
"""A number that is the same when it is written down again."""
RESOLVERS = ("grid", "mel_grid", "frames")
"""Those of conf that depend on nothing but their arguments; others are not asked again for a finished run."""
LEARNED = ("model", "tokenizer")
"""The keys at the root of what has been learned."""


def quoted(text: str) -> str:
    """A text as a value in Hydra's grammar."""
    return QuotedString(str(text), Quote.double).with_quotes()


def in_full(argument: str) -> str:
    """An override in which a short key (`SHORT`) is written in full: `data.source.root=PATH` for `data.root=PATH`."""
    key = re.match(r"[+~]*([\w.]+)", argument)
    short = next((name for name in SHORT if key and f"{key[1]}.".startswith(f"{name}.")), None)
    return argument if short is None else argument.replace(short, SHORT[short], 1)


def as_typed(argument: str, hint: Callable[[str], Any]) -> str:
    """An override with quotes where it would otherwise not be read as the text that is wanted.

    Args:
        argument: one from the command line.
        hint: finds the type of a key.
    """
    found = re.fullmatch(r"(\+{0,2}[^=\s@~+]+)=(.*)", argument, flags=re.DOTALL)
    if found is None:
        return argument
    left, typed = found.groups()
    key = left.lstrip("+")
    values, whole = _values(argument), f"{left}={quoted(typed)}"
    if values is None:  # unreadable for Hydra
        texts = _texts_in(typed)
        candidates = [f"{left}=[{','.join(map(quoted, texts))}]"] if texts else [whole]
    else:
        with_quotes, is_lossy = _with_quotes(left, typed)
        if not (is_lossy or key in TEXTS or typed[:1] in ("[", "{")):
            return argument
        candidates = [argument, with_quotes, *([whole] if len(values) == 1 else [])]
    type_ = TEXTS[key] if key in TEXTS else hint(key)
    for candidate in candidates:
        if all(fits(value, type_) for value in _values(candidate) or [...]):
            return candidate
    return argument


def _values(argument: str) -> list[Any] | None:
    """What an override sets, one value or those of a sweep; None if it cannot be read."""
    try:
        override = OverridesParser.create().parse_override(argument)
        if isinstance(override._value, ChoiceSweep):
            return [Override._convert_value(value) for value in override._value.list]
        return None if override.is_sweep_override() else [override.value()]
    except HydraException:
        return None


def _with_quotes(left: str, typed: str) -> tuple[str, bool]:
    """An override with quotes around what would be read as no text; and whether that would read otherwise again."""
    lexer = OverrideLexer(InputStream(typed))
    lexer.removeErrorListeners()
    lexer.mode(OverrideLexer.VALUE_MODE)
    tokens = lexer.getAllTokens()
    kinds = [OverrideLexer.COMMA, *(token.type for token in tokens), OverrideLexer.COMMA]
    written, is_lossy = [], False
    for before, token, after in zip(kinds, tokens, kinds[2:], strict=False):
        alone = token.type in NUMBERS and before in BETWEEN and after in BETWEEN
        written.append(quoted(token.text) if alone else token.text)
        is_lossy |= alone and not PLAIN.fullmatch(token.text)
    return f"{left}={''.join(written)}", is_lossy


def _texts_in(typed: str) -> list[str]:
    """The texts of a simple list that Hydra cannot read."""
    is_simple = typed.startswith("[") and typed.endswith("]") and not re.search(r"[\[\]{}\"'\\]", typed[1:-1])
    return [text.strip() for text in typed[1:-1].split(",")] if is_simple else []


def one_value_of(argument: str) -> str | None:
    """An override with the first of the values of its sweep, if it is one; None if it cannot be read."""
    values = _values(argument)
    if values is None or not values:
        return None
    return argument if len(values) == 1 else f"{argument.partition('=')[0]}={_written(values[0])}"


def _written(value: Any) -> str:
    """A value in Hydra's grammar."""
    if isinstance(value, dict):
        return f"{{{','.join(f'{key}:{_written(one)}' for key, one in value.items())}}}"
    if isinstance(value, list):
        return f"[{','.join(map(_written, value))}]"
    return quoted(value) if isinstance(value, str) else "null" if value is None else str(value)


def text_of(argument: str) -> str:
    """The text to which an override of the command line sets a key that is known to be one."""
    (value,) = _values(as_typed(argument, lambda key: None)) or [argument.partition("=")[2]]
    return str(value)


def interpolations(cfg: DictConfig) -> dict[str, str]:
    """Which values of a composed config are made of others, and how, by key.

    Left out are those that depend on more than the config, such as the number of class folders on disk.
    """
    return dict(_interpolations(OmegaConf.to_container(cfg, resolve=False), ()))


def _interpolations(node: Any, path: tuple[str, ...]) -> list[tuple[str, str]]:
    if isinstance(node, dict | list):
        children = node.items() if isinstance(node, dict) else enumerate(node)
        return [found for name, child in children for found in _interpolations(child, (*path, str(name)))]
    return [(".".join(path), node)] if is_pure(node) else []


def is_pure(value: Any) -> bool:
    """Whether a value is an interpolation that depends on nothing but the config that it stands in."""
    if not isinstance(value, str) or "${" not in value:
        return False
    allowed = re.findall(rf"\$\{{(?:[\w.]+\}}|(?:{'|'.join(RESOLVERS)}):)", value)
    return value.count("${") == len(allowed)


def overridden(config: dict[str, Any], overrides: Sequence[str], made_of: Mapping[str, str]) -> dict[str, Any]:
    """The config of a finished run with some values replaced, and with them what is made of these.

    Args:
        config: plain values.
        overrides: as on the command line; `+key=…` adds a key, `~key` leaves one out.
        made_of: which values are interpolations, by key (`interpolations`).

    Raises:
        ConfigError: an override cannot be read, names no key, or would make another model than the trained one.
    """
    if isinstance(overrides, str):
        raise ConfigError(f"overrides={overrides}: must be a list, as in overrides='[\"{overrides}\"]'")
    made_of = {key: value for key, value in made_of.items() if is_pure(value) and "._" not in key}
    parsed = [_parsed(config, str(text)) for text in overrides]
    touched = [key for override in parsed for key in _touched(override)]
    for override in parsed:
        if (root := str(override.key_or_group).partition(".")[0]) not in KNOWN:
            raise ConfigError(f"overrides: {about_unknown_root(OmegaConf.create(config), root)}")
        of_model = str(override.key_or_group).partition(".")[0] in LEARNED
        follow = {} if of_model else _followers(config, _replaced(config, [override]), touched, made_of)
        if changed := [key for key in follow if key.partition(".")[0] in LEARNED]:
            trained = " and ".join(f"{key}={_at(config, key)}".replace(", ", ",") for key in changed)
            problem = f"the model was trained with {trained}, which would change with it"
            add = "these" if len(changed) > 1 else "this"
            raise ConfigError(f"overrides: {override.input_line}: {problem}; to change the data alone, add {add}")
    node = _replaced(config, parsed)
    for key, value in _followers(config, node, touched, made_of).items():
        OmegaConf.update(node, key, value)
    return _plain(node)


def _parsed(config: dict[str, Any], text: str) -> Override:
    """An override of a finished run.

    Raises:
        ConfigError: it is not a valid override, or makes no sense there.
    """
    try:
        (override,) = OverridesParser.create().parse_overrides(
            [as_typed(in_full(text), lambda key: hint_of(config, key))]
        )
    except OverrideParseException as error:
        raise ConfigError(f"overrides: {explain(error)}") from error
    key = str(override.key_or_group)
    if override.is_sweep_override():
        raise ConfigError(f"overrides: {text}: one value only; a list is [a,b], a text with commas needs quotes")
    value = override.value()
    is_choice = isinstance(_at(config, key), dict) and isinstance(value, str) and not fits(value, hint_of(config, key))
    if override.package is not None or is_choice or (key in config and override.is_delete()):
        root = (override.package or key).partition(".")[0]
        problem = "what a finished run is made of was chosen when it began, and only values can be changed"
        example = next((name for name, _ in leaves(config.get(root), root) if "_target_" not in name), "data.root")
        raise ConfigError(f"overrides: {text}: {problem}, such as {example}=…")
    return override


def _replaced(config: dict[str, Any], overrides: Sequence[Override]) -> DictConfig:
    """The config with what the overrides say alone."""
    node = OmegaConf.create(config)
    OmegaConf.set_struct(node, True)
    for override in overrides:
        key, value, before = str(override.key_or_group), override.value(), _at(config, str(override.key_or_group))
        if isinstance(before, float) and type(value) is int:
            value = float(value)
        if override.is_delete():
            above, _, last = key.rpartition(".")
            if _at(config, key) is None or not isinstance(_at(config, above), dict):
                raise ConfigError(f"overrides: {override.input_line}: there is no such key to leave out")
            with open_dict(parent := OmegaConf.select(node, above)):
                del parent[last]
        else:
            OmegaConf.update(node, key, value, force_add=override.is_add() or override.is_force_add())
    return node


def _followers(
    config: dict[str, Any], node: DictConfig, touched: Sequence[str], made_of: Mapping[str, str]
) -> dict[str, Any]:
    """The values that differ because others that they are made of do, by key; none that is overridden itself."""
    kept = [key for key in made_of if not any(_is_below(key, one) or _is_below(one, key) for one in touched)]
    before, after = OmegaConf.create(config), copy.deepcopy(node)
    for key in kept:
        for one in (before, after):
            if OmegaConf.select(one, key) is not None:
                OmegaConf.update(one, key, made_of[key], merge=False)
    try:
        was, now = (dict(leaves(_plain(one), "")) for one in (before, after))
    except OmegaConfBaseException as error:
        raise ConfigError(f"overrides: {explain(error)}") from error
    return {
        key: value
        for key, value in now.items()
        if key in was and was[key] != value and not any(_is_below(key, one) for one in touched)
    }


def _plain(node: DictConfig) -> dict[str, Any]:
    found = OmegaConf.to_container(node, resolve=True)
    assert isinstance(found, dict)
    return {str(key): value for key, value in found.items()}


def _touched(override: Override) -> list[str]:
    """The keys whose values an override replaces."""
    key, value = str(override.key_or_group), override.value()
    return [name for name, _ in leaves(value, key)] if isinstance(value, dict) else [key]


def _is_below(key: str, above: str) -> bool:
    return key == above or key.startswith(f"{above}.")


def _at(config: dict[str, Any], key: str) -> Any:
    """What stands under a key; None where there is no such key."""
    node: Any = config
    for name in key.split("."):
        if isinstance(node, list) and name.isdecimal() and int(name) < len(node):
            node = node[int(name)]
        else:
            node = node.get(name) if isinstance(node, dict) else None
    return node
