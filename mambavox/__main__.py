"""``python -m mambavox``, which torchrun needs."""

from mambavox.cli import app

if __name__ == "__main__":
    app(prog_name="mambavox")
