"""One of two processes that pre-train together, started as torchrun does; by test_processes.py.

Argument: the YAML of the run.
"""

import sys

from mambavox.training.pretraining.config import PretrainConfig
from mambavox.training.run import run as train

if __name__ == "__main__":
    train(PretrainConfig.load(sys.argv[1]))
