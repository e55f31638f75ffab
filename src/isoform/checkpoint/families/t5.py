"""T5 (Raffel et al. 2019, https://arxiv.org/abs/1910.10683), dense or gated (v1.1, Flan), and mT5 (Xue et al. 2020,
https://arxiv.org/abs/2010.11934)."""

from __future__ import annotations

from dataclasses import replace

from isoform.checkpoint.families.family import Family, NotRepresentable, require, stacks_of
from isoform.checkpoint.families.fields import ACTIVATION_NAMES, ACTIVATIONS, Fields
from isoform.model.config import BlockConfig, Lookup, ModelConfig, StackConfig, Vocabulary
from isoform.model.parts import Attention, Buckets, Dense, Experts, Gated, RMSNorm

_FIELDS: dict[str, object] = {
    "vocab_size": 32_128,
    "d_model": 512,
    "d_kv": 64,
    "d_ff": 2048,
    "num_layers": 6,
    "num_decoder_layers": None,
    "num_heads": 8,
    "n_positions": 512,
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
    "layer_norm_epsilon": 1e-6,
    "feed_forward_proj": "relu",
    "is_gated_act": None,
    "dense_act_fn": None,
    "tie_word_embeddings": True,
    "scale_decoder_outputs": None,
}


def _read_t5(fields: Fields, names: set[str]) -> ModelConfig:
    scales = "tie_word_embeddings" if fields.get("scale_decoder_outputs") is None else "scale_decoder_outputs"
    return _read(fields, names, scales=fields.flag(scales))


def _read_mt5(fields: Fields, names: set[str]) -> ModelConfig:
    return _read(fields, names, scales=False)


def _read(fields: Fields, names: set[str], *, scales: bool) -> ModelConfig:
    """scales: whether hidden states are scaled before the head."""
    dim, buckets = fields.count("d_model"), _read_buckets(fields)
    heads, head_dim = fields.count("num_heads"), fields.count("d_kv")
    block = BlockConfig(
        mixer=Attention(num_heads=heads, head_dim=head_dim, scale=1.0),
        feedforward=_read_feedforward(fields),
        norm=RMSNorm(epsilon=fields.number("layer_norm_epsilon")),
    )
    layers = fields.count("num_layers", maximum=10_000)
    return ModelConfig(
        model_dim=dim,
        context_length=fields.count("n_positions"),
        vocab_size=fields.count("vocab_size"),
        encoder=StackConfig(num_layers=layers, blocks=(block,), position=replace(buckets, bidirectional=True)),
        decoder=StackConfig(
            num_layers=fields.optional("num_decoder_layers") or layers,
            blocks=(block,),
            position=buckets,
            cross="separate",
        ),
        encoder_stem=Lookup() if "encoder.embed_tokens.weight" in names else None,
        head=Vocabulary(tied="lm_head.weight" not in names, scale=dim**-0.5 if scales else None),
    )


def _read_feedforward(fields: Fields) -> Gated | Dense:
    kind, width = str(fields.get("feed_forward_proj")), fields.count("d_ff")
    name = "gelu_new" if kind == "gated-gelu" else kind.removeprefix("gated-")
    implied: dict[str, object] = {"is_gated_act": kind.startswith("gated-"), "dense_act_fn": name}
    for field, value in implied.items():
        if fields.get(field) not in (None, value):
            fields.contradicts(field, "feed_forward_proj", kind, taken=field)
            implied[field] = fields.get(field)
    if implied["dense_act_fn"] not in ACTIVATIONS:
        raise ValueError(f"{fields.where}: feed_forward_proj={kind!r} is not supported")
    activation = ACTIVATIONS[str(implied["dense_act_fn"])]
    made = Gated if implied["is_gated_act"] else Dense
    return made(feedforward_dim=width, activation=activation)


def _read_buckets(fields: Fields) -> Buckets:
    return Buckets(
        num_buckets=fields.count("relative_attention_num_buckets"),
        max_distance=fields.count("relative_attention_max_distance"),
    )


def _write(config: ModelConfig) -> dict:
    encoder, decoder = stacks_of(config)
    block, head = encoder.blocks[0], require(config.head, Vocabulary, "head")
    feedforward, buckets = block.feedforward, require(encoder.position, Buckets, "encoder.position")
    if feedforward is None or isinstance(feedforward, Experts):
        raise NotRepresentable("feedforward")
    return {
        "is_encoder_decoder": True,
        "d_model": config.model_dim,
        "d_kv": config.head_dim(block.attention),
        "d_ff": config.feedforward_dim(feedforward),
        "n_positions": config.context_length,
        "vocab_size": config.vocab_size,
        "num_layers": encoder.num_layers,
        "num_decoder_layers": decoder.num_layers,
        "num_heads": block.attention.num_heads,
        "feed_forward_proj": _feedforward_name(feedforward),
        "layer_norm_epsilon": require(block.norm, RMSNorm, "norm").epsilon,
        "relative_attention_num_buckets": buckets.num_buckets,
        "relative_attention_max_distance": buckets.max_distance,
        "tie_word_embeddings": head.scale is not None,
        "dropout_rate": 0.0,
        "pad_token_id": 0,
        "decoder_start_token_id": 0,
        "eos_token_id": 1,
    }


def _feedforward_name(feedforward: Gated | Dense) -> str:
    name = ACTIVATION_NAMES[feedforward.activation]
    if isinstance(feedforward, Dense):
        return name
    return "gated-gelu" if feedforward.activation == "gelu_tanh" else f"gated-{name}"


def _stack_names(stack: str, last: int) -> dict[str, str]:
    """`last`: the index of the feed-forward in a block of theirs."""
    ours, theirs = f"{stack}.blocks.#", f"{stack}.block.#.layer"
    return {
        f"{ours}.mixer_norm.before.*": f"{theirs}.0.layer_norm.*",
        f"{ours}.mixer.query_key_value.*": f"{theirs}.0.SelfAttention.[q|k|v].*",
        f"{ours}.mixer.output.*": f"{theirs}.0.SelfAttention.o.*",
        f"{ours}.feedforward_norm.before.*": f"{theirs}.{last}.layer_norm.*",
        f"{ours}.feedforward.gate_up.*": f"{theirs}.{last}.DenseReluDense.[wi_0|wi_1].*",
        f"{ours}.feedforward.up.*": f"{theirs}.{last}.DenseReluDense.wi.*",
        f"{ours}.feedforward.down.*": f"{theirs}.{last}.DenseReluDense.wo.*",
        f"{stack}.position.table": f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
        f"{stack}.final_norm.*": f"{stack}.final_layer_norm.*",
    }


_NAMES = {
    "stem.embedding.weight": "decoder.embed_tokens.weight",
    "encoder_stem.embedding.weight": "encoder.embed_tokens.weight",
    "head.weight": "lm_head.weight",
    **_stack_names("encoder", 1),
    **_stack_names("decoder", 2),
    "decoder.blocks.#.cross_norm.before.*": "decoder.block.#.layer.1.layer_norm.*",
    "decoder.blocks.#.cross.query.*": "decoder.block.#.layer.1.EncDecAttention.q.*",
    "decoder.blocks.#.cross.key_value.*": "decoder.block.#.layer.1.EncDecAttention.[k|v].*",
    "decoder.blocks.#.cross.output.*": "decoder.block.#.layer.1.EncDecAttention.o.*",
}
_ALIASES = {
    "hidden_size": "d_model",
    "num_attention_heads": "num_heads",
    "num_hidden_layers": "num_layers",
    "head_dim": "d_kv",
}
_TIES = dict.fromkeys(("decoder.embed_tokens.weight", "encoder.embed_tokens.weight", "lm_head.weight"), "shared.weight")
_UNUSED = ("decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight",)
T5 = Family(
    model_type="t5",
    architecture="T5ForConditionalGeneration",
    fields=_FIELDS,
    read=_read_t5,
    write=_write,
    names=_NAMES,
    aliases=_ALIASES,
    ties=_TIES,
    always_tied=True,
    unused=_UNUSED,
)
MT5 = Family(
    model_type="mt5",
    architecture="MT5ForConditionalGeneration",
    fields=_FIELDS
    | {"vocab_size": 250_112, "d_ff": 1024, "num_layers": 8, "num_heads": 6, "feed_forward_proj": "gated-gelu"},
    read=_read_mt5,
    write=_write,
    names=_NAMES,
    aliases=_ALIASES,
    ties=_TIES,
    always_tied=True,
    unused=_UNUSED,
)
