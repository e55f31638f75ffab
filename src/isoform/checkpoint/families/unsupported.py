"""Model types that people ask for and that can't be read, with what our model lacks for them."""

from __future__ import annotations

from collections.abc import Mapping

_STATES = "its layers are state spaces, which no mixer here is"
_MIXED = "some of its layers are state spaces, or recurrences with a state per head, which no mixer here is"
_LATENT = "its keys and values are projected from a narrower latent vector"
_SAMPLES = "its stem is a stack of convolutions over samples of sound"
_GLOBAL = "some of its tokens attend to all others, through projections of their own"

REASONS: Mapping[str, str] = {
    **dict.fromkeys(("mamba", "mamba2", "falcon_mamba"), _STATES),
    **dict.fromkeys(("jamba", "bamba", "zamba", "zamba2", "nemotron_h", "falcon_h1", "granitemoehybrid"), _MIXED),
    **dict.fromkeys(("qwen3_next", "recurrent_gemma", "minimax"), _MIXED),
    **dict.fromkeys(("deepseek_v2", "deepseek_v3", "minicpm3"), _LATENT),
    **dict.fromkeys(("wav2vec2", "hubert"), _SAMPLES),
    **dict.fromkeys(("longformer", "led"), _GLOBAL),
    "rwkv": "its layers mix a token with the one before and keep a state per channel, which no mixer here does",
    "lfm2": "some of its layers are short convolutions with gates on both sides",
    "gpt_oss": "its attention has a learned sink per head, its experts have biases",
    "llama4_text": "its queries are scaled by the logarithm of their position, and its windows are chunks",
    "gemma3n_text": "it has embeddings per layer and several residual streams",
    "qwen2_moe": "the expert that every token goes to has a gate of its own",
    "phimoe": "its router draws from its two best experts one after the other (sparse mixer)",
    "dbrx": "it clips queries, keys and values",
    "diffllama": "its attention is the difference of two",
    "apertus": "its activation has learned parameters",
    "nemotron": "its LayerNorm's gain is 1 + the stored number",
    "albert": "its embeddings are narrower than the model",
    "deberta": "its attention scores tokens against positions and positions against tokens",
    "deberta-v2": "its attention scores tokens against positions and positions against tokens",
    "xlnet": "it attends in two streams, in a permuted order",
    "big_bird": "its tokens attend to random blocks",
    "reformer": "its tokens attend to those with the same hash",
    "funnel": "its layers pool the sequence",
    "longt5": "its tokens attend to the means of blocks",
    "umt5": "each of its layers has a table of biases",
    "m2m_100": "its sinusoids begin at another position than 0",
    "switch_transformers": "its experts alternate with dense layers and drop tokens beyond a capacity",
    "deit": "it has a second class token, for distillation",
    "dinov2": "its branches are scaled by a learned vector",
    "beit": "its attention has a table of biases over the grid of patches",
    "swin": "its windows over the grid of patches shift from layer to layer, and its patches merge",
    "convnext": "its layers are convolutions over images",
    "clip": "it has two towers, of texts and of images",
}
