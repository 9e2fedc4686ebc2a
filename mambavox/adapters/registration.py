"""Makes a method known to PEFT, so that saving, loading and switching work as for PEFT's own methods."""

from typing import Any

from peft import PeftType
from peft.utils import register_peft_method

from mambavox.adapters.tuner import AdapterModel
from mambavox.errors import ConfigError


def register_method(config_class: type[Any], model_class: type[Any] | None = None) -> None:
    """Register a method under its configuration's ``method`` name.

    PEFT's list of types is a closed enumeration without an extension point, so the member is added to it first.

    Args:
        config_class: subclass of :class:`mambavox.adapters.config.AdapterConfig`.
        model_class: its tuner, whose ``prefix`` is the method's name in lower case and an underscore; a plain
            :class:`mambavox.adapters.tuner.AdapterModel` of that prefix where not given.

    Raises:
        ConfigError: the method's name is not upper case.
        KeyError: PEFT, or another package, already has a method or a prefix of that name.
    """
    name: str = config_class.method
    if not (name.isidentifier() and name.isupper()):
        raise ConfigError(
            f"{config_class.__name__}.method is {name!r}; expected an upper-case word, such as 'MYADAPTER'"
        )
    prefix = f"{name.lower()}_"
    if model_class is None:
        model_class = type(f"{config_class.__name__.removesuffix('Config')}Model", (AdapterModel,), {"prefix": prefix})
    if name not in PeftType.__members__:
        member = str.__new__(PeftType, name)
        member._name_ = name
        member._value_ = name
        member.__objclass__ = PeftType
        member._sort_order_ = len(PeftType.__members__)
        # The class itself refuses new attributes that are members; its base does not.
        type.__setattr__(PeftType, name, member)
        PeftType._member_names_.append(name)
        PeftType._member_map_[name] = member
        PeftType._value2member_map_[name] = member
    register_peft_method(name=name.lower(), config_cls=config_class, model_cls=model_class, prefix=prefix)
