"""Load what a model's folder or the Hugging Face Hub holds: quietly, safely, with one wording of what is missing."""

import difflib
import json
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from transformers import AutoConfig, AutoFeatureExtractor, AutoTokenizer, PretrainedConfig

from mambavox import assets
from mambavox.errors import ConfigError, HostError, MambavoxError

# Warnings that PEFT's and WavLM's code provokes in transformers and torch; users can do nothing about them.
_HARMLESS = (
    "`is_gradient_checkpointing` is deprecated",
    "Support for mismatched key_padding_mask and attn_mask",
    "At least one mel filter has all zero values",  # AST's own 128 bands at 16 kHz
)
# Only masking during pre-training reads it; fine-tuned checkpoints often come without it.
_UNUSED = "masked_spec_embed"


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence transformers' warnings and progress bars. What they would warn of, lost weights, is an error here."""
    logging = transformers.utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            for message in _HARMLESS:
                warnings.filterwarnings("ignore", message)
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


@contextmanager
def loading(name: str, what: str = "backbone") -> Iterator[None]:
    """Turn whatever a library raises about a model that cannot be loaded into one message for the user.

    Args:
        name: an embedded model, a folder, or a name on the Hub.
        what: the model's part in the run, with which the message begins.

    Raises:
        ConfigError: the model cannot be loaded.
    """
    import mambavox.hubert  # noqa: F401  the import is what makes the Auto classes know Mamba-HuBERT

    try:
        with quiet_transformers():
            yield
    except MambavoxError:
        raise
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        if Path(name).expanduser().is_dir():
            raise ConfigError(
                f"{what} {name!r}: the folder holds no model that transformers can load ({reason}); expected "
                "config.json, preprocessor_config.json and model.safetensors"
            ) from error
        if name in assets.names():
            raise ConfigError(f"{what} {name!r}: the embedded model cannot be loaded ({reason})") from error
        near = difflib.get_close_matches(name, assets.names(), n=1)
        raise ConfigError(
            f"{what} {name!r} is no embedded model ({', '.join(assets.names()) or 'there are none'}) and no folder, "
            f"and could not be fetched from the Hugging Face Hub ({reason}). "
            + (f"Did you mean {near[0]}? " if near else "")
            + "Check the name and the connection, or give the folder of a downloaded copy"
        ) from error


def load_config(name: str, what: str = "backbone") -> PretrainedConfig:
    """A model's configuration.

    Args:
        name: an embedded model, a folder, or a name on the Hub.
        what: the model's part in the run, for the message.

    Raises:
        ConfigError: there is no such model, or it cannot be fetched.
    """
    with loading(name, what):
        return AutoConfig.from_pretrained(assets.locate(name), trust_remote_code=False)


def load_extractor(name: str, what: str = "backbone") -> Any:
    """A model's feature extractor; see :func:`load_config`."""
    with loading(name, what):
        return AutoFeatureExtractor.from_pretrained(assets.locate(name), trust_remote_code=False)


def load_tokenizer(name: str, what: str = "model") -> Any:
    """A model's tokenizer; see :func:`load_config`."""
    with loading(name, what):
        return AutoTokenizer.from_pretrained(assets.locate(name), trust_remote_code=False)


def load_model(auto: Any, name: str, what: str = "backbone", *, may_lack: Collection[str] = (), **options: Any) -> Any:
    """A model in float32 all of whose weights are in its checkpoint, but for those that may be new.

    Args:
        auto: class of transformers that loads it, such as ``AutoModelForCTC``.
        name: an embedded model, a folder, or a name on the Hub.
        what: the model's part in the run, for the message.
        may_lack: names of modules whose weights the checkpoint may lack or hold in another size, such as a head's.
        options: further keywords of ``from_pretrained``.

    Raises:
        ConfigError: there is no such model, or it cannot be fetched or read.
        HostError: its checkpoint lacks other weights: they would be random, and often frozen.
    """
    with loading(name, what):
        model, report = auto.from_pretrained(
            assets.locate(name),
            # The checkpoint's own type may be float16, in which nothing can be trained on a CPU.
            dtype=torch.float32,
            output_loading_info=True,
            trust_remote_code=False,
            **options,
        )
    missing = [*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])]
    allowed = {*may_lack, _UNUSED}
    lost = sorted(key for key in set(missing) if not allowed.intersection(key.split(".")))
    if lost:
        besides = " besides the head" if may_lack else ""
        raise HostError(
            f"{what} {name!r}: its checkpoint lacks {len(lost)} weights{besides}, such as {lost[0]}; expected a "
            "complete pre-trained model"
        )
    return model


def load_adapter(model: Any, folder: str | Path, adapter_name: str = "default") -> Any:
    """Put the adapter that a run folder holds around or beside a model.

    Args:
        model: the backbone, or a ``PeftModel`` around it that has other adapters already.
        folder: with ``adapter_config.json`` and ``adapter_model.safetensors``.
        adapter_name: what PEFT calls it.

    Returns:
        The ``PeftModel``.

    Raises:
        ConfigError: the folder holds no adapter, or one that is damaged, pickled or of another backbone.
    """
    from peft import PeftModel

    import mambavox.adapters  # noqa: F401  the import is what makes PEFT know the adapters' types

    adapter_config(folder)
    if not (Path(folder) / "adapter_model.safetensors").is_file():
        raise ConfigError(
            f"{folder}: has no adapter_model.safetensors; expected an adapter in safetensors (pickled weights, .bin, "
            "can run code and are not read): save it again with safe serialization"
        )
    try:
        with quiet_transformers():
            if isinstance(model, PeftModel):
                model.load_adapter(str(folder), adapter_name=adapter_name)
                return model
            return PeftModel.from_pretrained(model, str(folder), adapter_name=adapter_name)
    except MambavoxError:
        raise
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, AttributeError, SafetensorError) as error:
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise ConfigError(
            f"{folder}: its adapter (adapter_config.json, adapter_model.safetensors) cannot be loaded ({reason}); "
            "expected an undamaged adapter of this backbone"
        ) from error


def without_adapters(model: Any) -> Any:
    """The model itself, of one that PEFT may have put adapters around."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def adapter_config(folder: str | Path) -> Mapping[str, Any]:
    """What ``adapter_config.json`` of a folder says.

    Raises:
        ConfigError: the file is missing or damaged.
    """
    path = Path(folder) / "adapter_config.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict) or not isinstance(content.get("peft_type"), str):
            raise ValueError("it names no peft_type")
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: cannot be read ({error}); expected what PEFT saves with an adapter") from error
    return content


def backbone_under(folder: str | Path, backbone: str | None = None) -> str | None:
    """Where the backbone of a folder's adapter lies; ``None`` where the folder holds a whole model.

    Args:
        folder: of a run.
        backbone: where it lies now, if no longer where it was.

    Raises:
        ConfigError: ``adapter_config.json`` is damaged, or names no backbone.
    """
    if not (Path(folder) / "adapter_config.json").is_file():
        return None
    found = backbone or adapter_config(folder).get("base_model_name_or_path")
    if not isinstance(found, str):
        raise ConfigError(f"{folder}: its adapter_config.json names no backbone; say where it lies with --backbone")
    return found


def is_of_type(name: str, model_types: Sequence[str]) -> bool:
    """Whether a name is that of a model of some ``model_type``; ``False`` where there is no such model.

    Args:
        name: an embedded model, a folder, or a name on the Hub.
        model_types: such as ``("whisper",)``.
    """
    try:
        return load_config(name).model_type in model_types
    except ConfigError:
        return False
