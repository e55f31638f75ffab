"""BERT (Devlin et al. 2018, https://arxiv.org/abs/1810.04805), with its head or as a sentence encoder without one."""

from __future__ import annotations

from isoform.checkpoint.families.family import Family, encoder_of, reads_tied, require
from isoform.checkpoint.families.fields import ACTIVATION_NAMES, Fields
from isoform.model.config import BlockConfig, Lookup, MaskedVocabulary, ModelConfig, Pooled, StackConfig
from isoform.model.parts import Attention, Dense, LayerNorm, Learned

_FIELDS: dict[str, object] = {
    "vocab_size": 30_522,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "gelu",
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
    "is_decoder": False,
    "add_cross_attention": False,
    "position_embedding_type": "absolute",
    "tie_word_embeddings": True,
}


def _read(fields: Fields, names: set[str]) -> ModelConfig:
    fields.require(add_cross_attention=False, is_decoder=False, position_embedding_type="absolute")
    norm = LayerNorm(epsilon=fields.number("layer_norm_eps"))
    activation = fields.activation("hidden_act")
    block = BlockConfig(
        mixer=Attention(num_heads=fields.count("num_attention_heads"), bias=True),
        feedforward=Dense(feedforward_dim=fields.count("intermediate_size"), activation=activation, bias=True),
        norm=norm,
        norm_placement="post",
    )
    is_masked = "cls.predictions.transform.dense.weight" in names
    tied = reads_tied(fields, names, "cls.predictions.decoder.weight")
    return ModelConfig(
        model_dim=fields.count("hidden_size"),
        context_length=fields.count("max_position_embeddings"),
        vocab_size=fields.count("vocab_size"),
        encoder=StackConfig(
            num_layers=fields.count("num_hidden_layers", maximum=10_000),
            blocks=(block,),
            position=Learned(),
            input_norm=norm,
            final_norm=False,
        ),
        decoder=None,
        stem=Lookup(num_token_types=fields.count("type_vocab_size")),
        head=MaskedVocabulary(activation=activation, norm=norm, tied=tied)
        if is_masked
        else Pooled(over="mean", embed=True),
    )


def _write(config: ModelConfig) -> dict:
    stack = encoder_of(config)
    block = stack.blocks[0]
    dense = require(block.feedforward, Dense, "feedforward")
    is_masked = isinstance(config.head, MaskedVocabulary)
    return {
        "architectures": ["BertForMaskedLM" if is_masked else "BertModel"],
        "hidden_size": config.model_dim,
        "max_position_embeddings": config.context_length,
        "vocab_size": config.vocab_size,
        "num_hidden_layers": stack.num_layers,
        "num_attention_heads": block.attention.num_heads,
        "intermediate_size": config.feedforward_dim(dense),
        "hidden_act": ACTIVATION_NAMES[dense.activation],
        "layer_norm_eps": require(block.norm, LayerNorm, "norm").epsilon,
        "type_vocab_size": require(config.stem, Lookup, "stem").num_token_types,
        "tie_word_embeddings": config.head.tied if isinstance(config.head, MaskedVocabulary) else True,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }


BERT = Family(
    model_type="bert",
    architecture="BertForMaskedLM",
    fields=_FIELDS,
    read=_read,
    write=_write,
    names={
        "stem.embedding.weight": "bert.embeddings.word_embeddings.weight",
        "stem.token_types.weight": "bert.embeddings.token_type_embeddings.weight",
        "encoder.position.table": "bert.embeddings.position_embeddings.weight",
        "encoder.input_norm.*": "bert.embeddings.LayerNorm.*",
        "encoder.blocks.#.mixer.query_key_value.*": "bert.encoder.layer.#.attention.self.[query|key|value].*",
        "encoder.blocks.#.mixer.output.*": "bert.encoder.layer.#.attention.output.dense.*",
        "encoder.blocks.#.mixer_norm.after.*": "bert.encoder.layer.#.attention.output.LayerNorm.*",
        "encoder.blocks.#.feedforward.up.*": "bert.encoder.layer.#.intermediate.dense.*",
        "encoder.blocks.#.feedforward.down.*": "bert.encoder.layer.#.output.dense.*",
        "encoder.blocks.#.feedforward_norm.after.*": "bert.encoder.layer.#.output.LayerNorm.*",
        "head.dense.*": "cls.predictions.transform.dense.*",
        "head.norm.*": "cls.predictions.transform.LayerNorm.*",
        "head.weight": "cls.predictions.decoder.weight",
        "head.bias": "cls.predictions.decoder.bias",
    },
    ties={
        "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    },
    redundant=("*.position_ids",),
    unused=("bert.pooler.dense.*", "cls.seq_relationship.*"),
    prefix="bert.",
)
