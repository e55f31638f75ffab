"""All families, in the order in which they are tried for a model."""

from __future__ import annotations

from isoform.checkpoint.families.bart import BART, MARIAN
from isoform.checkpoint.families.bert import BERT
from isoform.checkpoint.families.family import Family
from isoform.checkpoint.families.gemma3 import GEMMA3
from isoform.checkpoint.families.gpt2 import GPT2
from isoform.checkpoint.families.llama import LLAMA
from isoform.checkpoint.families.mistral import MISTRAL, MIXTRAL
from isoform.checkpoint.families.modernbert import MODERNBERT
from isoform.checkpoint.families.olmo2 import OLMO2
from isoform.checkpoint.families.qwen3 import QWEN3, QWEN3_MOE
from isoform.checkpoint.families.t5 import T5
from isoform.checkpoint.families.vit import VIT
from isoform.checkpoint.families.whisper import WHISPER

FAMILIES: tuple[Family, ...] = (
    LLAMA,
    MISTRAL,
    QWEN3,
    GEMMA3,
    OLMO2,
    MIXTRAL,
    QWEN3_MOE,
    GPT2,
    BERT,
    MODERNBERT,
    VIT,
    T5,
    BART,
    MARIAN,
    WHISPER,
)
