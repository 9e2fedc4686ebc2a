"""What configurations of runs share: checked fields, flat keys in YAML, the same names on the command line."""

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar, get_args, get_origin, get_type_hints

import yaml

from mambavox.errors import ConfigError

RUN_FILE = "run.yaml"
"""Name of the configuration inside a run folder."""

_Config = TypeVar("_Config", bound="RunConfig")


def option(default: Any, meaning: str, unset: str = "") -> Any:
    """A field with the line that documents it here and in ``--help``, and what leaving it at ``None`` means."""
    return field(default=default, metadata={"help": meaning, "unset": unset})


@dataclass(frozen=True)
class RunConfig:
    """Configuration of a run: a dataclass each of whose fields is one key of YAML and one flag.

    A class that derives from it has one field of further keys, which something it names defines: the options of a
    method, the fields of a model.

    Attributes:
        command: the command that runs it.
        further_keys: name of the field of further keys.
        free: fields that may differ when a run is continued, because they change nothing that is learned.

    Raises:
        ConfigError: a value has the wrong type.
    """

    command: ClassVar[str]
    further_keys: ClassVar[str]
    free: ClassVar[frozenset[str]]

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for spec in fields(self):
            object.__setattr__(self, spec.name, _coerced(spec.name, getattr(self, spec.name), hints[spec.name]))

    def known_further_keys(self) -> tuple[list[str], str]:
        """The further keys there are, and what defines them in words.

        Raises:
            ConfigError: what defines them is unknown.
        """
        raise NotImplementedError

    @classmethod
    def from_mapping(cls: type[_Config], mapping: Mapping[str, Any], source: str = "the configuration") -> _Config:
        """Build a configuration from flat keys: this class's own, and further ones.

        Args:
            mapping: key -> value.
            source: what error messages call the mapping.

        Raises:
            ConfigError: a key is unknown (with the nearest ones), or a value is wrong.
        """
        own = [spec.name for spec in fields(cls) if spec.name != cls.further_keys]
        config = cls(**{key: value for key, value in mapping.items() if key in own})
        known, definer = config.known_further_keys()
        further = {key: value for key, value in mapping.items() if key not in own}
        for key in further:
            if key not in known:
                raise ConfigError(f"{source}: {unknown_key(str(key), [*own, *known])} ({definer})")
        return config.replace(**{cls.further_keys: {key: plain(value) for key, value in further.items()}})

    @classmethod
    def load(cls: type[_Config], path: str | Path, overrides: Mapping[str, Any] | None = None) -> _Config:
        """Read a YAML file of flat keys.

        Args:
            path: the file.
            overrides: keys that replace the file's.

        Raises:
            ConfigError: there is no such file, it is no YAML mapping, or a key or value is wrong.
        """
        return cls.from_mapping({**read_yaml(path), **(overrides or {})}, str(path))

    def to_mapping(self) -> dict[str, Any]:
        """The flat keys that ``from_mapping`` reads: every field, then the further keys."""
        own = {spec.name: getattr(self, spec.name) for spec in fields(self) if spec.name != self.further_keys}
        return {**own, **getattr(self, self.further_keys)}

    def to_yaml(self) -> str:
        """YAML that ``load`` reads."""
        return yaml.safe_dump(self.to_mapping(), sort_keys=False, allow_unicode=True)

    def replace(self: _Config, **changes: Any) -> _Config:
        """A copy with other values.

        Raises:
            ConfigError: a value is wrong.
        """
        return type(self)(**{**{spec.name: getattr(self, spec.name) for spec in fields(self)}, **changes})

    @property
    def output_path(self) -> Path:
        """The run folder.

        Raises:
            ConfigError: there is nothing to name it after.
        """
        raise NotImplementedError


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Keys and values of a YAML file.

    Raises:
        ConfigError: there is no such file, or it is no YAML mapping.
    """
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); expected a YAML configuration") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: is not YAML ({error})") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: expected keys and values, one a line, such as `epochs: 20`")
    return content


def unknown_key(key: str, known: Iterable[str]) -> str:
    """Sentence about an unknown key, with the keys that look like it."""
    near = difflib.get_close_matches(key.replace("-", "_"), list(known), n=3, cutoff=0.6)
    return f"unknown key {key!r}; " + (f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(known)}")


def require(name: str, value: Any, holds: bool, expected: str) -> None:
    """Check a value.

    Raises:
        ConfigError: it does not hold.
    """
    if not holds:
        raise ConfigError(f"{name}={value}; expected {expected}")


def plain(value: Any) -> Any:
    """A command line's or a YAML file's text as the number it writes; YAML 1.1 takes 1e-3 for text."""
    if isinstance(value, str):
        for kind in (int, float):
            try:
                return kind(value)
            except ValueError:
                pass
    return value


def _coerced(name: str, value: Any, hint: Any) -> Any:
    """A value as its field's type, where nothing is lost.

    Raises:
        ConfigError: the value is no such thing.
    """
    optional = type(None) in get_args(hint)
    if value is None and optional:
        return None
    if get_origin(hint) is Literal:
        if value not in get_args(hint):
            raise ConfigError(f"{name}={value}; expected {' or '.join(map(str, get_args(hint)))}")
        return value
    kind = next(kind for kind in get_args(hint) if kind is not type(None)) if optional else hint
    if kind in (int, float):
        number = plain(value)
        # True is an int to Python, but `epochs: yes` is a mistake.
        if not isinstance(number, bool) and isinstance(number, (int, float)) and number == kind(number):
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
