"""Decoders with experts: Mixtral (Jiang et al. 2024, https://arxiv.org/abs/2401.04088) and Qwen3 (Yang et al. 2025,
https://arxiv.org/abs/2505.09388)."""

from __future__ import annotations

from dataclasses import replace

from isoform.checkpoint.families.canonical import shortest_period
from isoform.checkpoint.families.decoder import DECODER, FEATURES, PRE_NORMS, block, decoder
from isoform.checkpoint.families.fields import Fields
from isoform.checkpoint.families.rotary import rotary
from isoform.checkpoint.families.table import (
    Aspect,
    activation,
    count,
    flag,
    number,
    put,
    read_window,
    stack_of,
    window,
    write_window,
)
from isoform.model.config import ModelConfig
from isoform.model.parts import Experts, Gated, RMSNorm

_EXPERT = "block.feedforward.expert"
_ROUTER = {
    "num_experts_per_tok": count(2, "block.feedforward.router.num_active"),
    "router_aux_loss_coef": number(0.001, "block.feedforward.router.balance_loss"),
    "num_local_experts": count(8, "block.feedforward.num_experts"),
    "hidden_act": activation("silu", f"{_EXPERT}.activation"),
}


def _names(module: str, gate: str, up: str, down: str) -> dict[str, str]:
    theirs = f"model.layers.#.{module}"
    return {
        "decoder.blocks.#.feedforward.router.weight": f"{theirs}.gate.weight",
        "decoder.blocks.#.feedforward.experts.gate_up": f"{theirs}.experts.@.[{gate}|{up}].weight",
        "decoder.blocks.#.feedforward.experts.down": f"{theirs}.experts.@.{down}.weight",
    }


def _newer_names(module: str, gate: str, up: str, down: str) -> dict[str, str]:
    """Experts stacked in two tensors."""
    names, stacked = _names(module, gate, up, down), "model.layers.#.mlp.experts"
    return {
        "model.layers.#.mlp.gate.weight": names["decoder.blocks.#.feedforward.router.weight"],
        f"{stacked}.gate_up_proj": names["decoder.blocks.#.feedforward.experts.gate_up"],
        f"{stacked}.down_proj": names["decoder.blocks.#.feedforward.experts.down"],
    }


_MIXTRAL, _QWEN = ("block_sparse_moe", "w1", "w3", "w2"), ("mlp", "gate_proj", "up_proj", "down_proj")
MIXTRAL = decoder(
    "mixtral",
    "Mixtral",
    _ROUTER
    | {
        "intermediate_size": count(14_336, f"{_EXPERT}.feedforward_dim"),
        "sliding_window": window(None, "block.mixer.pattern"),
    },
    block=block(Experts()),
    defaults={"num_key_value_heads": 8, "max_position_embeddings": 131_072, "rms_norm_eps": 1e-5},
    positions=rotary(1_000_000.0),
    names=DECODER | PRE_NORMS | _names(*_MIXTRAL),
    newer_names=_newer_names(*_MIXTRAL),
    aliases={"num_experts": "num_local_experts"},
)


def _read_layers(config: ModelConfig, fields: Fields) -> ModelConfig:
    """Experts in each layer of `decoder_sparse_step`, but for `mlp_only_layers`."""
    stack, step, dense = stack_of(config), fields.count("decoder_sparse_step"), fields.get("mlp_only_layers") or []
    if not isinstance(dense, list):
        raise ValueError(f"{fields.where}: mlp_only_layers={dense!r} is no list of layers")
    pattern = read_window(fields, "sliding_window") if fields.flag("use_sliding_window") else None
    sparse = put(stack.blocks[0], {"mixer.pattern": pattern})
    width = fields.count("intermediate_size")
    plain = replace(sparse, feedforward=Gated(feedforward_dim=width, activation=fields.activation("hidden_act")))
    blocks = (sparse if i not in dense and (i + 1) % step == 0 else plain for i in range(stack.num_layers))
    return put(config, {"decoder.blocks": shortest_period(tuple(blocks))})


def _write_layers(config: ModelConfig) -> dict[str, object]:
    layers = config.layers(stack_of(config))
    sparse = next((block for block in layers if isinstance(block.feedforward, Experts)), layers[0])
    dense = next((block.feedforward for block in layers if isinstance(block.feedforward, Gated)), None)
    width = write_window(sparse.attention.pattern)
    return {
        "intermediate_size": 6144 if dense is None else config.feedforward_dim(dense),
        "decoder_sparse_step": 1,
        "mlp_only_layers": [i for i, block in enumerate(layers) if not isinstance(block.feedforward, Experts)],
        "use_sliding_window": width is not None,
        "sliding_window": width,
    }


_LAYERS = Aspect(
    {
        "intermediate_size": 6144,
        "decoder_sparse_step": 1,
        "mlp_only_layers": None,
        "use_sliding_window": False,
        "sliding_window": 4096,
    },
    _read_layers,
    _write_layers,
)
_COLUMNS = {
    "attention_bias": flag(False, "block.mixer.bias"),
    "rms_norm_eps": number(1e-6, "block.norm.epsilon", "block.mixer.qk_norm.epsilon"),
    "moe_intermediate_size": count(768, f"{_EXPERT}.feedforward_dim"),
    "norm_topk_prob": flag(False, "block.feedforward.router.normalize"),
}
QWEN3_MOE = decoder(
    "qwen3_moe",
    "Qwen3Moe",
    _ROUTER | _COLUMNS,
    block=block(Experts(), qk_norm=RMSNorm()),
    sizes={name: column for name, column in FEATURES.items() if name != "intermediate_size"},
    defaults={
        "vocab_size": 151_936,
        "hidden_size": 2048,
        "num_hidden_layers": 24,
        "num_key_value_heads": 4,
        "max_position_embeddings": 32_768,
        "num_local_experts": 128,
        "num_experts_per_tok": 8,
    },
    aspects=(_LAYERS,),
    names=DECODER | PRE_NORMS | _names(*_QWEN),
    newer_names=_newer_names(*_QWEN),
    aliases={"num_experts": "num_local_experts"},
)
