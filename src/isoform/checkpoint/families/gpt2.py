"""GPT-2 (Radford et al. 2019), which stores its matrices as (in, out)."""

from __future__ import annotations

from isoform.checkpoint.families.family import Family, decoder_of, require
from isoform.checkpoint.families.fields import ACTIVATION_NAMES, Fields
from isoform.checkpoint.tensors import Transposed
from isoform.model.config import BlockConfig, ModelConfig, StackConfig, Vocabulary
from isoform.model.parts import Attention, Dense, LayerNorm, Learned


def _read(fields: Fields, names: set[str]) -> ModelConfig:
    fields.require(
        scale_attn_weights=True,
        scale_attn_by_inverse_layer_idx=False,
        reorder_and_upcast_attn=False,
        add_cross_attention=False,
    )
    dim, inner = fields.count("n_embd"), fields.get("n_inner")
    block = BlockConfig(
        mixer=Attention(num_heads=fields.count("n_head"), bias=True),
        feedforward=Dense(
            feedforward_dim=4 * dim if inner is None else fields.count("n_inner"),
            activation=fields.activation("activation_function", "gelu_new"),
            bias=True,
        ),
        norm=LayerNorm(epsilon=fields.number("layer_norm_epsilon", 1e-5)),
    )
    return ModelConfig(
        model_dim=dim,
        context_length=fields.count("n_positions"),
        vocab_size=fields.count("vocab_size"),
        decoder=StackConfig(num_layers=fields.count("n_layer", maximum=10_000), blocks=(block,), position=Learned()),
        head=Vocabulary(tied=fields.flag("tie_word_embeddings", True)),
    )


def _write(config: ModelConfig) -> dict:
    stack = decoder_of(config)
    block = stack.blocks[0]
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
        "tie_word_embeddings": require(config.head, Vocabulary, "head").tied,
        "attn_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "resid_pdrop": 0.0,
    }


_MATRICES = ("mixer.query_key_value", "mixer.output", "feedforward.up", "feedforward.down")
GPT2 = Family(
    model_type="gpt2",
    architecture="GPT2LMHeadModel",
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
    ignored=("*.attn.bias", "*.attn.masked_bias", "lm_head.weight"),
    prefix="transformer.",
)
