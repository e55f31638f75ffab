"""GPT-2 (Radford et al. 2019), which stores its matrices as (in, out)."""

from __future__ import annotations

from dataclasses import replace

from isoform.checkpoint.families.canonical import shortest_period
from isoform.checkpoint.families.family import Family, decoder_of, reads_tied, require
from isoform.checkpoint.families.fields import ACTIVATION_NAMES, Fields
from isoform.checkpoint.tensors import Transposed
from isoform.model.config import BlockConfig, ModelConfig, StackConfig, Vocabulary
from isoform.model.parts import Attention, Dense, LayerNorm, Learned

_FIELDS: dict[str, object] = {
    "vocab_size": 50_257,
    "n_positions": 1024,
    "n_embd": 768,
    "n_layer": 12,
    "n_head": 12,
    "n_inner": None,
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
    "tie_word_embeddings": True,
}


def _read(fields: Fields, names: set[str]) -> ModelConfig:
    fields.require(add_cross_attention=False)
    dim, layers, heads = fields.count("n_embd"), fields.count("n_layer", maximum=10_000), fields.count("n_head")
    block = BlockConfig(
        mixer=Attention(num_heads=heads, bias=True),
        feedforward=Dense(
            feedforward_dim=fields.optional("n_inner"),
            activation=fields.activation("activation_function"),
            bias=True,
        ),
        norm=LayerNorm(epsilon=fields.number("layer_norm_epsilon")),
    )
    scale = None if fields.flag("scale_attn_weights") else 1.0
    scales = [scale] * layers
    if fields.flag("scale_attn_by_inverse_layer_idx"):
        scales = [(scale or (dim / heads) ** -0.5) / (i + 1) for i in range(layers)]
    blocks = tuple(replace(block, mixer=replace(block.attention, scale=scale)) for scale in scales)
    return ModelConfig(
        model_dim=dim,
        context_length=fields.count("n_positions"),
        vocab_size=fields.count("vocab_size"),
        decoder=StackConfig(num_layers=layers, blocks=shortest_period(blocks), position=Learned()),
        head=Vocabulary(tied=reads_tied(fields, names, "lm_head.weight")),
    )


def _write(config: ModelConfig) -> dict:
    stack = decoder_of(config)
    block, scales = stack.blocks[0], [block.attention.scale for block in config.layers(stack)]
    dense = require(block.feedforward, Dense, "feedforward")
    return {
        "n_embd": config.model_dim,
        "n_positions": config.context_length,
        "vocab_size": config.vocab_size,
        "n_layer": stack.num_layers,
        "n_head": block.attention.num_heads,
        "n_inner": config.feedforward_dim(dense),
        "activation_function": "gelu_new" if dense.activation == "gelu_tanh" else ACTIVATION_NAMES[dense.activation],
        "layer_norm_epsilon": require(block.norm, LayerNorm, "norm").epsilon,
        "scale_attn_weights": scales[0] != 1.0,
        "scale_attn_by_inverse_layer_idx": len({*scales}) > 1,
        "tie_word_embeddings": require(config.head, Vocabulary, "head").tied,
        "attn_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "resid_pdrop": 0.0,
    }


_MATRICES = ("mixer.query_key_value", "mixer.output", "feedforward.up", "feedforward.down")
GPT2 = Family(
    model_type="gpt2",
    architecture="GPT2LMHeadModel",
    fields=_FIELDS,
    read=_read,
    write=_write,
    names={
        "stem.embedding.weight": "transformer.wte.weight",
        "head.weight": "lm_head.weight",
        "decoder.position.table": "transformer.wpe.weight",
        "decoder.final_norm.*": "transformer.ln_f.*",
        "decoder.blocks.#.mixer_norm.before.*": "transformer.h.#.ln_1.*",
        "decoder.blocks.#.feedforward_norm.before.*": "transformer.h.#.ln_2.*",
        "decoder.blocks.#.mixer.query_key_value.*": "transformer.h.#.attn.c_attn.*",
        "decoder.blocks.#.mixer.output.*": "transformer.h.#.attn.c_proj.*",
        "decoder.blocks.#.feedforward.up.*": "transformer.h.#.mlp.c_fc.*",
        "decoder.blocks.#.feedforward.down.*": "transformer.h.#.mlp.c_proj.*",
    },
    transforms={f"decoder.blocks.#.{matrix}.weight": Transposed() for matrix in _MATRICES},
    aliases={
        "hidden_size": "n_embd",
        "max_position_embeddings": "n_positions",
        "num_attention_heads": "n_head",
        "num_hidden_layers": "n_layer",
    },
    ties={"lm_head.weight": "transformer.wte.weight"},
    redundant=("*.attn.bias", "*.attn.masked_bias"),
    prefix="transformer.",
)
