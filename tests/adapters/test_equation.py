"""What the adapter computes: the paper's equation 3, on each host, against the parts computed by hand."""

from typing import Any

import pytest
import torch
from adapters.conftest import SMALL, Host, make_whisper_seq2seq, train_step
from peft import get_peft_model
from torch import Tensor, nn

from mambavox.adapters import MambAdapterConfig
from mambavox.adapters.branch import Branch, Projections
from mambavox.adapters.hosts import find_stacks
from mambavox.adapters.sublayer import SublayerAdapter
from mambavox.adapters.tokens import TokenGrid
from mambavox.nn.streaming import StreamStep


def first(value: Any) -> Tensor:
    return value[0] if isinstance(value, tuple) else value


class Recorder:
    """Keeps a module's last input and output."""

    def __init__(self, module: nn.Module) -> None:
        self.input: Tensor | None = None
        self.output: Tensor | None = None
        module.register_forward_hook(self, with_kwargs=True)

    def __call__(self, module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        self.input = args[0] if args else kwargs["hidden_states"]
        self.output = first(output)


@pytest.mark.parametrize("placement", ["ffn", "attention"])
@pytest.mark.parametrize("insertion", ["parallel", "sequential"])
def test_reads_the_sublayers_input_or_output_and_adds_to_its_output(host: Host, placement: str, insertion: str) -> None:
    model = get_peft_model(host.model(), MambAdapterConfig(**SMALL, placement=placement, insertion=insertion)).eval()
    train_step(model, host.inputs(), steps=2)
    base = model.get_base_model()
    sublayer = [s for s in find_stacks(base)[0].sublayers() if s.role == placement][1]
    layer = base.get_submodule(sublayer.target)
    assert isinstance(layer, SublayerAdapter)
    norm, whole = Recorder(base.get_submodule(sublayer.norm)), Recorder(layer)
    frozen = Recorder(layer.base_layer)
    with torch.no_grad():
        model(**host.inputs())
        source = norm.output if insertion == "parallel" else frozen.output
        branch = layer.mambadapter_branch["default"]
        shared = layer.owners["default"].mambadapter_shared["default"]
        added = branch.scale * shared.up(branch.mixer(shared.down(source)))
    assert added.abs().max() > 0
    torch.testing.assert_close(whole.output, frozen.output + added, rtol=0, atol=0)


@pytest.mark.parametrize("residual", ["linear", "gelu"])
@pytest.mark.parametrize("mixer_dim", [None, 3])
def test_a_residual_goes_past_the_norm_and_the_mixer(residual: str, mixer_dim: int | None) -> None:
    config = MambAdapterConfig(**SMALL, residual=residual, mixer_norm="rms", mixer_dim=mixer_dim, sharing="none")
    sublayer = find_stacks(make_whisper_seq2seq())[0].sublayers()[1]
    branch, width = Branch(config, sublayer), mixer_dim or 4
    assert branch.projections is not None and branch.scale is not None
    for parameter in branch.parameters():
        nn.init.normal_(parameter, std=0.5)
    x = torch.randn(2, 9, 16)
    lengths = torch.tensor([9, 5])
    with torch.no_grad():
        narrow = branch.projections.down(x)
        into = narrow[..., :width]
        into = into * torch.rsqrt(into.square().mean(-1, keepdim=True) + 1e-5) * branch.mixer_norm.weight
        mixed = nn.functional.gelu(narrow) if residual == "gelu" else narrow.clone()
        mixed[..., :width] += branch.mixer(into, lengths)
        expected = branch.scale * branch.projections.up(mixed)
        torch.testing.assert_close(branch(x, branch.projections, lengths), expected)


def test_a_residual_keeps_a_stream_equal_to_the_whole() -> None:
    config = MambAdapterConfig(**SMALL, residual="gelu", mixer_norm="rms", mixer_dim=3, sharing="none", gate="token")
    branch = Branch(config, find_stacks(make_whisper_seq2seq())[0].sublayers()[1])
    for parameter in branch.parameters():
        nn.init.normal_(parameter, std=0.5)
    x = torch.randn(2, 9, 16)
    with torch.no_grad():
        whole, state, pieces, past = branch(x, branch.projections, None), branch.init_state(2), [], 0
        for piece in x.split([1, 5, 3], dim=1):
            time = piece.shape[1]
            step = StreamStep(time=time, counts=[time] * 2, past=[past] * 2, device=x.device)
            added, state = branch.stream(piece, branch.projections, state, step)
            pieces.append(added)
            past += time
    torch.testing.assert_close(torch.cat(pieces, 1), whole)


def test_a_down_projection_of_unit_variance() -> None:
    projected = Projections(512, 64, 64, "unit").down(torch.randn(100, 512))
    assert 0.9 < projected.std() < 1.1
    assert not Projections(512, 64, 64, "unit").down.bias.any()


def test_projections_are_shared_over_layers_placements_and_stacks() -> None:
    model = get_peft_model(make_whisper_seq2seq(), MambAdapterConfig(**SMALL, placement="both", where="both"))
    layers = [m for m in model.modules() if isinstance(m, SublayerAdapter)]
    assert len(layers) == 8, "two sublayers, two layers, two stacks; cross-attention gets none"
    assert len({id(layer.owners["default"]) for layer in layers}) == 1
    assert sum(name.endswith("shared.default.down.weight") for name, _ in model.named_parameters()) == 1


def test_two_models_and_two_adapters_share_nothing(host: Host) -> None:
    config = MambAdapterConfig(**SMALL)
    one, two = (get_peft_model(host.model(), MambAdapterConfig(**SMALL)) for _ in range(2))
    one.add_adapter("second", config)
    pointers = [
        {p.data_ptr() for name, p in model.named_parameters() if f".{adapter}." in name}
        for model, adapter in ((one, "default"), (one, "second"), (two, "default"))
    ]
    assert all(pointers)
    assert not pointers[0] & pointers[1] and not pointers[0] & pointers[2]


def test_a_second_adapter_on_other_layers_has_its_own_owner(host: Host) -> None:
    model = get_peft_model(host.model(), MambAdapterConfig(**SMALL, layers_to_transform=[1]))
    model.add_adapter("second", MambAdapterConfig(**SMALL))
    owners = {
        adapter: [name for name, _ in model.named_parameters() if name.endswith(f"shared.{adapter}.down.weight")]
        for adapter in ("default", "second")
    }
    assert all(len(names) == 1 for names in owners.values())
    assert "layers.1." in owners["default"][0] and "layers.0." in owners["second"][0]


def test_paper_initialisation() -> None:
    model = get_peft_model(
        make_whisper_seq2seq(), MambAdapterConfig(bottleneck_dim=64, init="paper", layers_to_transform=0)
    )
    parts = {name.split(".default.")[1]: p for name, p in model.named_parameters() if ".default." in name}
    assert parts["scale"].item() == pytest.approx(0.1)
    for name in ("down.weight", "down.bias"):
        assert 0.006 < parts[name].std() < 0.014
    for name in ("up.weight", "up.bias", "mixer.conv1d.bias"):
        assert not parts[name].any()
    weight = parts["mixer.in_proj.weight"]
    bound = 0.02 * (6 / sum(weight.shape)) ** 0.5
    assert 0.95 * bound < weight.abs().max() <= bound
    torch.testing.assert_close(parts["mixer.A_log"].exp(), torch.arange(1.0, 9.0).expand(128, 8))
    assert (parts["mixer.D"] == 1).all()
    assert parts["mixer.dt_proj.bias"].any()


def test_paper_initialisation_is_nearly_silent() -> None:
    """Why it is not the default: the figures of the mixer's docstring."""
    loudness, scan_share = {}, {}
    for init in ("paper", "mamba"):
        torch.manual_seed(0)
        mixer = MambAdapterConfig(init=init).make_mixer(TokenGrid()).double()
        projected = Projections(768, 12, 12).double().down(torch.randn(2, 200, 768, dtype=torch.float64))
        with torch.no_grad():
            loudness[init] = float(mixer(projected).std())
            mixer.D.zero_()
            scan_share[init] = float(mixer(projected).std()) / loudness[init]
    assert loudness["paper"] < 1e-9 and loudness["mamba"] > 1e-3
    assert scan_share["paper"] < 1e-12 and scan_share["mamba"] > 1e-3
