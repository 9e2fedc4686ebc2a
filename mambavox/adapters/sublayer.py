"""The module that stands in the place of a host's sublayer and adds an adapter to it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from mambavox.adapters.branch import CANNOT_STREAM, Branch, Projections, make_projections
from mambavox.adapters.cache import DecodedState, decoded_state
from mambavox.adapters.config import AdapterConfig, SublayerConfig
from mambavox.adapters.hosts import Sublayer, mask_lengths, valid_keys
from mambavox.adapters.layers import AdapterLayer
from mambavox.adapters.rows import rows_by_adapter
from mambavox.adapters.taps import AttentionCall, AttentionTap, InputTap, WindowTap
from mambavox.errors import ConfigError, HostError
from mambavox.lengths import compact, spread
from mambavox.nn.streaming import StreamState, StreamStep, begin_part, expect_state, stream_part


@dataclass(frozen=True)
class SublayerState(StreamState):
    """What a sublayer of the host and the adapters beside it remember of a batch of streams.

    Attributes:
        sublayer: of the host's module; none where it has none.
        branches: of the adapters by name, in the order in which they act; none for one that sees each frame alone.
    """

    sublayer: StreamState | None
    branches: dict[str, StreamState | None]


class SublayerAdapter(AdapterLayer):
    """A sublayer ``F`` of the host with its adapters: ``F(x) + branch(x)`` or ``F(x) + branch(F(x))``.

    Shared projections are owned by the first sublayer that an adapter reaches; the others hold a plain reference
    to that *layer* (not to the projections: casting and moving re-create parameters), so that they are saved,
    counted and trained once.

    Args:
        base_layer: the module whose output is the sublayer's output.
        prefix: the method's prefix.
        sublayer: where it stands.
        host: the model that ``sublayer``'s names refer to.

    Source:
        MambAdapter (arXiv 2606.15638), equation 3.
    """

    other_param_names = ("owners", "groups")

    def __init__(self, base_layer: nn.Module, prefix: str, sublayer: Sublayer, host: nn.Module) -> None:
        super().__init__(base_layer, prefix, ("branch", "shared"))
        self.sublayer = sublayer
        self.owners: dict[str, SublayerAdapter] = {}
        self.groups: dict[str, str] = {}
        self.weights: dict[str, float] = {}
        self.stacked = False
        self.tapped: Tensor | None = None
        self.call: AttentionCall | None = None
        self.taps_input = sublayer.input_of != sublayer.target
        self._hooks: list[RemovableHandle] = []
        if self.taps_input:
            self._hooks.append(host.get_submodule(sublayer.input_of).register_forward_pre_hook(InputTap(self)))
        if sublayer.stack.tokens.bands == 1:
            attention: Any = host.get_submodule(sublayer.attention)
            while isinstance(attention, BaseTunerLayer):
                attention = attention.base_layer
            self._hooks.append(attention.register_forward_pre_hook(AttentionTap(self), with_kwargs=True))
        if sublayer.stack.windowed:
            encoder = host.get_submodule(sublayer.stack.holder)
            self._hooks.append(encoder.register_forward_pre_hook(WindowTap(self), with_kwargs=True))

    def add_adapter(
        self, adapter_name: str, config: SublayerConfig, group: str | None, layers: Iterable["SublayerAdapter"]
    ) -> None:
        """Add an adapter to this sublayer.

        Args:
            adapter_name: its name.
            config: its configuration.
            group: the group of sublayers that shares its projections with this one; none where it has its own.
            layers: the host's adapted sublayers so far, among which an owner of the projections may be.

        Raises:
            ConfigError: a name that cannot be used.
        """
        self._add("branch", adapter_name, self.make_branch(config))
        if group is None or not isinstance(config, AdapterConfig):
            return
        self.groups[adapter_name] = group
        owner = next((layer for layer in layers if layer.owns(adapter_name, group, self.sublayer.width)), None)
        if owner is None:
            owner = self
            self._add("shared", adapter_name, make_projections(config, self.sublayer.width))
        self.owners[adapter_name] = owner

    def make_branch(self, config: Any) -> nn.Module:
        """What stands beside the sublayer for one adapter, initialised.

        It has the attributes ``context``, ``sequential`` and ``projections`` of :class:`Branch` and is called as it is.

        Args:
            config: the adapter's configuration.
        """
        return Branch(config, self.sublayer)

    def owns(self, adapter_name: str, group: str, width: int) -> bool:
        """Whether this layer owns the projections that an adapter's sublayers of a group and a width share."""
        return (
            self.sublayer.width == width
            and self.groups.get(adapter_name) == group
            and adapter_name in self._part("shared")
        )

    def set_adapter(self, adapter_names: str | list[str], inference_mode: bool = False) -> None:
        """Activate adapters as PEFT does; what they add is summed, whatever :meth:`combine` said before."""
        super().set_adapter(adapter_names, inference_mode=inference_mode)
        self.combine({}, stacked=False)

    def combine(self, weights: Mapping[str, float], stacked: bool) -> None:
        """How the active adapters act together.

        Args:
            weights: what each adapter's output is multiplied with; 1 for those that are not named.
            stacked: each adapter's source also holds what those before it added, in place of the host's alone.
        """
        self.weights = dict(weights)
        self.stacked = stacked

    def is_temporal(self) -> bool:
        """Whether an acting adapter lets frames see one another."""
        return any(cast(Branch, self._part("branch")[name]).context != "frame" for name in self.acting("branch"))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The sublayer's output with what the acting adapters add; takes and returns what the sublayer does."""
        acting = self.acting("branch")
        if not acting:
            return self.base_layer(*args, **kwargs)
        inputs = self._sublayer_input(args, kwargs)
        output = self.base_layer(*args, **kwargs)
        hidden_states = output[0] if isinstance(output, tuple) else output
        call, self.call = self.call, None
        lengths, valid = self._lengths(call, hidden_states)
        result = frozen = hidden_states
        rows_of = None if self.row_adapters is None else rows_by_adapter(self.row_adapters, result)
        for name in acting:
            decoded = self._decoded(name, call, hidden_states)
            if rows_of is None:
                added = self._added(name, inputs, frozen, lengths, valid, decoded)
                result = result + added
                if self.stacked:
                    inputs, frozen = inputs + added, frozen + added
            else:
                rows = rows_of[name]
                own = None if decoded is None else decoded.take(rows)
                own_lengths = None if lengths is None else lengths[rows]
                own_valid = None if valid is None else valid[rows]
                added = self._added(name, inputs[rows], frozen[rows], own_lengths, own_valid, own)
                if decoded is not None and own is not None:
                    decoded.put(rows, own, len(result))
                result = result.index_add(0, rows, added)
            if decoded is not None:
                decoded.tokens += hidden_states.shape[1]
        return (result, *output[1:]) if isinstance(output, tuple) else result

    def check_streams(self) -> None:
        """Check that the acting adapters can be streamed.

        Raises:
            HostError: one lets a frame depend on those after it.
        """
        for name in self.acting("branch"):
            branch = cast(Branch, self._part("branch")[name])
            if branch.context != "frame" and not hasattr(branch, "init_state"):
                raise HostError(CANNOT_STREAM.format(type(branch).__name__))

    def init_state(self, batch_size: int) -> SublayerState:
        """State before the first frame, of the host's sublayer and of the adapters that act now.

        Args:
            batch_size: number of streams.

        Raises:
            HostError: an adapter lets a frame depend on those after it.
        """
        self.check_streams()
        branches: dict[str, StreamState | None] = {}
        for name in self.acting("branch"):
            branch = cast(Branch, self._part("branch")[name])
            branches[name] = None if branch.context == "frame" else branch.init_state(batch_size)
        return SublayerState(begin_part(self.base_layer, batch_size), branches)

    def stream(self, hidden_states: Tensor, state: Any, step: StreamStep) -> tuple[Tensor, SublayerState]:
        """The sublayer's output, with what the acting adapters add, of the next piece of a batch of streams.

        Args:
            hidden_states: ``(batch, time, width)``.
            state: of the frames before.
            step: which frames are new.

        Returns:
            ``(batch, time, width)`` and the new state.

        Raises:
            ConfigError: other adapters acted when the stream began.
        """
        state = expect_state(state, SublayerState)
        acting = self.acting("branch")
        if list(state.branches) != acting:
            raise ConfigError(
                f"adapters {acting} act and the stream began with {list(state.branches)}; expected the same ones to "
                "its end. Begin with init_streaming_state"
            )
        inputs = hidden_states
        frozen, sublayer_state = stream_part(self.base_layer, hidden_states, state.sublayer, step)
        result, branches = frozen, {}
        for name in acting:
            added, branches[name] = self._streamed(name, inputs, frozen, state.branches[name], step)
            result = result + added
            if self.stacked:
                inputs, frozen = inputs + added, frozen + added
        return result, SublayerState(sublayer_state, branches)

    def _streamed(
        self, name: str, inputs: Tensor, frozen: Tensor, state: Any, step: StreamStep
    ) -> tuple[Tensor, StreamState | None]:
        if state is None:
            return self._added(name, inputs, frozen, step.lengths, None, None), None
        branch, projections, source = self._beside(name, inputs, frozen)
        added, state = branch.stream(source, projections, state, step)
        return self._weighted(name, added, frozen), state

    def _lengths(self, call: "AttentionCall | None", hidden_states: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Valid frames of each row of an encoder, or which of a decoder's tokens are valid; none where all are."""
        if call is None:
            return None, None
        batch, time, _ = hidden_states.shape
        if call.padding is not None:
            return time - call.padding, None
        if call.mask is None:
            return None, None
        if self.sublayer.stack.kind == "encoder":
            return mask_lengths(call.mask), None
        return None, valid_keys(call.mask)[:, -time:].expand(batch, -1)

    def _decoded(self, name: str, call: "AttentionCall | None", hidden_states: Tensor) -> DecodedState | None:
        """What an adapter's mixer remembers of the tokens in the cache, if there is one."""
        context = cast(Branch, self._part("branch")[name]).context
        if call is None or call.cache is None or context == "frame":
            return None
        key = (self.prefix, self.sublayer.role, name)
        return decoded_state(call.cache, self.sublayer.layer, key, *hidden_states.shape[:2])

    def _added(
        self,
        name: str,
        inputs: Tensor,
        frozen: Tensor,
        lengths: Tensor | None,
        valid: Tensor | None,
        decoded: DecodedState | None,
    ) -> Tensor:
        branch, projections, source = self._beside(name, inputs, frozen)
        if valid is not None and branch.context != "frame":
            # Prompts of different lengths are padded on the left, where a mixer would begin.
            source, lengths = compact(source, valid)
        # Only a branch that was made for decoders knows the last argument.
        added = (
            branch(source, projections, lengths) if decoded is None else branch(source, projections, lengths, decoded)
        )
        if valid is not None and branch.context != "frame":
            added = spread(added, valid)
        return self._weighted(name, added, frozen)

    def _beside(self, name: str, inputs: Tensor, frozen: Tensor) -> tuple[Branch, Any, Tensor]:
        """An adapter's branch, its projections, and what they are given."""
        branch = cast(Branch, self._part("branch")[name])
        projections = branch.projections
        if projections is None and name in self.owners:
            projections = cast(Projections, self.owners[name]._part("shared")[name])
        source = frozen if branch.sequential else inputs
        # An adapter keeps float32 on a half-precision host, so it is cast to and from at this border.
        owner = branch if projections is None else projections
        return branch, projections, self._cast_input_dtype(source, next(owner.parameters()).dtype)

    def _weighted(self, name: str, added: Tensor, frozen: Tensor) -> Tensor:
        added = added.to(frozen.dtype)
        return self.weights[name] * added if name in self.weights else added

    def _sublayer_input(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        if not self.taps_input:
            return cast(Tensor, args[0] if args else kwargs["hidden_states"])
        # Not kept: an activation left on a module would stay in memory and could not be copied or pickled.
        inputs, self.tapped = self.tapped, None
        if inputs is None:
            raise HostError("the feed-forward sublayer's output was asked for without its input; call the whole layer")
        return inputs

    def detach_hooks(self) -> None:
        """Remove the hooks on the modules that see the sublayer's input, the mask and the padding."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
