"""One of two processes that pre-train together, started as torchrun does; by test_processes.py.

Argument: the YAML of the run.
"""

import sys

from mambavox.training.pretraining.config import PretrainConfig
from mambavox.training.pretraining.pretrain import pretrain

if __name__ == "__main__":
    pretrain(PretrainConfig.load(sys.argv[1]))
