"""isoform: one Transformer in all its forms.

Public names are imported when they are first used, so that `import isoform` doesn't import torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from isoform.batch import Batch as Batch
    from isoform.batch import Encoding as Encoding
    from isoform.batch import Example as Example
    from isoform.batch import Tokens as Tokens
    from isoform.codecs.registry import build_codec as build_codec
    from isoform.experiment import generate as generate
    from isoform.experiment import train as train
    from isoform.generation.config import Sampling as Sampling
    from isoform.inspection.recording import record as record
    from isoform.inspection.recording import recordable as recordable
    from isoform.mask import Causal as Causal
    from isoform.mask import FixedSparse as FixedSparse
    from isoform.mask import Full as Full
    from isoform.mask import Local2D as Local2D
    from isoform.mask import Mask as Mask
    from isoform.mask import Prefix as Prefix
    from isoform.mask import Strided as Strided
    from isoform.mask import Window as Window
    from isoform.model.config import ModelConfig as ModelConfig
    from isoform.model.growth import deepen as deepen
    from isoform.model.growth import upcycle as upcycle
    from isoform.model.growth import widen as widen
    from isoform.model.transformer import Transformer as Transformer
    from isoform.objectives.views import View as View
    from isoform.objectives.views import build_view as build_view
    from isoform.objectives.views import check_view as check_view
    from isoform.recipe import Recipe as Recipe
    from isoform.recipe import load_recipe as load_recipe
    from isoform.run import Run as Run
    from isoform.run import export as export
    from isoform.run import load as load
    from isoform.scaling.fitting import fit_chinchilla as fit_chinchilla
    from isoform.scaling.fitting import fit_power_law as fit_power_law
    from isoform.scaling.laws import Points as Points

_MODULE_OF = {
    "Batch": "isoform.batch",
    "Causal": "isoform.mask",
    "Encoding": "isoform.batch",
    "Example": "isoform.batch",
    "FixedSparse": "isoform.mask",
    "Full": "isoform.mask",
    "Local2D": "isoform.mask",
    "Mask": "isoform.mask",
    "ModelConfig": "isoform.model.config",
    "Tokens": "isoform.batch",
    "Points": "isoform.scaling.laws",
    "Prefix": "isoform.mask",
    "Recipe": "isoform.recipe",
    "Run": "isoform.run",
    "Strided": "isoform.mask",
    "Sampling": "isoform.generation.config",
    "Transformer": "isoform.model.transformer",
    "View": "isoform.objectives.views",
    "Window": "isoform.mask",
    "build_codec": "isoform.codecs.registry",
    "build_view": "isoform.objectives.views",
    "check_view": "isoform.objectives.views",
    "deepen": "isoform.model.growth",
    "export": "isoform.run",
    "fit_chinchilla": "isoform.scaling.fitting",
    "fit_power_law": "isoform.scaling.fitting",
    "generate": "isoform.experiment",
    "load": "isoform.run",
    "load_recipe": "isoform.recipe",
    "record": "isoform.inspection.recording",
    "recordable": "isoform.inspection.recording",
    "train": "isoform.experiment",
    "upcycle": "isoform.model.growth",
    "widen": "isoform.model.growth",
}

__all__ = ["__version__", *sorted(_MODULE_OF)]


def __getattr__(name: str) -> object:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'isoform' has no attribute {name!r}")
    return getattr(import_module(_MODULE_OF[name]), name)


def __dir__() -> list[str]:
    return __all__
