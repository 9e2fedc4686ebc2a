"""Mixtures of adapters by their definitions, and what each parameter is."""

import pytest
import torch
import torch.nn.functional as F
from adapters.conftest import HOSTS, logits, make_whisper_seq2seq, train_step, trainable
from peft import get_peft_model
from torch import Tensor
from transformers import ASTConfig, ASTModel

from mambavox.adapters import MixtureOfAdaptersConfig
from mambavox.adapters.mixture import Mixture
from mambavox.errors import ConfigError


def mixture(**options: object) -> Mixture:
    """A mixture in float64 none of whose tensors is zero."""
    made = Mixture(MixtureOfAdaptersConfig(**{"num_experts": 3, "bottleneck_dim": 2, **options}), 8).double()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    return made


def expert(module: torch.nn.Module, x: Tensor) -> Tensor:
    return module.up(F.gelu(module.down(x)))


def test_dense_routing_weighs_every_experts_output() -> None:
    made, x = mixture(routing="dense"), torch.randn(2, 5, 8, dtype=torch.float64)
    shares = made.router(x).softmax(-1)
    expected = sum(shares[..., n, None] * expert(made.experts[n], x) for n in range(3))
    torch.testing.assert_close(made(x, None, None), expected)


def test_soft_routing_row_by_row() -> None:
    made, x = mixture(num_slots=2), torch.randn(2, 5, 8, dtype=torch.float64)
    output = made(x, None, None)
    for row, tokens in enumerate(x):
        scores = tokens @ made.slots.flatten(1)  # (tokens, experts * slots)
        mixtures = scores.softmax(0).T @ tokens
        outputs = torch.stack([expert(made.experts[slot // 2], mixtures[slot]) for slot in range(6)])
        torch.testing.assert_close(output[row], scores.softmax(1) @ outputs)


def test_padding_has_no_part_in_the_slots() -> None:
    made, x = mixture(), torch.randn(1, 4, 8, dtype=torch.float64)
    padded = torch.cat([x, torch.full((1, 3, 8), torch.nan, dtype=torch.float64)], 1)
    lengths = torch.tensor([4])
    torch.testing.assert_close(made(padded.nan_to_num(9.0), None, lengths)[:, :4], made(x, None, None))
    # Not even undefined padding: what it is multiplied with is zero, and so is it.
    assert torch.isfinite(made(padded, None, lengths)[:, :4]).all()
    assert torch.isfinite(made(padded.nan_to_num(), None, torch.tensor([0]))).all()


@pytest.mark.parametrize(
    ("options", "routing"),
    [({"num_slots": 2}, 768 * 7 * 2), ({"routing": "dense"}, 7 * 769), ({"placement": "both"}, 768 * 7)],
)
def test_parameter_count(options: dict, routing: int) -> None:
    with torch.device("meta"):
        model = ASTModel(ASTConfig())
    config = MixtureOfAdaptersConfig(train_norms=False, **options)
    count = sum(p.numel() for p in trainable(get_peft_model(model, config)).values())
    sublayers = 24 if config.placement == "both" else 12
    assert count == sublayers * (7 * (2 * 768 * 6 + 6 + 768) + routing)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ConfigError, match="num_slots is 2 and routing 'dense', which has no slots"):
        MixtureOfAdaptersConfig(routing="dense", num_slots=2)
    with pytest.raises(ConfigError, match="routing is 'top'; expected one of soft, dense"):
        MixtureOfAdaptersConfig(routing="top")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="where is 'decoder', and this adapter lets a frame see those after it"):
        MixtureOfAdaptersConfig(where="decoder")
    get_peft_model(make_whisper_seq2seq(), MixtureOfAdaptersConfig(routing="dense", where="both"))


def test_mixed_with_weights_and_for_each_row() -> None:
    """What the other adapters can do together, mixtures can."""
    host = HOSTS[0]
    model = get_peft_model(host.model(), MixtureOfAdaptersConfig(train_norms=False)).eval()
    model.add_adapter("second", MixtureOfAdaptersConfig(routing="dense", train_norms=False))
    for name in ("second", "default"):
        model.set_adapter(name)
        train_step(model, host.inputs(), steps=3)
    alone = logits(model, host.inputs())
    model.combine_adapters(["default", "second"], weights=[1.0, 0.0])
    torch.testing.assert_close(logits(model, host.inputs()), alone)
    with torch.no_grad():
        rows = model(**host.inputs(), adapter_names=["__base__", "default"]).logits
    torch.testing.assert_close(rows[0], logits(host.model(), host.inputs())[0])
    torch.testing.assert_close(rows[1], alone[1])
