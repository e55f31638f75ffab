"""Parts from outside: a codec, view, mixer or optimizer of the user's own, by object or by "my_module:Name".

A name is imported only where the user gives it: in Python, on the command line, or in a recipe file that is named by
its path. Runs record names, and no run directory, model folder or GGUF file causes an import: to use such a run, its
parts are named once more.
"""

from __future__ import annotations

import dataclasses
import importlib
import sys
from collections.abc import Callable, Container, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from isoform.config import ConfigError
from isoform.ranges import config

T = TypeVar("T")
Option = int | float | bool | str


OPTIMIZER = "training.optimizer"
"""The field of a part that only training needs."""


class Name(str):
    """MODULE:NAME with the object that it names, as the user gave it."""

    part: Any


@config
class External:
    """A part that isn't isoform's own, such as torch.optim:SGD or my_module:MyCodec."""

    name: str
    """MODULE:NAME of an object, or of a class or function that makes it."""
    options: dict[str, Option] = dataclasses.field(default_factory=dict)
    """Arguments, by their names."""


class NotNamed(ConfigError):
    """A config has external parts whose names the user didn't give. missing: their fields and names."""

    def __init__(self, where: str, missing: Mapping[str, str]) -> None:
        self.missing = missing
        self.what = (
            f"{where} was made with {', '.join(dict.fromkeys(missing.values()))}, which isn't isoform's own and is "
            f"imported only if you name it"
        )
        super().__init__(f"{self.what}; in Python by the arguments codec, view and mixers of isoform.load")

    def flags(self, *, of_recipe: bool) -> list[str]:
        """The flags that give the names: of a verb that takes a recipe, or of one that takes a trained model."""
        if of_recipe:
            return [word for field, name in self.missing.items() for word in (f"--{field}", name)]
        mixers = dict.fromkeys(name for field, name in self.missing.items() if field.endswith("mixer"))
        others = {field: name for field, name in self.missing.items() if field in ("codec", "view")}
        words = [word for field, name in others.items() for word in (f"--{field}", name)]
        return [*words, *(["--mixers", *mixers] if mixers else [])]


def external(part: Any, **options: Option) -> External:
    """The config of a part: a class, a function or an object, or its name, MODULE:NAME, which is imported.

    options: arguments of a class or function. Raises ConfigError for a name that doesn't exist.
    """
    if isinstance(part, str):
        return External(name=_imported(part), options=options)
    return External(name=_name(name_of(part), part), options=options)


def name_of(part: Any) -> str:
    """MODULE:NAME of a class or function; of another object that of a variable of the module it comes from, or if there
    is none, of its class."""
    if getattr(part, "__qualname__", None):
        return f"{part.__module__}:{part.__qualname__}"
    modules = [getattr(each, "__module__", None) for each in (type(part), *getattr(part, "__dict__", {}).values())]
    for module in filter(None, map(sys.modules.get, filter(None, modules))):
        for name, value in vars(module).items():
            if value is part:
                return f"{module.__name__}:{name}"
    return name_of(type(part))


def resolved(part: External, where: str) -> Any:
    """The object that an external part names. Raises NotNamed for a name that the user didn't give."""
    name: str | Name = part.name
    if isinstance(name, Name):
        return name.part
    raise NotNamed(f"the {where}", {where: part.name})


def called(part: External, where: str, *arguments: Any) -> Any:
    """What the class or function of an external part returns for arguments and its options.

    Raises ValueError for a call that it refuses, and NotNamed.
    """
    make = resolved(part, where)
    if not callable(make):
        raise ConfigError(f"{where}: {part.name} is {type(make).__name__}; name a class or a function")
    try:
        return make(*arguments, **part.options)
    except (TypeError, ValueError) as error:
        options = ", ".join(f"{name}={value!r}" for name, value in part.options.items())
        raise ConfigError(f"{where}: {part.name}({options}) is refused: {error}") from error


def named(value: T, names: Container[str] | None = None) -> T:
    """A config, perhaps a draft, with the objects of those external parts whose names are among `names` (None: all),
    which the user gave. Raises ConfigError for a name that doesn't exist."""
    return _mapped(value, lambda name: _imported(name) if names is None or name in names else name)


def with_parts(value: T, parts: Mapping[str, Any]) -> T:
    """A config with objects by their names."""
    return _mapped(value, lambda name: _name(name, parts[name]) if name in parts else name)


def unnamed(value: Any) -> dict[str, str]:
    """The names of external parts that the user didn't give, by their paths in a config."""
    return {path: part.name for path, part in _externals(value) if not isinstance(part.name, Name)}


def parts_of(value: Any) -> dict[str, Any]:
    """The objects of a config's external parts, by their names."""
    names = [part.name for _, part in _externals(value)]
    return {str(name): name.part for name in names if isinstance(name, Name)}


def _externals(value: Any, where: str = "") -> Iterator[tuple[str, External]]:
    """The external parts of a config, with their dotted paths."""
    if isinstance(value, External):
        yield where, value
        return
    items: Mapping[str, Any] = {}
    if isinstance(value, tuple):
        items = {str(i): item for i, item in enumerate(value)}
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        items = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    for name, item in items.items():
        yield from _externals(item, f"{where}.{name}" if where else name)


def _mapped(value: Any, change: Callable[[str], str]) -> Any:
    """A config with the name of each external part changed; nothing is checked anew, as it may be a draft."""
    if isinstance(value, tuple):
        items = tuple(_mapped(item, change) for item in value)
        return items if any(a is not b for a, b in zip(items, value, strict=True)) else value
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return value
    old = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    new = {name: _mapped(item, change) for name, item in old.items()}
    if isinstance(value, External):
        new["name"] = change(value.name)
    if all(new[name] is old[name] for name in old):
        return value
    copy = object.__new__(type(value))
    for name, item in new.items():
        object.__setattr__(copy, name, item)
    return copy


def _name(name: str, part: Any) -> Name:
    full = Name(name)
    full.part = part
    return full


def _imported(name: str) -> Name:
    """A name with its object. The current folder is searched after all others."""
    if isinstance(name, Name):
        return name
    module, _, path = name.partition(":")
    if not module or not path:
        raise ConfigError(f"{name!r} names no part; write MODULE:NAME, such as my_module:MyCodec")
    here = str(Path.cwd())
    sys.path.append(here)
    try:
        part: Any = importlib.import_module(module)
    except Exception as error:
        what = f"{type(error).__name__}: {error}"
        raise ConfigError(
            f"{name}: the module {module} can't be imported ({what}); it lies in the current folder, or is installed"
        ) from error
    finally:
        sys.path.remove(here)
    for step in path.split("."):
        try:
            part = getattr(part, step)
        except AttributeError:
            raise ConfigError(f"{name}: {module} has no {path}; check the name") from None
    return _name(name, part)


def refusal(name: str, kind: str, expected: str, got: object) -> ConfigError:
    """The error for a part of another type than it should be."""
    return ConfigError(f"{kind}: {name} is {type(got).__name__}, not {expected}; see docs/python.md")


def build_mixer(config: External, model_dim: int) -> Any:
    """The user's torch.nn.Module. Raises ValueError for something else, and NotNamed."""
    import torch  # here, since costs are counted before it is loaded

    part = called(config, "mixer", model_dim)
    if not isinstance(part, torch.nn.Module):
        raise refusal(config.name, "mixer", "a torch.nn.Module", part)
    return part


def num_numbers(config: External, model_dim: int) -> tuple[int, int]:
    """Parameters of a user's mixer: in arrays of two and more dimensions, and in vectors."""
    import torch

    with torch.device("meta"):
        parameters = [*build_mixer(config, model_dim).parameters()]
    matrices = sum(p.numel() for p in parameters if p.dim() > 1)
    return matrices, sum(p.numel() for p in parameters) - matrices
