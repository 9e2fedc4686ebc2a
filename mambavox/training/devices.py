"""Which of a machine's GPUs a training takes."""

from rich.console import Console
from transformers import TrainingArguments


def take_one_gpu(arguments: TrainingArguments, console: Console | None, mend: str) -> None:
    """Let a process train on one GPU: ``Trainer`` would cut each batch among all of them.

    Args:
        arguments: of the training.
        console: told when there are others.
        mend: what to do about the others, in the words of the note.
    """
    if arguments.n_gpu > 1:
        if console is not None:
            console.print(f"one of {arguments.n_gpu} GPUs is used; {mend}", markup=False)
        arguments._n_gpu = 1
