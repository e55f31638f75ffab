"""Decoders with LayerNorm, most of them with dense feed-forwards and biases.

GPT-2 (Radford et al. 2019), which stores its matrices as (in, out); GPT-J (Wang and Komatsuzaki 2021); GPT-NeoX (Black
et al. 2022, https://arxiv.org/abs/2204.06745) and Pythia; OPT (Zhang et al. 2022, https://arxiv.org/abs/2205.01068);
BLOOM (Le Scao et al. 2022, https://arxiv.org/abs/2211.05100); Phi 1 to 2 (Li et al. 2023,
https://arxiv.org/abs/2309.05463); Cohere's Command R (2024).
"""

from __future__ import annotations

from dataclasses import replace

from isoform.checkpoint.families.canonical import shortest_period
from isoform.checkpoint.families.decoder import DECODER, HEAD_DIM, SIZES, block, decoder
from isoform.checkpoint.families.family import require
from isoform.checkpoint.families.fields import Fields
from isoform.checkpoint.families.rotary import rotary
from isoform.checkpoint.families.table import (
    Aspect,
    activation,
    choice,
    count,
    factor,
    flag,
    layers,
    number,
    only,
    optional,
    put,
    stack_of,
)
from isoform.checkpoint.tensors import Grouped, Interleaved, Transposed, UnusedRows
from isoform.model.config import Lookup, ModelConfig, StackConfig, Vocabulary
from isoform.model.parts import ALiBi, Dense, LayerNorm, Learned, Rotary

_DENSE, _NORM = Dense(bias=True), LayerNorm()
_BLOCK = block(_DENSE, _NORM, bias=True)
_LEARNED = StackConfig(position=Learned())
_EPSILON = number(1e-5, "block.norm.epsilon")
_SIZES = {name: column for name, column in SIZES.items() if name != "num_key_value_heads"}


_GPT = {
    "n_positions": count(1024, "context_length"),
    "n_embd": count(768, "model_dim"),
    "n_layer": layers(12, "stack.num_layers"),
    "n_head": count(12, "block.mixer.num_heads"),
    "n_inner": optional(None, "block.feedforward.feedforward_dim"),
    "activation_function": activation("gelu_new", "block.feedforward.activation"),
    "vocab_size": count(50_257, "vocab_size"),
    "layer_norm_epsilon": _EPSILON,
}
_ALIASES = {
    "hidden_size": "n_embd",
    "max_position_embeddings": "n_positions",
    "num_attention_heads": "n_head",
    "num_hidden_layers": "n_layer",
}


def _read_scales(config: ModelConfig, fields: Fields) -> ModelConfig:
    """Products scaled or not, in each layer also by its number."""
    fields.require(add_cross_attention=False)
    stack = stack_of(config)
    block, attention = stack.blocks[0], stack.blocks[0].attention
    scale = None if fields.flag("scale_attn_weights") else 1.0
    scales = [scale] * stack.num_layers
    if fields.flag("scale_attn_by_inverse_layer_idx"):
        scales = [(scale or config.head_dim(attention) ** -0.5) / (i + 1) for i in range(stack.num_layers)]
    blocks = tuple(put(block, {"mixer.scale": scale}) for scale in scales)
    return put(config, {"decoder.blocks": shortest_period(blocks)})


def _write_scales(config: ModelConfig) -> dict[str, object]:
    scales = [block.attention.scale for block in config.layers(stack_of(config))]
    return {"scale_attn_weights": scales[0] != 1.0, "scale_attn_by_inverse_layer_idx": len({*scales}) > 1}


def _names(embedding: str, norm: str, layer: str, **parts: str) -> dict[str, str]:
    """Names of a decoder with two norms; parts: what follows a layer's name."""
    ours = "decoder.blocks.#"
    return {
        "stem.embedding.weight": f"{embedding}.weight",
        "decoder.final_norm.*": f"{norm}.*",
        f"{ours}.mixer_norm.before.*": f"{layer}.{parts['before_attention']}.*",
        f"{ours}.feedforward_norm.before.*": f"{layer}.{parts['before_feedforward']}.*",
        f"{ours}.mixer.query_key_value.*": f"{layer}.{parts['query_key_value']}.*",
        f"{ours}.mixer.output.*": f"{layer}.{parts['output']}.*",
        f"{ours}.feedforward.up.*": f"{layer}.{parts['up']}.*",
        f"{ours}.feedforward.down.*": f"{layer}.{parts['down']}.*",
    }


_MATRICES = ("mixer.query_key_value", "mixer.output", "feedforward.up", "feedforward.down")
_QKV = "decoder.blocks.#.mixer.query_key_value"
_GROUPED = {f"{_QKV}.weight": Grouped(), f"{_QKV}.bias": Grouped()}
GPT2 = decoder(
    "gpt2",
    "GPT2",
    block=_BLOCK,
    stack=_LEARNED,
    sizes=_GPT,
    causal="LMHeadModel",
    tags="classifier",
    tie=True,
    positions=Aspect(
        {"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False},
        _read_scales,
        _write_scales,
    ),
    names=_names(
        "transformer.wte",
        "transformer.ln_f",
        "transformer.h.#",
        before_attention="ln_1",
        before_feedforward="ln_2",
        query_key_value="attn.c_attn",
        output="attn.c_proj",
        up="mlp.c_fc",
        down="mlp.c_proj",
    )
    | {"decoder.position.table": "transformer.wpe.weight"},
    written={"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0},
    transforms={f"decoder.blocks.#.{matrix}.weight": Transposed() for matrix in _MATRICES},
    aliases=_ALIASES,
    ties={"lm_head.weight": "transformer.wte.weight"},
    redundant=("*.attn.bias", "*.attn.masked_bias"),
    prefix="transformer.",
)


def _read_turned(config: ModelConfig, fields: Fields) -> ModelConfig:
    """How many features of a head are turned."""
    width, turned = config.head_dim(stack_of(config).blocks[0].attention), fields.count("rotary_dim")
    if turned > width:
        raise ValueError(f"{fields.where}: rotary_dim={turned} exceeds the {width} features of a head")
    return put(config, {"decoder.position": Rotary(fraction=turned / width)})


def _write_turned(config: ModelConfig) -> dict[str, object]:
    stack = stack_of(config)
    position = require(stack.position, Rotary, "position")
    return {"rotary_dim": config.rotated_dim(stack.blocks[0].attention, position)}


GPTJ = decoder(
    "gptj",
    "GPTJ",
    block=replace(block(_DENSE, _NORM), parallel="one_norm"),
    sizes=_GPT,
    defaults={"vocab_size": 50_400, "n_positions": 2048, "n_embd": 4096, "n_layer": 28, "n_head": 16},
    head=Vocabulary(bias=True),
    classes=("ForSequenceClassification",),
    positions=Aspect({"rotary_dim": 64}, _read_turned, _write_turned),
    names=_names(
        "transformer.wte",
        "transformer.ln_f",
        "transformer.h.#",
        before_attention="ln_1",
        before_feedforward="ln_2",
        query_key_value="attn.[q_proj|k_proj|v_proj]",
        output="attn.out_proj",
        up="mlp.fc_in",
        down="mlp.fc_out",
    ),
    written={"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0},
    transforms={f"{_QKV}.weight": Interleaved()},
    aliases=_ALIASES,
    ties={"lm_head.weight": "transformer.wte.weight"},
    redundant=("*.attn.bias", "*.attn.masked_bias", "*.attn.embed_positions"),
    prefix="transformer.",
)
GPT_NEOX = decoder(
    "gpt_neox",
    "GPTNeoX",
    {
        "layer_norm_eps": _EPSILON,
        "attention_bias": flag(True, "block.mixer.bias"),
        "use_parallel_residual": choice(True, "own_norms", "none", "block.parallel"),
    },
    block=_BLOCK,
    sizes=_SIZES,
    defaults={
        "vocab_size": 50_432,
        "hidden_size": 6144,
        "num_hidden_layers": 44,
        "num_attention_heads": 64,
        "intermediate_size": 24_576,
        "hidden_act": "gelu",
    },
    weight="embed_out.weight",
    tags="classifier",
    positions=rotary(share=0.25, base_field="rotary_emb_base", share_field="rotary_pct"),
    names=_names(
        "gpt_neox.embed_in",
        "gpt_neox.final_layer_norm",
        "gpt_neox.layers.#",
        before_attention="input_layernorm",
        before_feedforward="post_attention_layernorm",
        query_key_value="attention.query_key_value",
        output="attention.dense",
        up="mlp.dense_h_to_4h",
        down="mlp.dense_4h_to_h",
    ),
    newer_names={"lm_head.weight": "embed_out.weight"},
    transforms=_GROUPED,
    ties={"embed_out.weight": "gpt_neox.embed_in.weight"},
    redundant=("*.attention.bias", "*.attention.masked_bias", "*.rotary_emb.inv_freq"),
    prefix="gpt_neox.",
)


COHERE = decoder(
    "cohere",
    "Cohere",
    {
        "layer_norm_eps": _EPSILON,
        "attention_bias": flag(False, "block.mixer.bias"),
        "use_qk_norm": only(False),
        "logit_scale": factor(0.0625, "head.scale"),
    },
    block=replace(block(norm=LayerNorm(bias=False)), parallel="one_norm"),
    sizes=SIZES | HEAD_DIM,
    defaults={
        "vocab_size": 256_000,
        "hidden_size": 8192,
        "intermediate_size": 22_528,
        "num_hidden_layers": 40,
        "num_attention_heads": 64,
        "max_position_embeddings": 8192,
    },
    tie=True,
    classes=(),
    positions=rotary(500_000.0),
    transforms={f"{_QKV}.weight": Interleaved(), f"{_QKV}.bias": Interleaved()},
)


def _read_qk_norm(config: ModelConfig, fields: Fields) -> ModelConfig:
    norm = LayerNorm(epsilon=fields.number("layer_norm_eps")) if fields.flag("qk_layernorm") else None
    return put(config, {"decoder.blocks.mixer.qk_norm": norm})


def _write_qk_norm(config: ModelConfig) -> dict[str, object]:
    return {"qk_layernorm": stack_of(config).blocks[0].attention.qk_norm is not None}


PHI = decoder(
    "phi",
    "Phi",
    {"layer_norm_eps": _EPSILON},
    block=replace(_BLOCK, parallel="one_norm"),
    sizes=SIZES,
    defaults={
        "vocab_size": 51_200,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 24,
        "hidden_act": "gelu_new",
    },
    head=Vocabulary(bias=True),
    positions=rotary(share=0.5),
    aspects=(Aspect({"qk_layernorm": False}, _read_qk_norm, _write_qk_norm),),
    names=DECODER
    | _names(
        "model.embed_tokens",
        "model.final_layernorm",
        "model.layers.#",
        before_attention="input_layernorm",
        before_feedforward="post_attention_layernorm",
        query_key_value="self_attn.[q_proj|k_proj|v_proj]",
        output="self_attn.dense",
        up="mlp.fc1",
        down="mlp.fc2",
    )
    | {
        "decoder.blocks.#.mixer.query_norm.*": "model.layers.#.self_attn.q_layernorm.*",
        "decoder.blocks.#.mixer.key_norm.*": "model.layers.#.self_attn.k_layernorm.*",
    },
    written={"attention_dropout": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0},
)


def _read_norms(config: ModelConfig, fields: Fields) -> ModelConfig:
    """Norms before the branches, or after the sums; the last one only in the former case."""
    if fields.optional("word_embed_proj_dim") not in (None, config.model_dim):
        raise ValueError(
            f"{fields.where}: word_embed_proj_dim={fields.get('word_embed_proj_dim')!r} is not supported: embeddings "
            f"are as wide as the model"
        )
    is_before = fields.flag("do_layer_norm_before")
    return put(
        config,
        {
            "decoder.blocks.norm_placement": "pre" if is_before else "post",
            "decoder.final_norm": is_before and not fields.flag("_remove_final_layer_norm"),
        },
    )


def _write_norms(config: ModelConfig) -> dict[str, object]:
    stack = stack_of(config)
    return {
        "do_layer_norm_before": stack.blocks[0].norm_placement == "pre",
        "_remove_final_layer_norm": not stack.final_norm,
        "word_embed_proj_dim": config.model_dim,
    }


_OPT = _names(
    "model.decoder.embed_tokens",
    "model.decoder.final_layer_norm",
    "model.decoder.layers.#",
    before_attention="self_attn_layer_norm",
    before_feedforward="final_layer_norm",
    query_key_value="self_attn.[q_proj|k_proj|v_proj]",
    output="self_attn.out_proj",
    up="fc1",
    down="fc2",
)
OPT = decoder(
    "opt",
    "OPT",
    {
        "vocab_size": count(50_272, "vocab_size"),
        "hidden_size": count(768, "model_dim"),
        "num_hidden_layers": layers(12, "stack.num_layers"),
        "num_attention_heads": count(12, "block.mixer.num_heads"),
        "ffn_dim": count(3072, "block.feedforward.feedforward_dim"),
        "max_position_embeddings": count(2048, "context_length"),
        "activation_function": activation("relu", "block.feedforward.activation"),
        "enable_bias": flag(True, "block.mixer.bias", "block.feedforward.bias"),
        "layer_norm_elementwise_affine": flag(True, "block.norm.scale", "block.norm.bias"),
    },
    block=_BLOCK,
    stack=_LEARNED,
    sizes={},
    tie=True,
    classes=("ForSequenceClassification",),
    positions=Aspect(
        {"do_layer_norm_before": True, "_remove_final_layer_norm": False, "word_embed_proj_dim": None},
        _read_norms,
        _write_norms,
    ),
    names=_OPT
    | {ours.replace("before", "after"): theirs for ours, theirs in _OPT.items() if "before" in ours}
    | {"decoder.position.table": "model.decoder.embed_positions.weight"},
    written={"dropout": 0.0, "attention_dropout": 0.0},
    transforms={"decoder.position.table": UnusedRows(2)},
    ties={"lm_head.weight": "model.decoder.embed_tokens.weight"},
    prefix="model.",
)
BLOOM = decoder(
    "bloom",
    "Bloom",
    {
        "vocab_size": count(250_880, "vocab_size"),
        "hidden_size": count(64, "model_dim"),
        "n_layer": layers(2, "stack.num_layers"),
        "n_head": count(8, "block.mixer.num_heads"),
        "layer_norm_epsilon": number(1e-5, "block.norm.epsilon", "stem.norm.epsilon"),
        "seq_length": count(2048, "context_length"),
        "apply_residual_connection_post_layernorm": only(False),
        "slow_but_exact": only(False),
    },
    block=replace(_BLOCK, feedforward=Dense(activation="gelu_tanh", bias=True)),
    stack=StackConfig(position=ALiBi()),
    stem=Lookup(norm=_NORM),
    sizes={},
    tie=True,
    tags="classifier",
    positions=Aspect(),
    names=_names(
        "transformer.word_embeddings",
        "transformer.ln_f",
        "transformer.h.#",
        before_attention="input_layernorm",
        before_feedforward="post_attention_layernorm",
        query_key_value="self_attention.query_key_value",
        output="self_attention.dense",
        up="mlp.dense_h_to_4h",
        down="mlp.dense_4h_to_h",
    )
    | {"stem.norm.*": "transformer.word_embeddings_layernorm.*"},
    written={"hidden_dropout": 0.0, "attention_dropout": 0.0},
    transforms=_GROUPED,
    aliases={"n_embed": "hidden_size", "num_attention_heads": "n_head", "num_hidden_layers": "n_layer"},
    ties={"lm_head.weight": "transformer.word_embeddings.weight"},
    prefix="transformer.",
)
