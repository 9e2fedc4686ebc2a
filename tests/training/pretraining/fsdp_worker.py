"""One of two processes that pre-train together and shard the model, started as accelerate does; by test_fsdp.py.

accelerate shards on devices other than CPUs only, which torch does not mind: here it is told otherwise. Argument: the
YAML of the run; ``--resume`` continues it.
"""

import sys
from typing import Any

from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType

from mambavox.training.pretraining.config import PretrainConfig
from mambavox.training.run import run as train

begin = AcceleratorState.__init__


def shard(self: AcceleratorState, *arguments: Any, fsdp_plugin: Any = None, **options: Any) -> None:
    """Begin as on GPUs."""
    begin(self, *arguments, fsdp_plugin=fsdp_plugin, **options)
    self.fsdp_plugin = fsdp_plugin or getattr(self, "fsdp_plugin", None)
    if self.fsdp_plugin is not None:
        self.distributed_type = DistributedType.FSDP
        if fsdp_plugin is not None and self._mixed_precision != "no":
            fsdp_plugin.set_mixed_precision(self._mixed_precision)


if __name__ == "__main__":
    AcceleratorState.__init__ = shard
    train(PretrainConfig.load(sys.argv[1]), resume="--resume" in sys.argv, keep_checkpoints=True)
