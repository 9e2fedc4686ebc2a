"""Fields of configurations: how they are declared, read from text and YAML, checked, and told in words."""

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, Field, field
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import yaml

from mambavox.errors import ConfigError

GROUPS = ("Model", "Data", "Splits", "Training", "Evaluation", "Running")
"""Groups of fields, in the order of ``--help``."""


def option(
    default: Any,
    meaning: str,
    *,
    group: str,
    unset: str = "",
    at_least: float | None = None,
    above: float | None = None,
    below: float | None = None,
    at_most: float | None = None,
    free: bool = False,
) -> Any:
    """A field of a configuration.

    Args:
        default: its value where nothing is given.
        meaning: the line that documents it here and in ``--help``.
        group: one of ``GROUPS``.
        unset: what leaving it at ``None`` means.
        at_least: smallest value.
        above: what the value must be above.
        below: what the value must be below.
        at_most: largest value.
        free: whether it may differ when a run is resumed, because it changes nothing that is learned.
    """
    bounds = {"at least": at_least, "above": above, "below": below, "at most": at_most}
    bounds = {word: bound for word, bound in bounds.items() if bound is not None}
    metadata = {"help": meaning, "unset": unset, "group": group, "bounds": bounds, "free": free}
    return field(default=default, metadata=metadata)


class _PlainLoader(yaml.SafeLoader):
    """YAML without aliases: a few hundred bytes of them can stand for gigabytes."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("it has an alias (*name), which a configuration must not have")
        return super().compose_node(parent, index)


_MOST_BYTES = 1 << 20  # of a configuration


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Keys and values of a YAML file.

    Raises:
        ConfigError: there is no such file, or it is no YAML mapping.
    """
    try:
        with Path(path).open("rb") as file:
            text = file.read(_MOST_BYTES + 1)
        if len(text) > _MOST_BYTES:
            raise ConfigError(f"{path}: is larger than a mebibyte; expected a configuration")
        content = yaml.load(text.decode("utf-8"), _PlainLoader)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); expected a YAML configuration") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: is not YAML ({error})") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: expected keys and values, one a line, such as `epochs: 20`")
    return content


def nearest(word: str, known: Iterable[str]) -> str:
    """What was expected in place of an unknown word: the words that look like it, or all."""
    names = list(known)
    near = difflib.get_close_matches(word, names, n=3, cutoff=0.6)
    return f"did you mean {' or '.join(near)}?" if near else f"expected one of {', '.join(names)}"


def unknown_key(key: str, known: Iterable[str]) -> str:
    """Sentence about an unknown key, with the keys that look like it."""
    names = list(known)
    near = difflib.get_close_matches(key.replace("-", "_"), names, n=3, cutoff=0.6)
    return f"unknown key {key!r}; " + (f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(names)}")


def plain(value: Any) -> Any:
    """A command line's or a YAML file's text as the number it writes; YAML 1.1 takes 1e-3 for text."""
    if isinstance(value, str):
        for kind in (int, float):
            try:
                return kind(value)
            except ValueError:
                pass
    return value


def check_bounds(spec: "Field[Any]", value: Any) -> None:
    """Check a number against the bounds of its field.

    Raises:
        ConfigError: it lies outside them, or is no number.
    """
    bounds = spec.metadata.get("bounds")
    if value is None or not bounds:
        return
    holds = {
        "at least": lambda bound: value >= bound,
        "above": lambda bound: value > bound,
        "below": lambda bound: value < bound,
        "at most": lambda bound: value <= bound,
    }
    if not all(holds[word](bound) for word, bound in bounds.items()) or value == float("inf"):
        expected = " and ".join(f"{word} {bound:g}" for word, bound in bounds.items())
        raise ConfigError(f"{spec.name}={value}; expected {expected}")


def coerced(name: str, value: Any, hint: Any) -> Any:
    """A value as its field's type, where nothing is lost.

    Args:
        name: of the field.
        value: as it was given.
        hint: type of the field.

    Raises:
        ConfigError: the value is no such thing.
    """
    optional = type(None) in get_args(hint)
    if value is None and optional:
        return None
    if get_origin(hint) is Literal:
        if value not in get_args(hint):
            raise ConfigError(f"{name}={value}; {nearest(str(value), map(str, get_args(hint)))}")
        return value
    kind = next(kind for kind in get_args(hint) if kind is not type(None)) if optional else hint
    if kind in (int, float):
        number = plain(value)
        # True is an int to Python, but `epochs: yes` is a mistake.
        if not isinstance(number, bool) and isinstance(number, (int, float)) and _is_whole(number, kind):
            return kind(number)
        raise ConfigError(f"{name}={value!r}; expected {'a whole number' if kind is int else 'a number'}")
    if kind is bool and not isinstance(value, bool):
        raise ConfigError(f"{name}={value!r}; expected true or false")
    if kind is str:
        if isinstance(value, (str, int)) and not isinstance(value, bool):  # folds are often numbers
            return str(value)
        raise ConfigError(f"{name}={value!r}; expected text")
    if get_origin(kind) is not None:
        if isinstance(value, Mapping):
            return dict(value)
        raise ConfigError(f"{name}={value!r}; expected keys and values")
    return value


def _is_whole(number: float, kind: type) -> bool:
    if number != number:
        return False
    return kind is float or (abs(number) != float("inf") and number == int(number))


def field_default(spec: "Field[Any]") -> str:
    """A field's default in words, as ``--help`` shows it."""
    if spec.default is None or spec.default is MISSING:
        return str(spec.metadata.get("unset", ""))
    return str(spec.default).lower() if isinstance(spec.default, bool) else str(spec.default)
