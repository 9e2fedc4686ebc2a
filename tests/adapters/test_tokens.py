"""The grid of AST's tokens and the orders in which mixers see it."""

from typing import Any

import pytest
import torch
from adapters.conftest import HOSTS, SMALL, make_ast, make_wav2vec2
from peft import get_peft_model
from torch import Tensor

from mambavox.adapters import ConformerAdapterConfig, MambAdapterConfig
from mambavox.adapters.branch import Branch, Projections
from mambavox.adapters.hosts import find_stacks
from mambavox.adapters.tokens import TokenGrid
from mambavox.errors import HostError

GRID = TokenGrid(special_tokens=2, bands=3)


def numbered() -> Tensor:
    """Two special tokens 0, 1 and patches band * 10 + time of three bands and four time steps, in AST's order."""
    patches = [10 * (band + 1) + time for band in range(3) for time in range(4)]
    return torch.tensor([0.0, 1.0, *patches])[None, :, None]


def test_order_of_time() -> None:
    tokens = GRID.by_time(numbered())
    assert tokens[0, :, 0].tolist() == [0, 1, 10, 20, 30, 11, 21, 31, 12, 22, 32, 13, 23, 33]
    assert torch.equal(GRID.by_frequency(tokens), numbered())


def test_split() -> None:
    special, grid = GRID.split(numbered())
    assert special.shape == (1, 2, 1) and grid.shape == (1, 3, 4, 1)
    assert grid[0, 1, :, 0].tolist() == [20, 21, 22, 23]
    for tokens in (2, 4, 13):
        with pytest.raises(HostError, match=rf"given {tokens} tokens; expected 2 special tokens.*3 frequency bands"):
            GRID.split(torch.zeros(1, tokens, 1))


def test_hosts() -> None:
    assert [find_stacks(host.model())[0].tokens for host in HOSTS] == [
        TokenGrid(special_tokens=2, bands=2),
        *[TokenGrid()] * 5,
    ]


def test_the_grid_of_ast_is_that_of_its_patches() -> None:
    """A sound in one time step of one band changes one patch, where the grid says it is."""
    model = make_ast().base_model
    grid = find_stacks(model)[0].tokens
    silent, sound = torch.zeros(1, 16, 8), torch.zeros(1, 16, 8)
    sound[0, 4:8, 0:4] = 1.0  # the second time step of the lowest band
    changed = (model.embeddings(sound) - model.embeddings(silent)).abs().sum(-1, keepdim=True) > 0
    special, patches = grid.split(changed)
    assert not special.any()
    assert patches[0, :, :, 0].tolist() == [[False, True, False, False], [False] * 4]


def branch(**options: Any) -> tuple[Branch, Projections]:
    """A branch in AST, and projections, that put something out."""
    sublayer = find_stacks(make_ast())[0].sublayers()[1]
    config = MambAdapterConfig(**SMALL, **options)
    projections = Projections(16, 4, 4)
    made = Branch(config, sublayer)
    torch.nn.init.normal_(projections.up.weight)
    return made.double(), projections.double()


@pytest.mark.parametrize("mixer", ["mamba", "mamba2", "bimamba"])
def test_orders_by_hand(mixer: str) -> None:
    made, projections = branch(mixer=mixer)
    grid, hidden_states = made.tokens, torch.randn(2, 10, 16, dtype=torch.float64)
    outputs = {}
    for made.token_order in ("frequency", "time", "both"):
        outputs[made.token_order] = made(hidden_states, projections, None)
    made.token_order = "frequency"
    by_hand = grid.by_frequency(made(grid.by_time(hidden_states), projections, None))
    torch.testing.assert_close(outputs["time"], by_hand)
    assert not torch.allclose(outputs["frequency"], outputs["time"])
    torch.testing.assert_close(outputs["both"], (outputs["frequency"] + outputs["time"]) / 2)


@pytest.mark.parametrize(("token_order", "hears"), [("frequency", [True, False]), ("time", [False, True])])
def test_what_comes_later(token_order: str, hears: list[bool]) -> None:
    """Band by band, the lowest band's last step comes before the next band; in time order it comes at the end."""
    made, projections = branch(token_order=token_order)
    hidden_states = torch.randn(1, 10, 16, dtype=torch.float64)
    louder = hidden_states.clone()
    louder[0, 2 + 3] += 1.0  # lowest band, last of four steps
    other_band = 2 + 4  # upper band, first step
    first = made(hidden_states, projections, None)
    changed = (made(louder, projections, None) - first).abs().amax(-1)[0] > 1e-12
    assert bool(changed[other_band]) is hears[0]
    assert bool(changed[2 + 4 + 3]) is True, "the upper band's last step comes later in both orders"
    assert not changed[:5].any(), "special tokens and the steps before"
    assert hears[0] is not hears[1]


@pytest.mark.parametrize("config", [MambAdapterConfig(token_order="time"), ConformerAdapterConfig(token_order="both")])
def test_hosts_in_time_order_take_no_other(config: Any) -> None:
    with pytest.raises(HostError, match=r"token_order is '\w+', .* encoder .* are in time order already"):
        get_peft_model(make_wav2vec2(), config)
