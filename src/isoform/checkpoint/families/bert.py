"""BERT (Devlin et al. 2018, https://arxiv.org/abs/1810.04805), with a head or as a sentence encoder without one, and
encoders that differ from it in fields and names.

RoBERTa (Liu et al. 2019, https://arxiv.org/abs/1907.11692), XLM-R (Conneau et al. 2019,
https://arxiv.org/abs/1911.02116), CamemBERT (Martin et al. 2019, https://arxiv.org/abs/1911.03894), DistilBERT (Sanh et
al. 2019, https://arxiv.org/abs/1910.01108), ELECTRA (Clark et al. 2020, https://arxiv.org/abs/2003.10555).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from isoform.checkpoint.families.family import Family, HeadClass
from isoform.checkpoint.families.fields import Fields
from isoform.checkpoint.families.table import Column, activation, count, layers, number, only, table
from isoform.checkpoint.tensors import UnusedRows
from isoform.model.config import BlockConfig, MaskedVocabulary, ModelConfig, Pooled, StackConfig
from isoform.model.parts import Activation, Attention, Dense, LayerNorm, Learned

_BLOCK = BlockConfig(
    mixer=Attention(bias=True), feedforward=Dense(bias=True), norm=LayerNorm(epsilon=1e-12), norm_placement="post"
)
_STACK = StackConfig(blocks=(_BLOCK,), position=Learned(), input_norm=_BLOCK.norm, final_norm=False)
_TEMPLATE = ModelConfig(encoder=_STACK, decoder=None)
_VECTOR = Pooled(over="mean", embed=True)
_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
_COLUMNS = {
    "vocab_size": count(30_522, "vocab_size"),
    "hidden_size": count(768, "model_dim"),
    "num_hidden_layers": layers(12, "stack.num_layers"),
    "num_attention_heads": count(12, "block.mixer.num_heads"),
    "intermediate_size": count(3072, "block.feedforward.feedforward_dim"),
    "hidden_act": activation("gelu", "block.feedforward.activation"),
    "max_position_embeddings": count(512, "context_length"),
    "type_vocab_size": count(2, "stem.num_token_types"),
    "layer_norm_eps": number(1e-12, "block.norm.epsilon", "stack.input_norm.epsilon", "head.norm.epsilon"),
    "is_decoder": only(False),
    "add_cross_attention": only(False),
}


def _names(prefix: str) -> dict[str, str]:
    layer = f"{prefix}.encoder.layer.#"
    return {
        "stem.embedding.weight": f"{prefix}.embeddings.word_embeddings.weight",
        "stem.token_types.weight": f"{prefix}.embeddings.token_type_embeddings.weight",
        "encoder.position.table": f"{prefix}.embeddings.position_embeddings.weight",
        "encoder.input_norm.*": f"{prefix}.embeddings.LayerNorm.*",
        "encoder.blocks.#.mixer.query_key_value.*": f"{layer}.attention.self.[query|key|value].*",
        "encoder.blocks.#.mixer.output.*": f"{layer}.attention.output.dense.*",
        "encoder.blocks.#.mixer_norm.after.*": f"{layer}.attention.output.LayerNorm.*",
        "encoder.blocks.#.feedforward.up.*": f"{layer}.intermediate.dense.*",
        "encoder.blocks.#.feedforward.down.*": f"{layer}.output.dense.*",
        "encoder.blocks.#.feedforward_norm.after.*": f"{layer}.output.LayerNorm.*",
    }


def _masked(architecture: str, dense: str, norm: str, scores: str) -> HeadClass:
    """The class that fills in masked tokens."""
    names = {"head.dense.*": f"{dense}.*", "head.norm.*": f"{norm}.*", "head.weight": f"{scores}.weight"}
    names["head.bias"] = f"{scores}.bias"
    return HeadClass(architecture, MaskedVocabulary(norm=_BLOCK.norm), names, (f"{dense}.weight",))


def _classifiers(base: str, document: str, token: str, *, activation: Activation = "tanh") -> tuple[HeadClass, ...]:
    """The classes for one label of a text, by two layers `dense|scores`, and of each token."""
    dense, scores = document.split("|")
    return (
        HeadClass(
            f"{base}ForSequenceClassification",
            Pooled(dense=True, activation=activation),
            {"head.dense.*": f"{dense}.*", "head.output.*": f"{scores}.*"},
            (f"{dense}.weight", f"{scores}.weight"),
        ),
        HeadClass(
            f"{base}ForTokenClassification",
            Pooled(over="each"),
            {"head.output.*": f"{token}.*"},
            (f"{token}.weight",),
        ),
    )


def _encoder(
    model_type: str, prefix: str, heads: tuple[HeadClass, ...], ties: Mapping[str, str],
    columns: Mapping[str, Column] = _COLUMNS, names: Mapping[str, str] | None = None, **options: Any,
) -> Family:  # fmt: skip
    return table(
        model_type,
        _TEMPLATE,
        columns,
        heads,
        tie=True,
        names=names or _names(prefix),
        ties=ties,
        redundant=("*.position_ids",),
        prefix=f"{prefix}.",
        **options,
    )


BERT = _encoder(
    "bert",
    "bert",
    (
        _masked(
            "BertForMaskedLM",
            "cls.predictions.transform.dense",
            "cls.predictions.transform.LayerNorm",
            "cls.predictions.decoder",
        ),
        *_classifiers("Bert", "bert.pooler.dense|classifier", "classifier"),
        HeadClass("BertModel", _VECTOR),
    ),
    {
        "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    },
    _COLUMNS
    | {
        "hidden_act": activation("gelu", "block.feedforward.activation", "head.activation"),
        "position_embedding_type": only("absolute"),
    },
    written=_DROPOUT,
    unused=("bert.pooler.dense.*", "cls.seq_relationship.*"),
)


def _read_padding(fields: Fields, name: str) -> None:
    """Raises ValueError for another padding than the token 1, from which positions count."""
    if fields.get(name) != 1:
        raise ValueError(
            f"{fields.where}: {name}={fields.get(name)!r} is not supported, only 1: positions count from 2"
        )


def _roberta(model_type: str, base: str, vocabulary: int) -> Family:
    """RoBERTa's positions count from 2, since its padding is the token 1."""
    length = Column(512, ("context_length",), lambda fields, name: fields.count(name) - 2, lambda length, _: length + 2)
    return _encoder(
        model_type,
        "roberta",
        (
            _masked(f"{base}ForMaskedLM", "lm_head.dense", "lm_head.layer_norm", "lm_head.decoder"),
            *_classifiers(base, "classifier.dense|classifier.out_proj", "classifier"),
            HeadClass(f"{base}Model", _VECTOR),
        ),
        {
            "lm_head.decoder.weight": "roberta.embeddings.word_embeddings.weight",
            "lm_head.decoder.bias": "lm_head.bias",
        },
        _COLUMNS
        | {
            "vocab_size": count(vocabulary, "vocab_size"),
            "max_position_embeddings": length,
            "pad_token_id": Column(1, (), _read_padding),
        },
        written=_DROPOUT | {"pad_token_id": 1},
        transforms={"encoder.position.table": UnusedRows(2)},
        unused=("roberta.pooler.dense.*",),
    )


ROBERTA = _roberta("roberta", "Roberta", 50_265)
XLM_ROBERTA, CAMEMBERT = _roberta("xlm-roberta", "XLMRoberta", 30_522), _roberta("camembert", "Camembert", 30_522)

_LAYER = "distilbert.transformer.layer.#"
DISTILBERT = _encoder(
    "distilbert",
    "distilbert",
    (
        _masked("DistilBertForMaskedLM", "vocab_transform", "vocab_layer_norm", "vocab_projector"),
        *_classifiers("DistilBert", "pre_classifier|classifier", "classifier", activation="relu"),
        HeadClass("DistilBertModel", _VECTOR),
    ),
    {"vocab_projector.weight": "distilbert.embeddings.word_embeddings.weight"},
    {
        "vocab_size": count(30_522, "vocab_size"),
        "dim": count(768, "model_dim"),
        "n_layers": layers(6, "stack.num_layers"),
        "n_heads": count(12, "block.mixer.num_heads"),
        "hidden_dim": count(3072, "block.feedforward.feedforward_dim"),
        "activation": activation("gelu", "block.feedforward.activation", "head.activation"),
        "max_position_embeddings": count(512, "context_length"),
    },
    {
        **{
            ours: theirs
            for ours, theirs in _names("distilbert").items()
            if "blocks" not in ours and "types" not in ours
        },
        "encoder.blocks.#.mixer.query_key_value.*": f"{_LAYER}.attention.[q_lin|k_lin|v_lin].*",
        "encoder.blocks.#.mixer.output.*": f"{_LAYER}.attention.out_lin.*",
        "encoder.blocks.#.mixer_norm.after.*": f"{_LAYER}.sa_layer_norm.*",
        "encoder.blocks.#.feedforward.up.*": f"{_LAYER}.ffn.lin1.*",
        "encoder.blocks.#.feedforward.down.*": f"{_LAYER}.ffn.lin2.*",
        "encoder.blocks.#.feedforward_norm.after.*": f"{_LAYER}.output_layer_norm.*",
    },
    written={"dropout": 0.0, "attention_dropout": 0.0},
    aliases={"hidden_size": "dim", "num_attention_heads": "n_heads", "num_hidden_layers": "n_layers"},
)


def _read_embedding(fields: Fields, name: str) -> int:
    """The width of embeddings. Raises ValueError for another than the model's."""
    if fields.count(name) != fields.count("hidden_size"):
        raise ValueError(
            f"{fields.where}: {name}={fields.get(name)!r} with hidden_size={fields.get('hidden_size')!r} is not "
            f"supported: embeddings are as wide as the model"
        )
    return fields.count(name)


ELECTRA = _encoder(
    "electra",
    "electra",
    (
        _masked(
            "ElectraForMaskedLM",
            "generator_predictions.dense",
            "generator_predictions.LayerNorm",
            "generator_lm_head",
        ),
        *_classifiers("Electra", "classifier.dense|classifier.out_proj", "classifier", activation="gelu"),
        HeadClass("ElectraModel", _VECTOR),
    ),
    {"generator_lm_head.weight": "electra.embeddings.word_embeddings.weight"},
    _COLUMNS
    | {
        "hidden_size": count(256, "model_dim"),
        "embedding_size": Column(128, ("model_dim",), _read_embedding),
        "num_attention_heads": count(4, "block.mixer.num_heads"),
        "intermediate_size": count(1024, "block.feedforward.feedforward_dim"),
    },
    written=_DROPOUT,
    unused=("discriminator_predictions.*",),
)
