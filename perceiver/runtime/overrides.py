"""Overrides in Hydra's grammar, on the command line and for the config of a finished run.

Where a text is expected, the value is the text that was typed; Hydra alone would read the folder `2024_11_27` as a
number.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override, OverrideType, Quote, QuotedString
from hydra.errors import HydraException, OverrideParseException
from hydra.grammar.gen.OverrideLexer import InputStream, OverrideLexer  # type: ignore[attr-defined]
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from perceiver.runtime.config import ROOT_KEYS, type_of
from perceiver.runtime.errors import ConfigError, explain
from perceiver.runtime.nodes import is_valid, leaves, select, walk
from perceiver.runtime.suggestions import unknown_key
from perceiver.runtime.synonyms import SHORT_KEYS

TEXT_KEYS: dict[str, Any] = {
    **dict.fromkeys(("run", "out", "variant"), str),
    **dict.fromkeys(("pretrained", "ckpt_path", "compare", "output", "checkpoint", "compare_checkpoint"), str | None),
    **dict.fromkeys(("inputs", "trusted", "overrides"), str | list[str]),
    **dict.fromkeys(("hydra.run.dir", "hydra.sweep.dir", "hydra.sweep.subdir"), str),
}
"""Types of the commands' own keys whose values are texts; those of a run's parts follow from their signatures."""
NUMBER_TOKENS = (OverrideLexer.INT, OverrideLexer.FLOAT, OverrideLexer.BOOL, OverrideLexer.NULL)
SEPARATOR_TOKENS = (OverrideLexer.COMMA, OverrideLexer.BRACKET_OPEN, OverrideLexer.BRACKET_CLOSE)
PURE_RESOLVERS = ("grid", "mel_grid", "frames", "oc.select")
"""The resolvers of conf whose values depend on their arguments alone."""
TRAINED_ROOTS = ("model", "tokenizer", "input_tokenizer")
"""The keys at the root whose values a finished run cannot change."""


def quoted(text: str) -> str:
    """Return a text as a value in Hydra's grammar."""
    return QuotedString(str(text), Quote.double).with_quotes()


def expand_short_key(override: str) -> str:
    """Replace a short key (`SHORT_KEYS`) of an override: `data.root=PATH` becomes `data.source.root=PATH`."""
    key = re.match(r"[+~]*([\w.]+)", override)
    short = next((name for name in SHORT_KEYS if key and f"{key[1]}.".startswith(f"{name}.")), None)
    return override if short is None else override.replace(short, SHORT_KEYS[short], 1)


def quote_texts(override: str, type_of_key: Callable[[str], Any]) -> str:
    """Add the quotes with which Hydra reads the value of an override as the text that the key expects.

    Args:
        override: from the command line.
        type_of_key: key -> type, None if unknown.
    """
    found = re.fullmatch(r"(\+{0,2}[^=\s@~+]+)=(.*)", override, flags=re.DOTALL)
    if found is None:
        return override
    left, typed = found.groups()
    key = left.lstrip("+")
    values, as_text = _values(override), f"{left}={quoted(typed)}"
    if values is None:  # not readable for Hydra
        texts = _list_items(typed)
        candidates = [f"{left}=[{','.join(map(quoted, texts))}]"] if texts else [as_text]
    else:
        with_quotes, is_lossy = _quote_numbers(typed)
        if not (is_lossy or key in TEXT_KEYS or (typed[:1] in ("[", "{") and "." in key)):
            return override  # if a text is expected, `check_parts` makes one of the number
        candidates = [override, f"{left}={with_quotes}", *([as_text] if len(values) == 1 else [])]
    expected = TEXT_KEYS[key] if key in TEXT_KEYS else type_of_key(key)
    for candidate in candidates:
        if all(is_valid(value, expected) for value in _values(candidate) or [...]):
            return candidate
    return override


def _values(override: str) -> list[Any] | None:
    """The value of an override, or those of its sweep; None if it is not readable."""
    try:
        parsed = OverridesParser.create().parse_override(override)
        if isinstance(parsed._value, ChoiceSweep):
            return [Override._convert_value(value) for value in parsed._value.list]
        return None if parsed.is_sweep_override() else [parsed.value()]
    except HydraException:
        return None


def _quote_numbers(typed: str) -> tuple[str, bool]:
    """Quote the numbers, booleans and nulls of a value; the flag says whether parsing one would change its text."""
    lexer = OverrideLexer(InputStream(typed))
    lexer.removeErrorListeners()
    lexer.mode(OverrideLexer.VALUE_MODE)
    tokens = lexer.getAllTokens()
    kinds = [OverrideLexer.COMMA, *(token.type for token in tokens), OverrideLexer.COMMA]
    written, is_lossy = [], False
    for before, token, after in zip(kinds, tokens, kinds[2:], strict=False):
        is_number = token.type in NUMBER_TOKENS and before in SEPARATOR_TOKENS and after in SEPARATOR_TOKENS
        written.append(quoted(token.text) if is_number else token.text)
        is_lossy |= is_number and not _is_canonical(token.text)
    return "".join(written), is_lossy


def _is_canonical(number: str) -> bool:
    """Whether parsing and printing a number, boolean or null restores its text; null may stand for a missing text."""
    try:
        return number != "null" and json.dumps(json.loads(number)) == number
    except ValueError:
        return False


def _list_items(typed: str) -> list[str]:
    """The items of a flat list without quotes; empty for anything else."""
    is_flat = typed.startswith("[") and typed.endswith("]") and not re.search(r"[\[\]{}\"'\\]", typed[1:-1])
    return [text.strip() for text in typed[1:-1].split(",")] if is_flat else []


def first_of_sweep(override: str) -> str | None:
    """Return an override with the first value of its sweep, if it is one; None if it is not readable."""
    try:
        parsed = OverridesParser.create().parse_override(override)
        if parsed.is_sweep_override():
            return f"{parsed.get_key_element()}={next(parsed.sweep_string_iterator())}"
    except HydraException:
        return None
    return override


def text_value(override: str) -> str:
    """Return the text to which an override sets one of `TEXT_KEYS`."""
    (value,) = _values(quote_texts(override, lambda key: None)) or [override.partition("=")[2]]
    return str(value)


def interpolations(cfg: DictConfig) -> dict[str, str]:
    """Return the values of a config that are pure interpolations (`is_pure`), by key."""
    return {key: value for key, value in walk(OmegaConf.to_container(cfg, resolve=False)) if is_pure(value)}


def is_pure(value: Any) -> bool:
    """Whether a value is an interpolation of the config alone: not of the environment, or of files on disk."""
    if not isinstance(value, str) or "${" not in value:
        return False
    allowed = re.findall(rf"\$\{{(?:[\w.]+\}}|(?:{'|'.join(PURE_RESOLVERS)}):)", value)
    return value.count("${") == len(allowed)


def apply_overrides(
    config: dict[str, Any], overrides: Sequence[str], interpolated: Mapping[str, str]
) -> dict[str, Any]:
    """Return the config of a finished run with overrides, and with the values that are interpolated from these.

    Args:
        config: plain values.
        overrides: as on the command line; `+key=…` adds a key, `~key` leaves one out.
        interpolated: key -> interpolation (`interpolations`).

    Raises:
        ConfigError: an override is not readable, names no key, or would change the trained model.
    """
    if isinstance(overrides, str):
        inner = overrides.removeprefix("[").removesuffix("]") if overrides.startswith("[") else overrides
        raise ConfigError(f"overrides={overrides}: must be a list of texts, as in overrides='[\"{inner}\"]'")
    parsed = [_parse(config, str(text)) for text in overrides]
    given = [key for override in parsed for key in _overridden_keys(override)]
    node = OmegaConf.create(config)
    for key, value in interpolated.items():
        is_given = any(_is_within(key, one) or _is_within(one, key) for one in given)
        if is_pure(value) and "._" not in key and not is_given and select(config, key) is not None:
            OmegaConf.update(node, key, value, merge=False)
    OmegaConf.set_struct(node, True)
    plain = _plain(node)
    for override in parsed:
        root = _root(override.key_or_group)
        if root not in ROOT_KEYS:
            raise ConfigError(f"overrides: {unknown_key(OmegaConf.create(config), root)}")
        before = dict(leaves(plain))
        try:
            ConfigLoaderImpl._apply_overrides_to_config([override], node)
            plain = _plain(node)
        except (HydraException, OmegaConfBaseException) as error:
            raise ConfigError(f"overrides: {explain(error)}") from error
        changed = [key for key, value in leaves(plain) if _root(key) in TRAINED_ROOTS and before[key] != value]
        if changed and root not in TRAINED_ROOTS:
            trained = " and ".join(f"{key}={before[key]}".replace(", ", ",") for key in changed)
            problem = f"the model was trained with {trained}, which would change with it"
            add = "these" if len(changed) > 1 else "this"
            raise ConfigError(f"overrides: {override.input_line}: {problem}; to change the data alone, add {add}")
    return plain


def _parse(config: dict[str, Any], text: str) -> Override:
    """Parse an override of a finished run.

    Raises:
        ConfigError: it is not readable, a sweep, or a choice from a group.
    """
    override_text = quote_texts(expand_short_key(text), lambda key: type_of(config, key))
    try:
        (override,) = OverridesParser.create().parse_overrides([override_text])
    except OverrideParseException as error:
        raise ConfigError(f"overrides: {explain(error)}") from error
    if override.is_sweep_override():
        raise ConfigError(f"overrides: {text}: one value only; a list is [a,b], a text with commas needs quotes")
    key, value = str(override.key_or_group), override.value()
    is_node = isinstance(select(config, key), dict)
    is_choice = is_node and isinstance(value, str) and not is_valid(value, type_of(config, key))
    if override.package is not None or is_choice or (key in config and override.is_delete()):
        root = _root(override.package or key)
        example = next((name for name, _ in leaves(config.get(root), root) if "_target_" not in name), "data.root")
        problem = "the parts of a finished run are chosen already; only their values can be changed"
        raise ConfigError(f"overrides: {text}: {problem}, such as {example}=…")
    if override.is_add():
        override.type = OverrideType.FORCE_ADD  # the run may have the key already
    return override


def _plain(node: DictConfig) -> dict[str, Any]:
    found = OmegaConf.to_container(node, resolve=True)
    assert isinstance(found, dict)
    return {str(key): value for key, value in found.items()}


def _overridden_keys(override: Override) -> list[str]:
    key, value = str(override.key_or_group), override.value()
    return [name for name, _ in leaves(value, key)] if isinstance(value, dict) else [key]


def _root(key: str) -> str:
    return str(key).partition(".")[0]


def _is_within(key: str, above: str) -> bool:
    return key == above or key.startswith(f"{above}.")
