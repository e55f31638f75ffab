"""Llama and the decoders that differ from it in a few fields: a row each.

Llama (Touvron et al. 2023, https://arxiv.org/abs/2307.09288), Granite (Mishra et al. 2024,
https://arxiv.org/abs/2405.04324), Mistral (Jiang et al. 2023,
https://arxiv.org/abs/2310.06825), Qwen2 (Yang et al. 2024, https://arxiv.org/abs/2407.10671), Qwen3 (2025,
https://arxiv.org/abs/2505.09388), OLMo (Groeneveld et al. 2024, https://arxiv.org/abs/2402.00838) and OLMo 2 (2024,
https://arxiv.org/abs/2501.00656), Phi-3 (Abdin et al. 2024,
https://arxiv.org/abs/2404.14219), StableLM 2 (Bellagente et al. 2024, https://arxiv.org/abs/2402.17834), SmolLM3
(Bakouch et al. 2025), StarCoder2 (Lozhkov et al. 2024, https://arxiv.org/abs/2402.19173).
"""

from __future__ import annotations

from dataclasses import replace

from isoform.checkpoint.families.decoder import (
    DECODER,
    EVEN_HEADS,
    HEAD_DIM,
    INNER_NORMS,
    PRE_NORMS,
    SIZES,
    block,
    decoder,
)
from isoform.checkpoint.families.family import require
from isoform.checkpoint.families.fields import Fields
from isoform.checkpoint.families.rotary import rotary
from isoform.checkpoint.families.sliding import later_layers, unturned_layers
from isoform.checkpoint.families.table import Aspect, choice, flag, number, only, put, stack_of, window
from isoform.model.config import ModelConfig, Vocabulary
from isoform.model.parts import Dense, LayerNorm, RMSNorm

_BIAS = {"attention_bias": flag(False, "block.mixer.bias")}
_QWEN = {
    "vocab_size": 151_936,
    "intermediate_size": 22_016,
    "num_key_value_heads": 32,
    "max_position_embeddings": 32_768,
}
_EPSILON = "block.norm.epsilon"

LLAMA = decoder(
    "llama",
    "Llama",
    _BIAS | {"mlp_bias": flag(False, "block.feedforward.bias")},
    aspects=(EVEN_HEADS,),
)


def _read_multipliers(config: ModelConfig, fields: Fields) -> ModelConfig:
    """Factors of the scaled products, and divisors of the scores."""
    scaling = fields.number("logits_scaling")
    if scaling <= 0:
        raise ValueError(f"{fields.where}: logits_scaling={scaling:g} divides the scores; give a number above 0")
    head = {"head.scale": None if scaling == 1 else 1 / scaling} if isinstance(config.head, Vocabulary) else {}
    return put(config, {"decoder.blocks.mixer.scale": fields.number("attention_multiplier"), **head})


def _write_multipliers(config: ModelConfig) -> dict[str, object]:
    attention, scale = stack_of(config).blocks[0].attention, require(config.head, Vocabulary, "head").scale
    return {
        "attention_multiplier": attention.scale or config.head_dim(attention) ** -0.5,
        "logits_scaling": 1.0 if scale is None else 1 / scale,
    }


GRANITE = decoder(
    "granite",
    "Granite",
    _BIAS
    | {
        "mlp_bias": flag(False, "block.feedforward.bias"),
        "embedding_multiplier": number(1.0, "stem.factor"),
        "residual_multiplier": number(1.0, "block.residual_scale"),
    },
    classes=(),
    aspects=(Aspect({"attention_multiplier": 1.0, "logits_scaling": 1.0}, _read_multipliers, _write_multipliers),),
)
MISTRAL = decoder(
    "mistral",
    "Mistral",
    {"sliding_window": window(4096, "block.mixer.pattern")},
    defaults={"intermediate_size": 14_336, "num_key_value_heads": 8, "max_position_embeddings": 131_072},
)
QWEN2 = decoder(
    "qwen2",
    "Qwen2",
    block=block(bias=True, output_bias=False),
    defaults=_QWEN,
    aspects=(later_layers(4096),),
)
QWEN3 = decoder(
    "qwen3",
    "Qwen3",
    _BIAS | {"rms_norm_eps": number(1e-6, "block.norm.epsilon", "block.mixer.qk_norm.epsilon")},
    block=block(qk_norm=RMSNorm()),
    defaults=_QWEN | {"head_dim": 128},
    aspects=(later_layers(4096),),
)
OLMO2 = decoder(
    "olmo2",
    "Olmo2",
    _BIAS | {"rms_norm_eps": number(1e-5, "block.norm.epsilon", "block.mixer.qk_norm.epsilon")},
    block=replace(block(qk_norm=RMSNorm(), qk_norm_over="projection"), norm_placement="reordered"),
    defaults={"vocab_size": 50_304},
    classes=("ForSequenceClassification",),
    names=DECODER | INNER_NORMS,
)
OLMO = decoder(
    "olmo",
    "Olmo",
    _BIAS | {"clip_qkv": only(None)},
    block=block(norm=LayerNorm(bias=False, scale=False)),
    sizes=SIZES | HEAD_DIM,
    defaults={"vocab_size": 50_304},
    classes=("ForSequenceClassification",),
    names=DECODER,
)
PHI3 = decoder(
    "phi3",
    "Phi3",
    {"sliding_window": window(None, "block.mixer.pattern")},
    defaults={
        "vocab_size": 32_064,
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
    },
    positions=rotary(share=1.0, types=("default",)),
    names=DECODER
    | PRE_NORMS
    | {
        "decoder.blocks.#.mixer.query_key_value.*": "model.layers.#.self_attn.qkv_proj.*",
        "decoder.blocks.#.feedforward.gate_up.*": "model.layers.#.mlp.gate_up_proj.*",
    },
)
STABLELM = decoder(
    "stablelm",
    "StableLm",
    {
        "layer_norm_eps": number(1e-5, _EPSILON),
        "use_qkv_bias": flag(False, "block.mixer.bias"),
        "qk_layernorm": only(False),
        "use_parallel_residual": choice(False, "one_norm", "none", "block.parallel"),
    },
    block=block(norm=LayerNorm(), output_bias=False),
    sizes=SIZES,
    defaults={
        "vocab_size": 50_304,
        "intermediate_size": 6912,
        "hidden_size": 2560,
        "num_key_value_heads": 32,
        "max_position_embeddings": 4096,
    },
    positions=rotary(share=0.25),
)
SMOLLM3 = decoder(
    "smollm3",
    "SmolLM3",
    _BIAS | {"mlp_bias": flag(False, "block.feedforward.bias")},
    defaults={
        "vocab_size": 128_256,
        "hidden_size": 2048,
        "num_hidden_layers": 36,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
        "max_position_embeddings": 32_768,
    },
    tie=True,
    positions=unturned_layers(4, rotary(2_000_000.0)),
)
STARCODER2 = decoder(
    "starcoder2",
    "Starcoder2",
    {
        "norm_epsilon": number(1e-5, _EPSILON),
        "use_bias": flag(True, "block.mixer.bias", "block.feedforward.bias"),
        "sliding_window": window(None, "block.mixer.pattern"),
    },
    block=block(Dense(), norm=LayerNorm()),
    sizes=SIZES | HEAD_DIM,
    defaults={
        "vocab_size": 49_152,
        "hidden_size": 3072,
        "intermediate_size": 12_288,
        "num_hidden_layers": 30,
        "num_attention_heads": 24,
        "num_key_value_heads": 2,
        "hidden_act": "gelu_pytorch_tanh",
        "max_position_embeddings": 4096,
    },
    tie=True,
    names=DECODER
    | PRE_NORMS
    | {
        "decoder.blocks.#.feedforward.up.*": "model.layers.#.mlp.c_fc.*",
        "decoder.blocks.#.feedforward.down.*": "model.layers.#.mlp.c_proj.*",
    },
)
