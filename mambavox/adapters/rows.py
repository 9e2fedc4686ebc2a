"""An adapter for each row of a batch: which rows are whose, in heads and tables of tokens."""

from collections.abc import Sequence

import torch
from peft.utils.other import ModulesToSaveWrapper, TrainableTokensWrapper
from torch import Tensor

from mambavox.errors import ConfigError


def rows_by_adapter(row_adapters: Sequence[str], batch: Tensor) -> dict[str, Tensor]:
    """The rows of a batch in which each adapter acts.

    Args:
        row_adapters: the adapter of each row.
        batch: ``(batch, ...)``.

    Returns:
        The indices of its rows by the adapter's name.

    Raises:
        ConfigError: the batch has another number of rows than there are names.
    """
    if len(row_adapters) != len(batch):
        raise ConfigError(
            f"adapter_names has {len(row_adapters)} names and the batch {len(batch)} rows; expected one name for each "
            "row (beam search, which repeats rows, is not supported with adapter_names)"
        )
    return {
        name: torch.tensor([row for row, own in enumerate(row_adapters) if own == name], device=batch.device)
        for name in dict.fromkeys(row_adapters)
    }


class HeadOfEachRow:
    """Forward hook on a head that PEFT has copied for each adapter: each row's output comes from its adapter's copy.

    Args:
        row_adapters: the adapter of each row.
    """

    def __init__(self, row_adapters: Sequence[str]) -> None:
        self.row_adapters = row_adapters

    def __call__(self, head: ModulesToSaveWrapper, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        """Replace the output of the active adapter's copy."""
        output = output.clone()
        for name, rows in rows_by_adapter(self.row_adapters, output).items():
            own_copy = dict(head.modules_to_save.items()).get(name, head.original_module)
            output[rows] = own_copy(args[0][rows])
        return output


class TokensOfEachRow:
    """Forward hook on embeddings of which PEFT trains some rows for each adapter: each row of the batch gets its own.

    Args:
        row_adapters: the adapter of each row.
    """

    def __init__(self, row_adapters: Sequence[str]) -> None:
        self.row_adapters = row_adapters

    def __call__(self, wrapper: TrainableTokensWrapper, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        """Replace the output of the active adapter's rows."""
        output, tokens = output.clone(), wrapper.token_adapter
        for name, rows in rows_by_adapter(self.row_adapters, output).items():
            own = [name] if name in tokens.trainable_tokens_delta else []
            output[rows] = tokens.forward_adapters(args[0][rows], own)
        return output
