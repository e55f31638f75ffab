"""All families, in the order in which they are tried for a model."""

from __future__ import annotations

from isoform.checkpoint.families.bart import BART, MARIAN, MBART
from isoform.checkpoint.families.bert import BERT, CAMEMBERT, DISTILBERT, ELECTRA, ROBERTA, XLM_ROBERTA
from isoform.checkpoint.families.experts import MIXTRAL, QWEN3_MOE
from isoform.checkpoint.families.family import Family
from isoform.checkpoint.families.gemma import GEMMA, GEMMA2, GEMMA3
from isoform.checkpoint.families.gpt import BLOOM, COHERE, GPT2, GPT_NEOX, GPTJ, OPT, PHI
from isoform.checkpoint.families.llama import (
    GRANITE,
    LLAMA,
    MISTRAL,
    OLMO,
    OLMO2,
    PHI3,
    QWEN2,
    QWEN3,
    SMOLLM3,
    STABLELM,
    STARCODER2,
)
from isoform.checkpoint.families.modernbert import MODERNBERT
from isoform.checkpoint.families.t5 import MT5, T5
from isoform.checkpoint.families.vit import VIT
from isoform.checkpoint.families.whisper import WHISPER

FAMILIES: tuple[Family, ...] = (
    LLAMA,
    GRANITE,
    MISTRAL,
    QWEN2,
    QWEN3,
    PHI3,
    STABLELM,
    SMOLLM3,
    STARCODER2,
    GEMMA,
    GEMMA2,
    GEMMA3,
    OLMO,
    OLMO2,
    MIXTRAL,
    QWEN3_MOE,
    GPT2,
    GPT_NEOX,
    GPTJ,
    PHI,
    OPT,
    BLOOM,
    COHERE,
    BERT,
    ROBERTA,
    XLM_ROBERTA,
    CAMEMBERT,
    DISTILBERT,
    ELECTRA,
    MODERNBERT,
    VIT,
    T5,
    MT5,
    BART,
    MBART,
    MARIAN,
    WHISPER,
)
