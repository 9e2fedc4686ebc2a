"""One of two processes that train each kind of adapter together; started by test_training.py.

Arguments: rank, and an empty folder both processes meet in.
"""

import sys
from datetime import timedelta
from pathlib import Path

import torch
from adapters.conftest import FAMILY, HOSTS, METHOD_OPTIONS, train_without_dropout, trainable
from torch import Tensor, nn
from torch.distributed import destroy_process_group, init_process_group
from torch.nn.parallel import DistributedDataParallel

from mambavox.adapters import apply_method


def loss(model: nn.Module, batch: Tensor) -> Tensor:
    return model(input_values=batch).logits.log_softmax(-1)[:, 1].mean()


def train(row: str, rank: int) -> None:
    """Three steps on halves of a batch, beside the same steps on the whole of it in one process."""
    host = HOSTS[0]
    batch = torch.randn(4, 16, 8, generator=torch.Generator().manual_seed(2))
    models = []
    for _ in range(2):
        model = apply_method(host.model(), *METHOD_OPTIONS[row], check=False).double()
        train_without_dropout(model)
        models.append(model)
    alone, together = models[0], DistributedDataParallel(models[1])
    for step in range(3):
        for model, part in ((alone, batch), (together, batch[2 * rank : 2 * rank + 2])):
            optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
            optimizer.zero_grad()
            loss(model, part.double()).backward()
            optimizer.step()
        expected = trainable(alone)
        for name, parameter in trainable(models[1]).items():
            assert torch.allclose(parameter, expected[name], rtol=1e-9, atol=1e-11), f"{row}, step {step}: {name}"


if __name__ == "__main__":
    rank, folder = int(sys.argv[1]), Path(sys.argv[2])
    meeting = (folder / "meeting").absolute().as_uri()
    init_process_group("gloo", init_method=meeting, rank=rank, world_size=2, timeout=timedelta(seconds=60))
    for row in FAMILY:
        train(row, rank)
        (folder / f"{row}.{rank}").touch()
    destroy_process_group()
