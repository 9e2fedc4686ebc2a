"""What the configurations of all methods have in common, whatever they train."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, cast

from peft import PeftConfig, PeftType

from mambavox.errors import ConfigError
from mambavox.files import make_readable

_LOADING = """
## Loading

Import `mambavox` first: the import is what makes this adapter's type known to PEFT.

```python
import mambavox  # noqa: F401
from peft import PeftModel

model = PeftModel.from_pretrained(base_model, "this folder")
```
"""


@dataclass
class MethodConfig(PeftConfig):
    """A PEFT configuration of this package: checked when made, and saved with a note on how to load it.

    Attributes:
        modules_to_save: further modules to train and save whole, such as the classification head.
        trainable_token_indices: rows of the host's token embeddings to train and save, such as that of a new language:
            their indices, or the indices by the embedding's name.

    Raises:
        ConfigError: a value that is unknown or does not fit.
    """

    method: ClassVar[str]
    """The type under which PEFT knows the method, in upper case."""

    modules_to_save: list[str] | None = None
    trainable_token_indices: dict[str, list[int]] | list[int] | None = None

    def __post_init__(self) -> None:
        """Check the values that every method has."""
        super().__post_init__()
        self.peft_type = PeftType(self.method)
        for name in ("target_modules", "exclude_modules", "modules_to_save", "layers_to_transform"):
            value = getattr(self, name, None)
            if isinstance(value, set | tuple):
                setattr(self, name, sorted(value))
        if self.task_type in ("SEQ_2_SEQ_LM", "CAUSAL_LM", "TOKEN_CLS", "QUESTION_ANS"):
            raise ConfigError(
                f"task_type is {self.task_type!r}; expected none: with it PEFT calls the backbone with input_ids, "
                "which audio models do not take. Leave task_type out"
            )

    def _check_choice(self, name: str, choices: Sequence[str]) -> None:
        if getattr(self, name) not in choices:
            raise ConfigError(f"{name} is {getattr(self, name)!r}; expected one of {', '.join(choices)}")

    def _check_sizes(self, *names: str) -> None:
        for name in names:
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ConfigError(f"{name} is {value!r}; expected a whole number of at least 1")

    def layer_is_chosen(self, layer: int) -> bool:
        """Whether ``layers_to_transform``, where the method has it, lets this layer be changed."""
        chosen = getattr(self, "layers_to_transform", None)
        if chosen is None:
            return True
        return layer in cast(Sequence[int], [chosen] if isinstance(chosen, int) else chosen)

    def save_pretrained(self, save_directory: str, **kwargs: Any) -> None:
        """Save as PEFT does, and say in the folder's ``README.md`` how to load the adapter."""
        super().save_pretrained(save_directory, **kwargs)
        make_readable(Path(save_directory))  # the weights, which PEFT has written before
        card = Path(save_directory) / "README.md"
        text = card.read_text(encoding="utf-8") if card.is_file() else "---\nlibrary_name: peft\n---\n"
        if "import mambavox" not in text:
            card.write_text(text.rstrip("\n") + "\n" + _LOADING, encoding="utf-8")
