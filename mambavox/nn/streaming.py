"""Typed state that a model carries from one piece of a stream to the next, and the pieces themselves."""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from mambavox.errors import ConfigError, DataError
from mambavox.files import replacing

State = TypeVar("State", bound="StreamState")


@dataclass(frozen=True)
class StreamState:
    """What a part of a model remembers of a batch of streams; zeros before the first frame.

    A subclass is a frozen dataclass. Its tensors have the batch as first dimension, a list has one number a row, and a
    tuple or dictionary holds the states of parts; anything else belongs to the whole batch.
    """

    _classes: ClassVar[dict[str, type["StreamState"]]] = {}

    def __init_subclass__(cls) -> None:
        """Make the class known to :meth:`load`."""
        StreamState._classes[cls.__name__] = cls

    def reorder(self: State, rows: Tensor | Sequence[int]) -> State:
        """State of the rows chosen, in that order (beam search, streams that start and stop).

        Args:
            rows: ``(new_batch,)`` indices of rows.
        """
        chosen = torch.as_tensor(rows, dtype=torch.int64)
        numbers = chosen.tolist()
        return _change(
            self,
            lambda tensor: tensor.index_select(0, chosen.to(tensor.device)),
            lambda entries: [entries[row] for row in numbers],
        )

    def reset(self: State, rows: Tensor | Sequence[int]) -> State:
        """The same state with some rows as they were before the first frame: new streams take their places.

        Args:
            rows: indices of rows.
        """
        chosen = torch.as_tensor(rows, dtype=torch.int64)
        numbers = set(chosen.tolist())
        return _change(
            self,
            lambda tensor: tensor.index_fill(0, chosen.to(tensor.device), 0),
            lambda entries: [type(entry)() if row in numbers else entry for row, entry in enumerate(entries)],
        )

    def put(self: State, rows: Tensor | Sequence[int], state: State) -> State:
        """The same state with some rows replaced, such as those of :meth:`reorder` after they went on alone.

        Args:
            rows: indices of rows, each once.
            state: what comes there, row by row.

        Raises:
            ConfigError: another number of rows, or a state of a different model.
        """
        numbers = torch.as_tensor(rows).tolist()
        before, new = _count_rows(self), _count_rows(state)
        if len(numbers) != new:
            raise ConfigError(f"{len(numbers)} rows are to be replaced by {new}; expected as many")
        order = list(range(before))
        for place, row in enumerate(numbers):
            order[row] = before + place
        return type(self).join([self, state]).reorder(order)

    def split(self: State, sizes: Sequence[int]) -> list[State]:
        """The state cut into runs of rows; :meth:`join` puts them together again.

        Args:
            sizes: numbers of rows, first to last.
        """
        ends = [sum(sizes[: index + 1]) for index in range(len(sizes))]
        return [self.reorder(range(end - size, end)) for size, end in zip(sizes, ends, strict=True)]

    @classmethod
    def join(cls: type[State], states: Sequence[State]) -> State:
        """One state with the rows of several, in their order.

        Args:
            states: of the same model, at least one.

        Raises:
            ConfigError: there is none, or they are of different models.
        """
        if not states:
            raise ConfigError("no states are given to join; expected at least one")
        return _join(states)

    @classmethod
    def _alike(cls: type[State], states: Sequence[State]) -> Sequence[State]:
        """The states with tensors of equal shapes but for the rows."""
        return states

    def detach(self: State) -> State:
        """The same state, cut from the graph (truncated back-propagation)."""
        return _change(self, Tensor.detach, _same)

    def to(self: State, device: torch.device | str) -> State:
        """The same state on another device."""
        return _change(self, lambda tensor: tensor.to(device), _same)

    @property
    def nbytes(self) -> int:
        """Bytes of all its tensors."""
        return sum(tensor.nbytes for tensor in self.tensors().values())

    def states(self) -> Iterator["StreamState"]:
        """This state and those of all parts in it."""
        waiting: list[Any] = [self]
        while waiting:
            part = waiting.pop()
            if isinstance(part, StreamState):
                yield part
                waiting += [getattr(part, f.name) for f in fields(part)]
            elif isinstance(part, tuple):
                waiting += part
            elif isinstance(part, dict):
                waiting += part.values()

    def tensors(self) -> dict[str, Tensor]:
        """Its tensors by their names, such as ``layers.0.mixer.ssm``; always in the same order."""
        found: dict[str, Tensor] = {}
        _collect(self, "", found)
        return found

    def with_tensors(self: State, tensors: Iterable[Tensor]) -> State:
        """The same state with other tensors.

        Args:
            tensors: as many as :meth:`tensors` gives, in its order.
        """
        others = iter(tensors)
        return _change(self, lambda _: next(others), _same)

    def save(self, path: str | Path) -> None:
        """Write the state into a file: tensors as safetensors, the rest as JSON in its header.

        The file is there whole or not at all; the model is not in it.

        Args:
            path: the file.

        Raises:
            OSError: it cannot be written.
        """
        path = Path(path)
        tensors: dict[str, Tensor] = {}
        tree = json.dumps(_take_apart_state(self, "", tensors))
        with replacing(path) as partial:
            try:
                save_file(tensors, partial, metadata={_METADATA: tree})
            except SafetensorError as error:  # what it makes of a full disk
                raise OSError(f"{path}: cannot be written ({error})") from error

    @classmethod
    def load(cls: type[State], path: str | Path, device: torch.device | str = "cpu") -> State:
        """Read a state that :meth:`save` has written, in this process or another; no code in the file is run.

        Args:
            path: the file.
            device: where its tensors go.

        Raises:
            DataError: the file is missing, damaged, or no state of this kind.
        """
        try:
            with safe_open(path, "pt", device=str(device)) as file:
                tree = json.loads((file.metadata() or {})[_METADATA])
                state = _put_together_state(tree, {name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error}); expected a file of {cls.__name__}.save") from None
        except (SafetensorError, KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise DataError(
                f"{path}: is no streaming state or damaged ({type(error).__name__}: {error}); expected a file of "
                f"{cls.__name__}.save"
            ) from None
        if not isinstance(state, cls):
            raise DataError(f"{path}: holds a {type(state).__name__}; expected a {cls.__name__}")
        return state


@dataclass(frozen=True)
class MambaState(StreamState):
    """What one Mamba or Mamba-2 block remembers of the frames it has seen.

    Attributes:
        conv: ``(batch, channels, d_conv - 1)`` the last inputs of the convolution, oldest first; channels are
            ``d_inner``, for Mamba-2 ``d_inner + 2 * ngroups * d_state``.
        ssm: the scan's state in float32, ``(batch, d_inner, d_state)``, for Mamba-2
            ``(batch, nheads, headdim, d_state)``.
    """

    conv: Tensor
    ssm: Tensor

    def put(self, rows: Tensor | Sequence[int], state: "MambaState") -> "MambaState":
        """State in which some rows are replaced.

        Args:
            rows: ``(number,)`` indices of rows.
            state: what comes there.
        """
        rows = torch.as_tensor(rows, dtype=torch.int64, device=self.ssm.device)
        return MambaState(self.conv.index_copy(0, rows, state.conv), self.ssm.index_copy(0, rows, state.ssm))

    def zeros(self, batch: int) -> "MambaState":
        """State before the first frame, of the same kind with so many rows."""
        shapes = ((batch, *part.shape[1:]) for part in (self.conv, self.ssm))
        conv, ssm = (part.new_zeros(shape) for part, shape in zip((self.conv, self.ssm), shapes, strict=True))
        return MambaState(conv, ssm)


@dataclass(frozen=True)
class StreamStep:
    """What all layers are told about the next piece of a batch of streams.

    Attributes:
        time: frames of the piece, those of its longest row.
        counts: new frames of each row.
        past: frames of each row before the piece.
        device: where the tensors are.
    """

    time: int
    counts: list[int]
    past: list[int]
    device: torch.device

    @cached_property
    def lengths(self) -> Tensor | None:
        """``(batch,)`` new frames of each row; none where no row is shorter than the piece."""
        if min(self.counts) == self.time:
            return None
        return torch.tensor(self.counts, device=self.device)

    @cached_property
    def together(self) -> bool:
        """Whether all rows have the same past and the same number of new frames."""
        return self.lengths is None and min(self.past) == max(self.past)

    @cached_property
    def reach(self) -> int:
        """Frames of the longest row, past and new."""
        return max(map(int.__add__, self.past, self.counts))

    @cached_property
    def places(self) -> tuple[Tensor, Tensor, Tensor]:
        """Row, frame of the piece and frame of the stream of every new frame, ``(new frames of all rows,)`` each."""
        rows = [row for row, count in enumerate(self.counts) for _ in range(count)]
        frames = [frame for count in self.counts for frame in range(count)]
        whole = [self.past[row] + frame for row, frame in zip(rows, frames, strict=True)]
        return tuple(torch.tensor(numbers, device=self.device) for numbers in (rows, frames, whole))  # type: ignore[return-value]

    @cached_property
    def mask(self) -> Tensor:
        """``(batch, 1, time, reach)``, true where a new frame may look at a frame of its stream: at its past, itself.

        One row stands for all where they go together.
        """
        past = torch.tensor(self.past[:1] if self.together else self.past, device=self.device)
        last = past[:, None] + torch.arange(self.time, device=self.device)
        return (torch.arange(self.reach, device=self.device) <= last[:, :, None])[:, None]


def check_parts(model: nn.Module) -> None:
    """Ask the parts of a model that know whether they can be streamed; one that cannot raises an error of its own.

    Args:
        model: whose modules may have ``check_streams()``.
    """
    for module in model.modules():
        check = getattr(type(module), "check_streams", None)
        if check is not None:
            check(module)


def begin_part(module: nn.Module, batch_size: int) -> Any:
    """State of a part of a model before the first frame; none where the part looks at one frame at a time.

    Args:
        module: which may have ``init_state(batch_size)``.
        batch_size: number of streams.
    """
    begin = getattr(module, "init_state", None)
    return None if begin is None else begin(batch_size)


def stream_part(module: nn.Module, hidden_states: Tensor, state: Any, step: StreamStep) -> tuple[Tensor, Any]:
    """The next piece of a batch of streams through a part of a model.

    Args:
        module: with ``stream(hidden_states, state, step)`` where it has a state.
        hidden_states: ``(batch, time, channels)``.
        state: what :func:`begin_part` or the last call returned.
        step: which frames are new.

    Returns:
        The output of the same shape, and the new state.
    """
    go_on = getattr(module, "stream", None)
    return (module(hidden_states), None) if go_on is None else go_on(hidden_states, state, step)


def expect_state(state: Any, kind: type[State]) -> State:
    """The state of a part, which must be of its kind.

    Args:
        state: what was carried.
        kind: what the part makes.

    Raises:
        ConfigError: it is of another: adapters were attached, taken off or switched after the stream began.
    """
    if not isinstance(state, kind):
        raise ConfigError(
            f"a part of the model was given a {type(state).__name__} as its state; expected a {kind.__name__}. "
            "Adapters that act at the beginning of a stream must act to its end; begin with init_streaming_state"
        )
    return state


_METADATA = "mambavox_state"


def _same(entries: list[Any]) -> list[Any]:
    return entries


def _change(value: Any, tensors: Callable[[Tensor], Tensor], rows: Callable[[list[Any]], list[Any]]) -> Any:
    """A state with every tensor and every list of rows replaced by what the functions make of it."""
    if isinstance(value, Tensor):
        return tensors(value)
    if isinstance(value, StreamState):
        return replace(value, **{f.name: _change(getattr(value, f.name), tensors, rows) for f in fields(value)})
    if isinstance(value, list):
        return rows(value)
    if isinstance(value, tuple):
        return tuple(_change(part, tensors, rows) for part in value)
    if isinstance(value, dict):
        return {name: _change(part, tensors, rows) for name, part in value.items()}
    return value


def _collect(value: Any, name: str, found: dict[str, Tensor]) -> None:
    """Put the tensors of a state into ``found``, in the order of :func:`_change`."""
    parts: dict[Any, Any] = {}
    if isinstance(value, Tensor):
        found[name] = value
    elif isinstance(value, StreamState):
        parts = {f.name: getattr(value, f.name) for f in fields(value)}
    elif isinstance(value, tuple):
        parts = dict(enumerate(value))
    elif isinstance(value, dict):
        parts = value
    for key, part in parts.items():
        _collect(part, f"{name}.{key}" if name else str(key), found)


def _count_rows(state: StreamState) -> int:
    """Rows of a state, by the first thing in it that has rows."""
    counts: list[int] = []

    def count(entries: Any) -> Any:
        counts.append(len(entries))
        return entries

    _change(state, count, count)
    return counts[0]


def _join(values: Sequence[Any]) -> Any:
    first = values[0]
    if any(type(value) is not type(first) for value in values):
        raise ConfigError(_DIFFERENT)
    if isinstance(first, Tensor):
        if any(value.shape[1:] != first.shape[1:] for value in values):
            raise ConfigError(_DIFFERENT)
        return torch.cat(list(values))
    if isinstance(first, StreamState):
        values = type(first)._alike(values)
        joined = {f.name: _join([getattr(value, f.name) for value in values]) for f in fields(first)}
        return replace(first, **joined)
    if isinstance(first, list):
        return [entry for value in values for entry in value]
    if isinstance(first, tuple) and all(len(value) == len(first) for value in values):
        return tuple(_join(parts) for parts in zip(*values, strict=True))
    if isinstance(first, dict) and all(value.keys() == first.keys() for value in values):
        return {name: _join([value[name] for value in values]) for name in first}
    if isinstance(first, tuple | dict) or any(value != first for value in values):
        raise ConfigError(_DIFFERENT)
    return first


_DIFFERENT = "the states to join are of different models or adapters; expected states that one model has made"


def _take_apart_state(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """A state as JSON can hold it; its tensors are put into ``tensors``."""

    def inside(parts: dict[str, Any]) -> dict[str, Any]:
        return {key: _take_apart_state(part, f"{name}.{key}" if name else key, tensors) for key, part in parts.items()}

    if isinstance(value, Tensor):
        tensors[name] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
        return {"tensor": name}
    if isinstance(value, StreamState):
        return {
            "state": type(value).__name__,
            "fields": inside({f.name: getattr(value, f.name) for f in fields(value)}),
        }
    if isinstance(value, tuple):
        return {"tuple": list(inside({str(index): part for index, part in enumerate(value)}).values())}
    if isinstance(value, dict):
        return {"dict": inside(value)}
    return value


def _put_together_state(value: Any, tensors: dict[str, Tensor]) -> Any:
    """Inverse of :func:`_take_apart_state`."""
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        return tensors[value["tensor"]]
    if "tuple" in value:
        return tuple(_put_together_state(part, tensors) for part in value["tuple"])
    parts = value["fields"] if "state" in value else value["dict"]
    inside = {name: _put_together_state(part, tensors) for name, part in parts.items()}
    if "state" not in value:
        return inside
    if value["state"] not in StreamState._classes:
        raise ValueError(
            f"{value['state']} is not known here; import the room it comes from, such as mambavox.adapters"
        )
    return StreamState._classes[value["state"]](**inside)
