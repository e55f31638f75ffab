"""isoform: one Transformer in all its forms.

Public names are imported when they are first used, so that `import isoform` doesn't import torch. docs/python.md shows
how they are used.
"""

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from isoform.batch import Batch as Batch
    from isoform.batch import Encoding as Encoding
    from isoform.batch import Example as Example
    from isoform.batch import Tokens as Tokens
    from isoform.codecs.codec import Codec as Codec
    from isoform.codecs.codec import TextCodec as TextCodec
    from isoform.codecs.codec import check_codec as check_codec
    from isoform.codecs.codec import check_encodings as check_encodings
    from isoform.codecs.config import BPE as BPE
    from isoform.codecs.config import Bytes as Bytes
    from isoform.codecs.config import Characters as Characters
    from isoform.codecs.config import Patches as Patches
    from isoform.codecs.config import Tokenizer as Tokenizer
    from isoform.codecs.origin import SpecialIds as SpecialIds
    from isoform.codecs.registry import build_codec as build_codec
    from isoform.data.config import Data as Data
    from isoform.data.config import Part as Part
    from isoform.evaluation.predictions import classify as classify
    from isoform.experiment import evaluate as evaluate
    from isoform.experiment import generate as generate
    from isoform.experiment import load_recipe as load_recipe
    from isoform.experiment import predict as predict
    from isoform.experiment import train as train
    from isoform.generation.config import Beam as Beam
    from isoform.generation.config import Sampling as Sampling
    from isoform.inspection.attention import attention_weights as attention_weights
    from isoform.inspection.recording import record as record
    from isoform.inspection.recording import recordable as recordable
    from isoform.mask import Causal as Causal
    from isoform.mask import Coordinates as Coordinates
    from isoform.mask import FixedSparse as FixedSparse
    from isoform.mask import Full as Full
    from isoform.mask import Local2D as Local2D
    from isoform.mask import Mask as Mask
    from isoform.mask import Prefix as Prefix
    from isoform.mask import Strided as Strided
    from isoform.mask import Window as Window
    from isoform.mask import dense_mask as dense_mask
    from isoform.model.baseline_config import NGramMlp as NGramMlp
    from isoform.model.config import BlockConfig as BlockConfig
    from isoform.model.config import Convolution as Convolution
    from isoform.model.config import Initialization as Initialization
    from isoform.model.config import Linear as Linear
    from isoform.model.config import Lookup as Lookup
    from isoform.model.config import LowRank as LowRank
    from isoform.model.config import MaskedVocabulary as MaskedVocabulary
    from isoform.model.config import ModelConfig as ModelConfig
    from isoform.model.config import Pooled as Pooled
    from isoform.model.config import StackConfig as StackConfig
    from isoform.model.config import Vocabulary as Vocabulary
    from isoform.model.growth import deepen as deepen
    from isoform.model.growth import upcycle as upcycle
    from isoform.model.growth import widen as widen
    from isoform.model.mixers.external import check_mixer as check_mixer
    from isoform.model.parts import LSTM as LSTM
    from isoform.model.parts import ALiBi as ALiBi
    from isoform.model.parts import Attention as Attention
    from isoform.model.parts import Buckets as Buckets
    from isoform.model.parts import CausalConvolution as CausalConvolution
    from isoform.model.parts import Dense as Dense
    from isoform.model.parts import Depth as Depth
    from isoform.model.parts import ExpertChoice as ExpertChoice
    from isoform.model.parts import Experts as Experts
    from isoform.model.parts import Gated as Gated
    from isoform.model.parts import Grid as Grid
    from isoform.model.parts import LayerNorm as LayerNorm
    from isoform.model.parts import Learned as Learned
    from isoform.model.parts import LinearExtension as LinearExtension
    from isoform.model.parts import LinearRecurrence as LinearRecurrence
    from isoform.model.parts import Llama3Extension as Llama3Extension
    from isoform.model.parts import NTKExtension as NTKExtension
    from isoform.model.parts import RMSNorm as RMSNorm
    from isoform.model.parts import Rotary as Rotary
    from isoform.model.parts import Shaw as Shaw
    from isoform.model.parts import Sinusoidal as Sinusoidal
    from isoform.model.parts import TokenChoice as TokenChoice
    from isoform.model.parts import YaRNExtension as YaRNExtension
    from isoform.model.presets import preset as preset
    from isoform.model.transformer import Transformer as Transformer
    from isoform.objectives.config import Classification as Classification
    from isoform.objectives.config import Contrastive as Contrastive
    from isoform.objectives.config import Denoiser as Denoiser
    from isoform.objectives.config import DenoiserMixture as DenoiserMixture
    from isoform.objectives.config import Distillation as Distillation
    from isoform.objectives.config import Masked as Masked
    from isoform.objectives.config import Regression as Regression
    from isoform.objectives.config import Seq2seq as Seq2seq
    from isoform.objectives.config import SpanCorruption as SpanCorruption
    from isoform.objectives.config import Tagging as Tagging
    from isoform.objectives.config import TokenRegression as TokenRegression
    from isoform.objectives.views import View as View
    from isoform.objectives.views import build_view as build_view
    from isoform.objectives.views import check_view as check_view
    from isoform.objectives.views import next_token as next_token
    from isoform.outside import External as External
    from isoform.outside import external as external
    from isoform.recipe import Recipe as Recipe
    from isoform.run import Run as Run
    from isoform.run import export as export
    from isoform.run import load as load
    from isoform.run import save as save
    from isoform.scaling.fitting import fit_chinchilla as fit_chinchilla
    from isoform.scaling.fitting import fit_power_law as fit_power_law
    from isoform.scaling.laws import Points as Points
    from isoform.trained import Trained as Trained
    from isoform.training.config import AdamW as AdamW
    from isoform.training.config import Cosine as Cosine
    from isoform.training.config import InverseSquareRoot as InverseSquareRoot
    from isoform.training.config import Muon as Muon
    from isoform.training.config import Training as Training
    from isoform.training.config import WarmupStableDecay as WarmupStableDecay

_NAMES = {
    "experiment": "evaluate generate load_recipe predict train",
    "run": "Run export load save",
    "trained": "Trained",
    "outside": "External external",
    "evaluation.predictions": "classify",
    "inspection.attention": "attention_weights",
    "inspection.recording": "record recordable",
    "model.presets": "preset",
    "model.transformer": "Transformer",
    "model.growth": "deepen upcycle widen",
    "model.mixers.external": "check_mixer",
    "mask": "Causal Coordinates FixedSparse Full Local2D Mask Prefix Strided Window dense_mask",
    "batch": "Batch Encoding Example Tokens",
    "codecs.codec": "Codec TextCodec check_codec check_encodings",
    "codecs.origin": "SpecialIds",
    "codecs.registry": "build_codec",
    "objectives.views": "View build_view check_view next_token",
    "scaling.fitting": "fit_chinchilla fit_power_law",
    "scaling.laws": "Points",
    # configs
    "recipe": "Recipe",
    "data.config": "Data Part",
    "codecs.config": "BPE Bytes Characters Patches Tokenizer",
    "objectives.config": "Classification Contrastive Denoiser DenoiserMixture Distillation Masked Regression Seq2seq "
    "SpanCorruption Tagging TokenRegression",
    "model.config": "BlockConfig Convolution Initialization Linear Lookup LowRank MaskedVocabulary ModelConfig Pooled "
    "StackConfig Vocabulary",
    "model.parts": "ALiBi Attention Buckets CausalConvolution Dense Depth ExpertChoice Experts Gated Grid LSTM "
    "LayerNorm Learned LinearExtension LinearRecurrence Llama3Extension NTKExtension RMSNorm Rotary Shaw Sinusoidal "
    "TokenChoice YaRNExtension",
    "model.baseline_config": "NGramMlp",
    "training.config": "AdamW Cosine InverseSquareRoot Muon Training WarmupStableDecay",
    "generation.config": "Beam Sampling",
}
"""The public names of each module."""

_MODULE_OF = {name: f"isoform.{module}" for module, names in _NAMES.items() for name in names.split()}

__all__ = ["__version__", *sorted(_MODULE_OF)]


def __getattr__(name: str) -> object:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'isoform' has no attribute {name!r}")
    return getattr(import_module(_MODULE_OF[name]), name)


def __dir__() -> list[str]:
    return __all__
