"""Which adapters of a host share their projections."""

from collections.abc import Sequence
from dataclasses import dataclass

from mambavox.adapters.hosts import Sublayer
from mambavox.errors import ConfigError

EXPECTED = "all, placement, groups:<k>, none, low-rank-delta:<r>, with k and r whole numbers of at least 1"


@dataclass(frozen=True)
class Sharing:
    """A parsed ``sharing`` option.

    Attributes:
        kind: its word.
        number: the number after the colon, 0 where there is none.
    """

    kind: str
    number: int = 0


def parse_sharing(text: str) -> Sharing:
    """Parse a ``sharing`` option.

    Raises:
        ConfigError: it is none of those known.
    """
    kind, colon, number = str(text).partition(":")
    if kind in ("all", "placement", "none") and not colon:
        return Sharing(kind)
    if kind in ("groups", "low-rank-delta") and number.isdecimal() and int(number) >= 1:
        return Sharing(kind, int(number))
    raise ConfigError(f"sharing is {text!r}; expected one of {EXPECTED}")


def sharing_groups(sharing: Sharing, sublayers: Sequence[Sublayer]) -> dict[str, str]:
    """The group of every adapted sublayer; those of one group (and one width) share a pair of projections.

    Args:
        sharing: the option.
        sublayers: all that are adapted.

    Returns:
        The names of the groups by the sublayers' targets; empty where every sublayer has its own projections.

    Raises:
        ConfigError: more groups than adapted layers in a stack.
    """
    if sharing.kind == "none":
        return {}
    if sharing.kind == "placement":
        return {sublayer.target: sublayer.role for sublayer in sublayers}
    if sharing.kind != "groups":
        return {sublayer.target: "all" for sublayer in sublayers}
    groups = {}
    for stack in {sublayer.stack for sublayer in sublayers}:
        layers = sorted({sublayer.layer for sublayer in sublayers if sublayer.stack == stack})
        if sharing.number > len(layers):
            raise ConfigError(
                f"sharing is 'groups:{sharing.number}' and {stack.kind} {stack.holder or 'model'!r} has {len(layers)} "
                f"adapted layers; expected at most groups:{len(layers)}"
            )
        for sublayer in sublayers:
            if sublayer.stack == stack:
                group = layers.index(sublayer.layer) * sharing.number // len(layers)
                groups[sublayer.target] = f"{stack.holder} {group}"
    return groups
