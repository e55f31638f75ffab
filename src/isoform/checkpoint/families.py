"""The families of Hugging Face models as tables: their config fields and tensor names beside ours.

A family reads a config.json into a ModelConfig and writes one; whether a ModelConfig can be written is decided by
reading back what was written. In a name, `#` is the number of a block, `*` weight or bias, `@` the number of an
expert, and `[a|b]` tensors that lie one above the other in ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from isoform.mask import Window
from isoform.model.config import (
    Activation,
    Attention,
    BlockConfig,
    Buckets,
    Convolution,
    Dense,
    Experts,
    Extension,
    Gated,
    Initialization,
    LayerNorm,
    Learned,
    Linear,
    LinearExtension,
    Llama3Extension,
    Lookup,
    MaskedVocabulary,
    ModelConfig,
    NTKExtension,
    Pooled,
    RMSNorm,
    Rotary,
    Sinusoidal,
    StackConfig,
    TokenChoice,
    Vocabulary,
    YaRNExtension,
)

T = TypeVar("T")
LARGEST = 2**31
"""No size in a config.json may be larger."""


class Unfit(ValueError):
    """A model config that a family has no words for; the text names the field."""


class Fields:
    """The values of a config.json, taken one by one; wrong types and absurd sizes are ValueErrors naming the field."""

    def __init__(self, values: Mapping[str, object], where: str) -> None:
        self.values, self.where = values, where
        self.taken: set[str] = set()

    def any(self, name: str, default: Any = None) -> object:
        """A value as it is."""
        self.taken.add(name)
        value = self.values.get(name)
        return default if value is None else value

    def count(self, name: str, default: int | None = None, *, most: int = LARGEST) -> int:
        """A whole number from 1 on; it must be there unless there is a default."""
        value = self.any(name, default)
        if value is None:
            raise ValueError(f"{self.where} lacks {name!r}; it is not a whole config of this family")
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
            raise ValueError(f"{self.where}: {name}={value!r} is no number from 1 to {most}")
        return value

    def number(self, name: str, default: float) -> float:
        """A finite number."""
        value = self.any(name, default)
        if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
            raise ValueError(f"{self.where}: {name}={value!r} is no finite number")
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        """True or false."""
        value = self.any(name, default)
        if not isinstance(value, bool):
            raise ValueError(f"{self.where}: {name}={value!r} is neither true nor false")
        return value

    def table(self, name: str) -> Fields:
        """A table, empty where there is none."""
        value = self.any(name, {})
        if not isinstance(value, Mapping):
            raise ValueError(f"{self.where}: {name}={value!r} is no table")
        return Fields(value, f"{self.where}: {name}")

    def only(self, name: str, allowed: Any) -> None:
        """Raises ValueError if the field is there with another value than the one that we can express."""
        value = self.any(name, allowed)
        if value != allowed:
            raise ValueError(f"{self.where}: {name}={value!r} is not supported, only {allowed!r}")

    def activation(self, name: str, default: str) -> Activation:
        """Our name of an activation."""
        value = self.any(name, default)
        if value not in ACTIVATIONS:
            raise ValueError(f"{self.where}: {name}={value!r} is not supported (known: {', '.join(ACTIVATIONS)})")
        return ACTIVATIONS[str(value)]


ACTIVATIONS: dict[str, Activation] = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "relu2": "relu2",
    "silu": "silu",
    "swish": "silu",
}
THEIRS: dict[Activation, str] = {
    "gelu": "gelu",
    "gelu_tanh": "gelu_pytorch_tanh",
    "relu": "relu",
    "relu2": "relu2",
    "silu": "silu",
}


@dataclass(frozen=True, eq=False)
class Family:
    """One model_type: how its config is read and written, and its names beside ours.

    `read(fields, names)`: from a config.json and the names of the tensors; `write(config)`: raises Unfit for what it
    has no words for. form: how a tensor of theirs differs from ours, by our name: `transposed`, `two unused rows`, or a
    function that gives its shape. `left`: tensors of theirs that may be there and hold nothing of their own.
    """

    model_type: str
    architecture: str
    read: Callable[[Fields, set[str]], ModelConfig]
    write: Callable[[ModelConfig], dict]
    names: Mapping[str, str]
    form: Mapping[str, str | Callable[[ModelConfig], tuple[int, ...]]] = field(default_factory=dict)
    left: tuple[str, ...] = ()
    prefix: str = ""
    """What names begin with in the class with a head and lack in the class without."""


# What families have in common


def rotary(fields: Fields, kind: str = "", *, base: float = 10000.0) -> Rotary:
    """The rotary scheme of a config: of all layers, or (`kind`) of one kind of layer; both spellings of the field."""
    table = fields.table("rope_parameters") if fields.any("rope_parameters") else fields.table("rope_scaling")
    fields.any("rope_scaling")
    if kind and kind in table.values:
        table = table.table(kind)
    base = table.number("rope_theta", fields.number("rope_theta", base))
    fraction = table.number("partial_rotary_factor", fields.number("partial_rotary_factor", 1.0))
    original = table.count("original_max_position_embeddings", fields.count("max_position_embeddings", 2048))
    name, factor = table.any("rope_type", table.any("type", "default")), table.number("factor", 1.0)
    extension: Extension | None
    match name:
        case "default":
            extension = None
        case "linear":
            extension = LinearExtension(factor=factor)
        case "yarn":
            table.only("mscale", None)
            table.only("truncate", True)
            given = table.any("attention_factor")
            extension = YaRNExtension(
                factor=factor,
                original_length=original,
                beta_fast=table.number("beta_fast", 32.0),
                beta_slow=table.number("beta_slow", 1.0),
                attention_factor=None if given is None else table.number("attention_factor", 1.0),
            )
        case "llama3":
            extension = Llama3Extension(
                factor=factor,
                low_frequency_factor=table.number("low_freq_factor", 1.0),
                high_frequency_factor=table.number("high_freq_factor", 4.0),
                original_length=original,
            )
        case _:
            raise ValueError(f"{table.where}: rope_type={name!r} is not supported (default, linear, yarn, llama3 are)")
    return Rotary(base=base, fraction=fraction, extension=extension)


def rope(position: Any) -> dict:
    """The fields of a rotary scheme."""
    if not isinstance(position, Rotary) or position.axes != 1:
        raise Unfit(f"position {type(position).__name__}")
    partial = {} if position.fraction == 1.0 else {"partial_rotary_factor": position.fraction}
    base = {"rope_theta": position.base, **partial}
    match position.extension:
        case None:
            return {**base, "rope_type": "default"}
        case LinearExtension(factor=factor):
            return {**base, "rope_type": "linear", "factor": factor}
        case Llama3Extension() as e:
            return {
                **base,
                "rope_type": "llama3",
                "factor": e.factor,
                "low_freq_factor": e.low_frequency_factor,
                "high_freq_factor": e.high_frequency_factor,
                "original_max_position_embeddings": e.original_length,
            }
        case YaRNExtension() as e:
            given = {} if e.attention_factor is None else {"attention_factor": e.attention_factor}
            return {
                **base,
                "rope_type": "yarn",
                "factor": e.factor,
                "beta_fast": e.beta_fast,
                "beta_slow": e.beta_slow,
                "original_max_position_embeddings": e.original_length,
                **given,
            }
        case NTKExtension():
            raise Unfit("position.extension ntk_extension")


def of_kind(value: Any, kind: type[T], where: str) -> T:
    """The value, if it is of this kind. Raises Unfit otherwise."""
    if not isinstance(value, kind):
        raise Unfit(f"{where} {type(value).__name__}")
    return value


def decoder_of(config: ModelConfig) -> StackConfig:
    """The one stack of a decoder."""
    if config.decoder is None or config.encoder is not None:
        raise Unfit("encoder")
    return config.decoder


def encoder_of(config: ModelConfig) -> StackConfig:
    """The one stack of an encoder."""
    if config.encoder is None or config.decoder is not None:
        raise Unfit("decoder")
    return config.encoder


def pair_of(config: ModelConfig) -> tuple[StackConfig, StackConfig]:
    """Both stacks."""
    if config.encoder is None or config.decoder is None:
        raise Unfit("encoder" if config.encoder is None else "decoder")
    return config.encoder, config.decoder


# Decoders of Llama's kind


def _block(fields: Fields, heads: dict, feedforward: Gated | Experts, **norm: Any) -> BlockConfig:
    return BlockConfig(
        mixer=Attention(**heads),
        feedforward=feedforward,
        norm=RMSNorm(epsilon=fields.number("rms_norm_eps", 1e-6), zero_centered=bool(norm.pop("zero_centered", False))),
        **norm,
    )


def _heads(fields: Fields) -> dict:
    heads = fields.count("num_attention_heads")
    given = fields.any("head_dim")
    return {
        "num_heads": heads,
        "num_kv_heads": fields.count("num_key_value_heads", heads),
        "head_dim": None if given is None else fields.count("head_dim"),
    }


def _gated(fields: Fields, default: str = "silu") -> Gated:
    return Gated(feedforward_dim=fields.count("intermediate_size"), activation=fields.activation("hidden_act", default))


def _decoder(
    fields: Fields, blocks: tuple[BlockConfig, ...], position: Rotary, *, tied: bool = False, **more: Any
) -> ModelConfig:
    layers = fields.count("num_hidden_layers", most=10_000)
    tied = fields.flag("tie_word_embeddings", tied)
    return ModelConfig(
        model_dim=fields.count("hidden_size"),
        context_length=fields.count("max_position_embeddings"),
        vocab_size=fields.count("vocab_size"),
        decoder=StackConfig(num_layers=layers, blocks=blocks, position=position),
        head=Vocabulary(tied=tied, softcap=_softcap(fields)),
        **more,
    )


def _softcap(fields: Fields) -> float | None:
    return None if fields.any("final_logit_softcapping") is None else fields.number("final_logit_softcapping", 0.0)


def _write_decoder(config: ModelConfig, block: BlockConfig, epsilon_of: Any) -> dict:
    attention, norm = block.attention, of_kind(epsilon_of, RMSNorm, "norm")
    return {
        "hidden_size": config.model_dim,
        "max_position_embeddings": config.context_length,
        "vocab_size": config.vocab_size,
        "num_hidden_layers": decoder_of(config).num_layers,
        "num_attention_heads": attention.num_heads,
        "num_key_value_heads": attention.num_kv_heads or attention.num_heads,
        "head_dim": config.head_dim(block.attention),
        "rms_norm_eps": norm.epsilon,
        "tie_word_embeddings": of_kind(config.head, Vocabulary, "head").tied,
        "attention_dropout": 0.0,
    }


def _write_gated(config: ModelConfig, block: BlockConfig) -> dict:
    feedforward = of_kind(block.feedforward, Gated, "feedforward")
    return {
        "intermediate_size": config.feedforward_dim(feedforward),
        "hidden_act": THEIRS[feedforward.activation],
    }


def _read_llama(fields: Fields, names: set[str]) -> ModelConfig:
    has_bias, has_inner_bias = fields.flag("attention_bias", False), fields.flag("mlp_bias", False)
    block = _block(fields, {**_heads(fields), "bias": has_bias}, replace(_gated(fields), bias=has_inner_bias))
    return _decoder(fields, (block,), rotary(fields))


def _write_llama(config: ModelConfig) -> dict:
    stack = decoder_of(config)
    block = stack.blocks[0]
    return {
        **_write_decoder(config, block, block.norm),
        **_write_gated(config, block),
        "attention_bias": block.attention.bias,
        "mlp_bias": of_kind(block.feedforward, Gated, "feedforward").bias,
        "rope_parameters": rope(stack.position),
    }


def _read_mistral(fields: Fields, names: set[str]) -> ModelConfig:
    window = fields.any("sliding_window")
    pattern = None if window is None else Window(fields.count("sliding_window") - 1)
    block = _block(fields, {**_heads(fields), "pattern": pattern}, _gated(fields))
    return _decoder(fields, (block,), rotary(fields))


def _write_mistral(config: ModelConfig) -> dict:
    stack = decoder_of(config)
    block = stack.blocks[0]
    pattern = block.attention.pattern
    return {
        **_write_decoder(config, block, block.norm),
        **_write_gated(config, block),
        "sliding_window": None if pattern is None else of_kind(pattern, Window, "attention.pattern").before + 1,
        "rope_parameters": rope(stack.position),
    }


def _qk_norm(fields: Fields, **more: Any) -> RMSNorm:
    return RMSNorm(epsilon=fields.number("rms_norm_eps", 1e-6), **more)


def all_alike(fields: Fields) -> None:
    """Raises ValueError for layers of several kinds, in a family where we know one."""
    kinds = fields.any("layer_types", ["full_attention"])
    if not isinstance(kinds, list) or {*map(str, kinds)} != {"full_attention"}:
        raise ValueError(f"{fields.where}: layer_types={kinds!r} is not supported here, only full_attention")


def _read_qwen3(fields: Fields, names: set[str]) -> ModelConfig:
    all_alike(fields)
    fields.only("use_sliding_window", False)
    fields.only("attention_bias", False)
    block = _block(fields, {"head_dim": 128, **_heads(fields), "qk_norm": _qk_norm(fields)}, _gated(fields))
    return _decoder(fields, (block,), rotary(fields))


def _write_qwen3(config: ModelConfig) -> dict:
    stack = decoder_of(config)
    block = stack.blocks[0]
    return {
        **_write_decoder(config, block, block.norm),
        **_write_gated(config, block),
        "attention_bias": False,
        "use_sliding_window": False,
        "rope_parameters": rope(stack.position),
    }


def _read_gemma3(fields: Fields, names: set[str]) -> ModelConfig:
    fields.only("attn_logit_softcapping", None)
    fields.only("attention_bias", False)
    fields.only("use_bidirectional_attention", False)
    layers, every = fields.count("num_hidden_layers", most=10_000), fields.any("sliding_window_pattern")
    every = fields.any("_sliding_window_pattern", every or 6)
    default = ["full_attention" if (i + 1) % int(str(every)) == 0 else "sliding_attention" for i in range(layers)]
    kinds = fields.any("layer_types", default)
    if not isinstance(kinds, list) or len(kinds) != layers or {*kinds} - {"full_attention", "sliding_attention"}:
        raise ValueError(f"{fields.where}: layer_types={kinds!r} doesn't name a kind for each of {layers} layers")
    heads = {
        "head_dim": 256,
        **_heads(fields),
        "qk_norm": _qk_norm(fields, zero_centered=True),
        "scale": fields.number("query_pre_attn_scalar", 256.0) ** -0.5,
    }
    inner = Gated(
        feedforward_dim=fields.count("intermediate_size"),
        activation=fields.activation("hidden_activation", "gelu_pytorch_tanh"),
    )
    whole = _block(fields, heads, inner, norm_placement="sandwich", zero_centered=True)
    local = {
        "pattern": Window(fields.count("sliding_window", 4096) - 1),
        "position": _gemma_local(fields),
    }
    near = replace(whole, mixer=replace(whole.attention, **local))
    blocks = shortest(tuple(whole if kind == "full_attention" else near for kind in kinds))
    return _decoder(
        fields, blocks, rotary(fields, "full_attention", base=1_000_000.0), tied=True, stem=Lookup(scale=True)
    )


def _gemma_local(fields: Fields) -> Rotary:
    if fields.any("rope_parameters"):
        return rotary(fields, "sliding_attention")
    return Rotary(base=fields.number("rope_local_base_freq", 10_000.0))


def _write_gemma3(config: ModelConfig) -> dict:
    stack = decoder_of(config)
    layers = config.layers(stack)
    whole = next((b for b in layers if b.attention.pattern is None), layers[0])
    near = next((b for b in layers if b.attention.pattern is not None), layers[0])
    inner, scale = of_kind(whole.feedforward, Gated, "feedforward"), whole.attention.scale
    window = of_kind(near.attention.pattern, Window, "attention.pattern")
    return {
        **_write_decoder(config, whole, whole.norm),
        "intermediate_size": config.feedforward_dim(inner),
        "hidden_activation": THEIRS[inner.activation],
        "layer_types": ["sliding_attention" if b.attention.pattern else "full_attention" for b in layers],
        "sliding_window": window.before + 1,
        "query_pre_attn_scalar": _square(1 / (scale or config.head_dim(whole.attention) ** -0.5)),
        "final_logit_softcapping": of_kind(config.head, Vocabulary, "head").softcap,
        "attn_logit_softcapping": None,
        "attention_bias": False,
        "rope_parameters": {
            "full_attention": rope(stack.position),
            "sliding_attention": rope(near.attention.position or stack.position),
        },
    }


def _square(root: float) -> float:
    """The square, as a whole number where it is one."""
    square = root * root
    return round(square) if math.isclose(square, round(square), rel_tol=1e-12) else square


def _read_olmo2(fields: Fields, names: set[str]) -> ModelConfig:
    heads = {
        **_heads(fields),
        "bias": fields.flag("attention_bias", False),
        "qk_norm": _qk_norm(fields),
        "qk_norm_over": "projection",
    }
    return _decoder(fields, (_block(fields, heads, _gated(fields), norm_placement="reordered"),), rotary(fields))


def _write_olmo2(config: ModelConfig) -> dict:
    stack = decoder_of(config)
    block = stack.blocks[0]
    written = {
        **_write_decoder(config, block, block.norm),
        **_write_gated(config, block),
        "attention_bias": block.attention.bias,
        "rope_parameters": rope(stack.position),
    }
    if config.head_dim(block.attention) * block.attention.num_heads != config.model_dim:
        raise Unfit("attention.head_dim")
    return {name: value for name, value in written.items() if name != "head_dim"}


def _read_mixtral(fields: Fields, names: set[str]) -> ModelConfig:
    window = fields.any("sliding_window")
    pattern = None if window is None else Window(fields.count("sliding_window") - 1)
    experts = Experts(
        num_experts=fields.count("num_local_experts", 8, most=10_000),
        expert=_gated(fields),
        router=TokenChoice(
            num_active=fields.count("num_experts_per_tok", 2), balance_loss=fields.number("router_aux_loss_coef", 0.001)
        ),
    )
    block = _block(fields, {**_heads(fields), "pattern": pattern}, experts)
    block = replace(block, norm=RMSNorm(epsilon=fields.number("rms_norm_eps", 1e-5)))
    return _decoder(fields, (block,), rotary(fields, base=1_000_000.0))


def _write_mixtral(config: ModelConfig) -> dict:
    stack = decoder_of(config)
    block = stack.blocks[0]
    experts, pattern = of_kind(block.feedforward, Experts, "feedforward"), block.attention.pattern
    router = of_kind(experts.router, TokenChoice, "feedforward.router")
    return {
        **_write_decoder(config, block, block.norm),
        **_write_gated(config, replace(block, feedforward=experts.expert)),
        "num_local_experts": experts.num_experts,
        "num_experts_per_tok": router.num_active,
        "router_aux_loss_coef": router.balance_loss,
        "sliding_window": None if pattern is None else of_kind(pattern, Window, "attention.pattern").before + 1,
        "rope_parameters": rope(stack.position),
    }


def _read_qwen3_moe(fields: Fields, names: set[str]) -> ModelConfig:
    all_alike(fields)
    fields.only("use_sliding_window", False)
    fields.only("attention_bias", False)
    fields.only("decoder_sparse_step", 1)
    fields.only("mlp_only_layers", [])
    fields.count("intermediate_size", 1)
    experts = Experts(
        num_experts=fields.count("num_experts", fields.count("num_local_experts", 128, most=10_000), most=10_000),
        expert=Gated(
            feedforward_dim=fields.count("moe_intermediate_size"), activation=fields.activation("hidden_act", "silu")
        ),
        router=TokenChoice(
            num_active=fields.count("num_experts_per_tok", 8),
            normalize=fields.flag("norm_topk_prob", False),
            balance_loss=fields.number("router_aux_loss_coef", 0.001),
        ),
    )
    return _decoder(fields, (_block(fields, {**_heads(fields), "qk_norm": _qk_norm(fields)}, experts),), rotary(fields))


def _write_qwen3_moe(config: ModelConfig) -> dict:
    stack = decoder_of(config)
    block = stack.blocks[0]
    experts = of_kind(block.feedforward, Experts, "feedforward")
    router = of_kind(experts.router, TokenChoice, "feedforward.router")
    inner = _write_gated(config, replace(block, feedforward=experts.expert))
    return {
        **_write_decoder(config, block, block.norm),
        **inner,
        "moe_intermediate_size": inner["intermediate_size"],
        "num_experts": experts.num_experts,
        "num_experts_per_tok": router.num_active,
        "norm_topk_prob": router.normalize,
        "router_aux_loss_coef": router.balance_loss,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "attention_bias": False,
        "use_sliding_window": False,
        "rope_parameters": rope(stack.position),
    }


_DECODER = {
    "stem.embedding.weight": "model.embed_tokens.weight",
    "decoder.final_norm.*": "model.norm.*",
    "head.weight": "lm_head.weight",
    "decoder.blocks.#.mixer.query_key_value.*": "model.layers.#.self_attn.[q_proj|k_proj|v_proj].*",
    "decoder.blocks.#.mixer.output.*": "model.layers.#.self_attn.o_proj.*",
    "decoder.blocks.#.mixer.query_norm.*": "model.layers.#.self_attn.q_norm.*",
    "decoder.blocks.#.mixer.key_norm.*": "model.layers.#.self_attn.k_norm.*",
    "decoder.blocks.#.feedforward.gate_up.*": "model.layers.#.mlp.[gate_proj|up_proj].*",
    "decoder.blocks.#.feedforward.down.*": "model.layers.#.mlp.down_proj.*",
}
_PRE = {
    "decoder.blocks.#.mixer_norm.before.*": "model.layers.#.input_layernorm.*",
    "decoder.blocks.#.feedforward_norm.before.*": "model.layers.#.post_attention_layernorm.*",
}
_INNER = {
    "decoder.blocks.#.mixer_norm.inner.*": "model.layers.#.post_attention_layernorm.*",
    "decoder.blocks.#.feedforward_norm.inner.*": "model.layers.#.post_feedforward_layernorm.*",
}
_SANDWICH = {
    **_INNER,
    "decoder.blocks.#.mixer_norm.before.*": "model.layers.#.input_layernorm.*",
    "decoder.blocks.#.feedforward_norm.before.*": "model.layers.#.pre_feedforward_layernorm.*",
}


# GPT-2


def _read_gpt2(fields: Fields, names: set[str]) -> ModelConfig:
    for name, value in (
        ("scale_attn_weights", True),
        ("scale_attn_by_inverse_layer_idx", False),
        ("reorder_and_upcast_attn", False),
        ("add_cross_attention", False),
    ):
        fields.only(name, value)
    inner = fields.any("n_inner")
    dim = fields.count("n_embd")
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
        decoder=StackConfig(num_layers=fields.count("n_layer", most=10_000), blocks=(block,), position=Learned()),
        head=Vocabulary(tied=fields.flag("tie_word_embeddings", True)),
    )


def _write_gpt2(config: ModelConfig) -> dict:
    stack = decoder_of(config)
    block = stack.blocks[0]
    inner = of_kind(block.feedforward, Dense, "feedforward")
    return {
        "n_embd": config.model_dim,
        "n_positions": config.context_length,
        "vocab_size": config.vocab_size,
        "n_layer": stack.num_layers,
        "n_head": block.attention.num_heads,
        "n_inner": config.feedforward_dim(inner),
        "activation_function": "gelu_new" if inner.activation == "gelu_tanh" else THEIRS[inner.activation],
        "layer_norm_epsilon": of_kind(block.norm, LayerNorm, "norm").epsilon,
        "tie_word_embeddings": of_kind(config.head, Vocabulary, "head").tied,
        "attn_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "resid_pdrop": 0.0,
    }


_GPT2 = {
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
}
_GPT2_FORM = {
    "decoder.blocks.#.mixer.query_key_value.weight": "transposed",
    "decoder.blocks.#.mixer.output.weight": "transposed",
    "decoder.blocks.#.feedforward.up.weight": "transposed",
    "decoder.blocks.#.feedforward.down.weight": "transposed",
}


# Encoders


def _read_bert(fields: Fields, names: set[str]) -> ModelConfig:
    for name, value in (("add_cross_attention", False), ("is_decoder", False), ("position_embedding_type", "absolute")):
        fields.only(name, value)
    norm = LayerNorm(epsilon=fields.number("layer_norm_eps", 1e-12))
    activation = fields.activation("hidden_act", "gelu")
    block = BlockConfig(
        mixer=Attention(num_heads=fields.count("num_attention_heads"), bias=True),
        feedforward=Dense(feedforward_dim=fields.count("intermediate_size"), activation=activation, bias=True),
        norm=norm,
        norm_placement="post",
    )
    is_masked = "cls.predictions.transform.dense.weight" in names
    tied = fields.flag("tie_word_embeddings", True)
    return ModelConfig(
        model_dim=fields.count("hidden_size"),
        context_length=fields.count("max_position_embeddings"),
        vocab_size=fields.count("vocab_size"),
        encoder=StackConfig(
            num_layers=fields.count("num_hidden_layers", most=10_000),
            blocks=(block,),
            position=Learned(),
            input_norm=norm,
            final_norm=False,
        ),
        decoder=None,
        stem=Lookup(num_kinds=fields.count("type_vocab_size", 2)),
        head=MaskedVocabulary(activation=activation, norm=norm, tied=tied)
        if is_masked
        else Pooled(over="mean", embed=True),
    )


def _write_bert(config: ModelConfig) -> dict:
    stack = encoder_of(config)
    block = stack.blocks[0]
    inner = of_kind(block.feedforward, Dense, "feedforward")
    is_masked = isinstance(config.head, MaskedVocabulary)
    return {
        "architectures": ["BertForMaskedLM" if is_masked else "BertModel"],
        "hidden_size": config.model_dim,
        "max_position_embeddings": config.context_length,
        "vocab_size": config.vocab_size,
        "num_hidden_layers": stack.num_layers,
        "num_attention_heads": block.attention.num_heads,
        "intermediate_size": config.feedforward_dim(inner),
        "hidden_act": THEIRS[inner.activation],
        "layer_norm_eps": of_kind(block.norm, LayerNorm, "norm").epsilon,
        "type_vocab_size": of_kind(config.stem, Lookup, "stem").num_kinds,
        "tie_word_embeddings": config.head.tied if isinstance(config.head, MaskedVocabulary) else True,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }


_BERT = {
    "stem.embedding.weight": "bert.embeddings.word_embeddings.weight",
    "stem.kinds.weight": "bert.embeddings.token_type_embeddings.weight",
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
    "head.bias": "cls.predictions.bias",
}


def _read_modernbert(fields: Fields, names: set[str]) -> ModelConfig:
    for name, value in (("attention_bias", False), ("mlp_bias", False), ("classifier_bias", False)):
        fields.only(name, value)
    norm = LayerNorm(epsilon=fields.number("norm_eps", 1e-5), bias=fields.flag("norm_bias", False))
    layers, every = fields.count("num_hidden_layers", most=10_000), fields.count("global_attn_every_n_layers", 3)
    kinds = fields.any("layer_types", ["sliding_attention" if i % every else "full_attention" for i in range(layers)])
    if not isinstance(kinds, list) or len(kinds) != layers:
        raise ValueError(f"{fields.where}: layer_types={kinds!r} doesn't name a kind for each of {layers} layers")
    activation = fields.activation("hidden_activation", "gelu")
    whole = BlockConfig(
        mixer=Attention(num_heads=fields.count("num_attention_heads")),
        feedforward=Gated(feedforward_dim=fields.count("intermediate_size"), activation=activation),
        norm=norm,
    )
    if fields.any("rope_parameters"):
        bases = rotary(fields, "full_attention", base=160_000.0), rotary(fields, "sliding_attention")
    else:
        bases = (
            Rotary(base=fields.number("global_rope_theta", 160_000.0)),
            Rotary(base=fields.number("local_rope_theta", 10_000.0)),
        )
    half = fields.count("local_attention", 128) // 2
    near = replace(whole, mixer=replace(whole.attention, pattern=Window(half, half), position=bases[1]))
    return ModelConfig(
        model_dim=fields.count("hidden_size"),
        context_length=fields.count("max_position_embeddings"),
        vocab_size=fields.count("vocab_size"),
        encoder=StackConfig(
            num_layers=layers,
            blocks=shortest(tuple(whole if kind == "full_attention" else near for kind in kinds)),
            position=bases[0],
            input_norm=norm,
            first_norm=False,
        ),
        decoder=None,
        head=MaskedVocabulary(
            activation=fields.activation("classifier_activation", "gelu"),
            norm=norm,
            dense_bias=False,
            tied=fields.flag("tie_word_embeddings", True),
            bias=fields.flag("decoder_bias", True),
        ),
    )


def _write_modernbert(config: ModelConfig) -> dict:
    stack = encoder_of(config)
    layers, head = config.layers(stack), of_kind(config.head, MaskedVocabulary, "head")
    whole = next((b for b in layers if b.attention.pattern is None), layers[0])
    near = next((b for b in layers if b.attention.pattern is not None), layers[0])
    inner, norm = of_kind(whole.feedforward, Gated, "feedforward"), of_kind(whole.norm, LayerNorm, "norm")
    return {
        "hidden_size": config.model_dim,
        "max_position_embeddings": config.context_length,
        "vocab_size": config.vocab_size,
        "num_hidden_layers": stack.num_layers,
        "num_attention_heads": whole.attention.num_heads,
        "intermediate_size": config.feedforward_dim(inner),
        "hidden_activation": THEIRS[inner.activation],
        "classifier_activation": THEIRS[head.activation],
        "norm_eps": norm.epsilon,
        "norm_bias": norm.bias,
        "local_attention": 2 * of_kind(near.attention.pattern, Window, "attention.pattern").before,
        "layer_types": ["sliding_attention" if b.attention.pattern else "full_attention" for b in layers],
        "global_attn_every_n_layers": len(stack.blocks),
        "tie_word_embeddings": head.tied,
        "decoder_bias": head.bias,
        "attention_bias": False,
        "mlp_bias": False,
        "classifier_bias": False,
        "attention_dropout": 0.0,
        "embedding_dropout": 0.0,
        "mlp_dropout": 0.0,
        "rope_parameters": {
            "full_attention": rope(stack.position),
            "sliding_attention": rope(near.attention.position or stack.position),
        },
    }


_MODERNBERT = {
    "stem.embedding.weight": "model.embeddings.tok_embeddings.weight",
    "encoder.input_norm.*": "model.embeddings.norm.*",
    "encoder.final_norm.*": "model.final_norm.*",
    "encoder.blocks.#.mixer_norm.before.*": "model.layers.#.attn_norm.*",
    "encoder.blocks.#.mixer.query_key_value.*": "model.layers.#.attn.Wqkv.*",
    "encoder.blocks.#.mixer.output.*": "model.layers.#.attn.Wo.*",
    "encoder.blocks.#.feedforward_norm.before.*": "model.layers.#.mlp_norm.*",
    "encoder.blocks.#.feedforward.gate_up.*": "model.layers.#.mlp.Wi.*",
    "encoder.blocks.#.feedforward.down.*": "model.layers.#.mlp.Wo.*",
    "head.dense.*": "head.dense.*",
    "head.norm.*": "head.norm.*",
    "head.weight": "decoder.weight",
    "head.bias": "decoder.bias",
}


def _read_vit(fields: Fields, names: set[str]) -> ModelConfig:
    patch, side = fields.count("patch_size", 16, most=10_000), fields.count("image_size", 224, most=100_000)
    channels, labels = fields.count("num_channels", 3), fields.any("id2label", {0: "", 1: ""})
    block = BlockConfig(
        mixer=Attention(
            num_heads=fields.count("num_attention_heads"), bias=fields.flag("qkv_bias", True), output_bias=True
        ),
        feedforward=Dense(
            feedforward_dim=fields.count("intermediate_size"),
            activation=fields.activation("hidden_act", "gelu"),
            bias=True,
        ),
        norm=LayerNorm(epsilon=fields.number("layer_norm_eps", 1e-12)),
    )
    return ModelConfig(
        model_dim=fields.count("hidden_size"),
        context_length=(side // patch) ** 2 + 1,
        vocab_size=1,
        encoder=StackConfig(
            num_layers=fields.count("num_hidden_layers", most=10_000), blocks=(block,), position=Learned()
        ),
        decoder=None,
        stem=Linear(num_features=channels * patch * patch, num_ids=1),
        head=Pooled(num_outputs=len(labels) if isinstance(labels, Mapping) else 0),
    )


def _patch(config: ModelConfig) -> int:
    """The side of a square patch of three channels, or of one."""
    features = of_kind(config.stem, Linear, "stem").num_features
    channels = 3 if features % 3 == 0 else 1
    side = math.isqrt(features // channels)
    if side * side * channels != features:
        raise Unfit(f"stem.num_features {features}")
    return side


def _write_vit(config: ModelConfig) -> dict:
    stack = encoder_of(config)
    block = stack.blocks[0]
    inner, patch = of_kind(block.feedforward, Dense, "feedforward"), _patch(config)
    labels = of_kind(config.head, Pooled, "head").num_outputs
    side = math.isqrt(config.context_length - 1)
    return {
        "hidden_size": config.model_dim,
        "image_size": side * patch,
        "patch_size": patch,
        "num_channels": of_kind(config.stem, Linear, "stem").num_features // patch**2,
        "num_hidden_layers": stack.num_layers,
        "num_attention_heads": block.attention.num_heads,
        "intermediate_size": config.feedforward_dim(inner),
        "hidden_act": THEIRS[inner.activation],
        "layer_norm_eps": of_kind(block.norm, LayerNorm, "norm").epsilon,
        "qkv_bias": block.attention.bias,
        "id2label": {str(i): f"LABEL_{i}" for i in range(labels)},
        "label2id": {f"LABEL_{i}": i for i in range(labels)},
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }


def _patch_shape(config: ModelConfig) -> tuple[int, ...]:
    side, features = _patch(config), of_kind(config.stem, Linear, "stem").num_features
    return config.model_dim, features // side**2, side, side


_VIT = {
    "stem.projection.*": "vit.embeddings.patch_embeddings.projection.*",
    "stem.embedding.weight": "vit.embeddings.cls_token",
    "encoder.position.table": "vit.embeddings.position_embeddings",
    "encoder.final_norm.*": "vit.layernorm.*",
    "encoder.blocks.#.mixer_norm.before.*": "vit.encoder.layer.#.layernorm_before.*",
    "encoder.blocks.#.feedforward_norm.before.*": "vit.encoder.layer.#.layernorm_after.*",
    "encoder.blocks.#.mixer.query_key_value.*": "vit.encoder.layer.#.attention.attention.[query|key|value].*",
    "encoder.blocks.#.mixer.output.*": "vit.encoder.layer.#.attention.output.dense.*",
    "encoder.blocks.#.feedforward.up.*": "vit.encoder.layer.#.intermediate.dense.*",
    "encoder.blocks.#.feedforward.down.*": "vit.encoder.layer.#.output.dense.*",
    "head.output.*": "classifier.*",
}


# Encoder-decoders


def _read_t5(fields: Fields, names: set[str]) -> ModelConfig:
    kind = str(fields.any("feed_forward_proj", "relu"))
    width, gated = fields.count("d_ff"), kind.startswith("gated-")
    name = "gelu_new" if kind == "gated-gelu" else kind.removeprefix("gated-")
    if name not in ACTIVATIONS:
        raise ValueError(f"{fields.where}: feed_forward_proj={kind!r} is not supported")
    activation = ACTIVATIONS[name]
    scales = fields.flag("scale_decoder_outputs", fields.flag("tie_word_embeddings", True))
    dim, heads = fields.count("d_model"), fields.count("num_heads")
    block = BlockConfig(
        mixer=Attention(num_heads=heads, head_dim=fields.count("d_kv", 64), scale=1.0),
        feedforward=Gated(feedforward_dim=width, activation=activation)
        if gated
        else Dense(feedforward_dim=width, activation=activation),
        norm=RMSNorm(epsilon=fields.number("layer_norm_epsilon", 1e-6)),
    )
    buckets = {
        "num_buckets": fields.count("relative_attention_num_buckets", 32),
        "max_distance": fields.count("relative_attention_max_distance", 128),
    }
    layers = fields.count("num_layers", most=10_000)
    encoder = StackConfig(num_layers=layers, blocks=(block,), position=Buckets(**buckets, bidirectional=True))
    decoder = replace(
        encoder,
        num_layers=fields.count("num_decoder_layers", layers, most=10_000),
        position=Buckets(**buckets),
        cross="separate",
    )
    return ModelConfig(
        model_dim=dim,
        context_length=fields.count("n_positions", 512),
        vocab_size=fields.count("vocab_size"),
        encoder=encoder,
        decoder=decoder,
        head=Vocabulary(tied="lm_head.weight" not in names, scale=dim**-0.5 if scales else None),
    )


def _write_t5(config: ModelConfig) -> dict:
    encoder, decoder = pair_of(config)
    block, head = encoder.blocks[0], of_kind(config.head, Vocabulary, "head")
    inner, buckets = block.feedforward, of_kind(encoder.position, Buckets, "encoder.position")
    if inner is None or isinstance(inner, Experts):
        raise Unfit("feedforward")
    prefix = "gated-" if isinstance(inner, Gated) else ""
    name = "gelu" if prefix and inner.activation == "gelu_tanh" else THEIRS[inner.activation]
    return {
        "is_encoder_decoder": True,
        "d_model": config.model_dim,
        "d_kv": config.head_dim(block.attention),
        "d_ff": config.feedforward_dim(inner),
        "n_positions": config.context_length,
        "vocab_size": config.vocab_size,
        "num_layers": encoder.num_layers,
        "num_decoder_layers": decoder.num_layers,
        "num_heads": block.attention.num_heads,
        "feed_forward_proj": prefix + name,
        "layer_norm_epsilon": of_kind(block.norm, RMSNorm, "norm").epsilon,
        "relative_attention_num_buckets": buckets.num_buckets,
        "relative_attention_max_distance": buckets.max_distance,
        "tie_word_embeddings": head.scale is not None,
        "dropout_rate": 0.0,
        "pad_token_id": 0,
        "decoder_start_token_id": 0,
        "eos_token_id": 1,
    }


def _t5(stack: str, attention: str, where: int) -> dict[str, str]:
    ours, theirs = f"{stack}.blocks.#", f"{stack}.block.#.layer"
    return {
        f"{ours}.mixer_norm.before.*": f"{theirs}.0.layer_norm.*",
        f"{ours}.mixer.query_key_value.*": f"{theirs}.0.{attention}.[q|k|v].*",
        f"{ours}.mixer.output.*": f"{theirs}.0.{attention}.o.*",
        f"{ours}.feedforward_norm.before.*": f"{theirs}.{where}.layer_norm.*",
        f"{ours}.feedforward.gate_up.*": f"{theirs}.{where}.DenseReluDense.[wi_0|wi_1].*",
        f"{ours}.feedforward.up.*": f"{theirs}.{where}.DenseReluDense.wi.*",
        f"{ours}.feedforward.down.*": f"{theirs}.{where}.DenseReluDense.wo.*",
        f"{stack}.position.table": f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
        f"{stack}.final_norm.*": f"{stack}.final_layer_norm.*",
    }


_T5 = {
    "stem.embedding.weight": "shared.weight",
    "head.weight": "lm_head.weight",
    **_t5("encoder", "SelfAttention", 1),
    **_t5("decoder", "SelfAttention", 2),
    "decoder.blocks.#.cross_norm.before.*": "decoder.block.#.layer.1.layer_norm.*",
    "decoder.blocks.#.cross.query.*": "decoder.block.#.layer.1.EncDecAttention.q.*",
    "decoder.blocks.#.cross.key_value.*": "decoder.block.#.layer.1.EncDecAttention.[k|v].*",
    "decoder.blocks.#.cross.output.*": "decoder.block.#.layer.1.EncDecAttention.o.*",
}


def _read_pair(fields: Fields, block: BlockConfig, stack: StackConfig, **more: Any) -> ModelConfig:
    """An encoder-decoder in the field names that BART brought."""
    stacks: dict[str, Any] = {}
    inner = of_kind(block.feedforward, Dense, "feedforward")
    for side, cross in (("encoder", "none"), ("decoder", "separate")):
        own = replace(
            block,
            mixer=replace(block.attention, num_heads=fields.count(f"{side}_attention_heads")),
            feedforward=replace(inner, feedforward_dim=fields.count(f"{side}_ffn_dim")),
        )
        layers = fields.count(f"{side}_layers", most=10_000)
        stacks[side] = replace(stack, num_layers=layers, blocks=(own,), cross=cross)
    return ModelConfig(model_dim=fields.count("d_model"), vocab_size=fields.count("vocab_size"), **stacks, **more)


def _write_pair(config: ModelConfig) -> dict:
    encoder, decoder = pair_of(config)
    written: dict = {"is_encoder_decoder": True, "d_model": config.model_dim, "vocab_size": config.vocab_size}
    written["decoder_start_token_id"] = 0  # the class wants one
    for side, stack in (("encoder", encoder), ("decoder", decoder)):
        inner = of_kind(stack.blocks[0].feedforward, Dense, "feedforward")
        written[f"{side}_layers"] = stack.num_layers
        written[f"{side}_attention_heads"] = stack.blocks[0].attention.num_heads
        written[f"{side}_ffn_dim"] = config.feedforward_dim(inner)
        written["activation_function"] = THEIRS[inner.activation]
    rates = ("dropout", "attention_dropout", "activation_dropout")
    return {**written, **dict.fromkeys(rates, 0.0)}


def _dense_pair_block(fields: Fields, placement: str) -> BlockConfig:
    return BlockConfig(
        mixer=Attention(bias=True),
        feedforward=Dense(activation=fields.activation("activation_function", "gelu"), bias=True),
        norm_placement="post" if placement == "post" else "pre",
    )


def _read_bart(fields: Fields, names: set[str]) -> ModelConfig:
    stack = StackConfig(position=Learned(), input_norm=LayerNorm(), final_norm=False)
    return _read_pair(
        fields,
        _dense_pair_block(fields, "post"),
        stack,
        context_length=fields.count("max_position_embeddings", 1024),
        stem=Lookup(scale=fields.flag("scale_embedding", False)),
        head=Vocabulary(tied=fields.flag("tie_word_embeddings", True), bias="final_logits_bias" in names),
    )


def _write_bart(config: ModelConfig) -> dict:
    return {
        **_write_pair(config),
        "max_position_embeddings": config.context_length,
        "scale_embedding": of_kind(config.stem, Lookup, "stem").scale,
        "tie_word_embeddings": of_kind(config.head, Vocabulary, "head").tied,
    }


def _read_marian(fields: Fields, names: set[str]) -> ModelConfig:
    fields.only("share_encoder_decoder_embeddings", True)
    fields.only("normalize_embedding", False)
    stack = StackConfig(position=Sinusoidal(order="halves"), final_norm=False)
    return _read_pair(
        fields,
        _dense_pair_block(fields, "post"),
        stack,
        context_length=fields.count("max_position_embeddings", 1024),
        stem=Lookup(scale=fields.flag("scale_embedding", False)),
        head=Vocabulary(tied=fields.flag("tie_word_embeddings", True), bias="final_logits_bias" in names),
    )


def _write_marian(config: ModelConfig) -> dict:
    return {**_write_bart(config), "decoder_vocab_size": config.vocab_size, "share_encoder_decoder_embeddings": True}


def _read_whisper(fields: Fields, names: set[str]) -> ModelConfig:
    fields.only("scale_embedding", False)
    block = _dense_pair_block(fields, "pre")
    block = replace(block, mixer=replace(block.attention, key_bias=False))
    length = fields.count("max_target_positions", 448)
    config = _read_pair(
        fields,
        block,
        StackConfig(position=Learned()),
        context_length=length,
        encoder_stem=Convolution(num_features=fields.count("num_mel_bins", 80)),
        head=Vocabulary(tied=fields.flag("tie_word_embeddings", True)),
    )
    assert config.encoder is not None
    frames = fields.count("max_source_positions", 1500)
    return replace(config, encoder=replace(config.encoder, context_length=frames))


def _write_whisper(config: ModelConfig) -> dict:
    encoder, _ = pair_of(config)
    return {
        **_write_pair(config),
        "num_mel_bins": of_kind(config.encoder_stem, Convolution, "encoder_stem").num_features,
        "max_source_positions": config.length(encoder),
        "max_target_positions": config.context_length,
        "tie_word_embeddings": of_kind(config.head, Vocabulary, "head").tied,
    }


def _pair(stack: str, placement: str) -> dict[str, str]:
    ours, theirs = f"{stack}.blocks.#", f"model.{stack}.layers.#"
    names = {
        f"{ours}.mixer_norm.{placement}.*": f"{theirs}.self_attn_layer_norm.*",
        f"{ours}.mixer.query_key_value.*": f"{theirs}.self_attn.[q_proj|k_proj|v_proj].*",
        f"{ours}.mixer.gap_bias.bias": f"{theirs}.self_attn.[q_proj|v_proj].bias",
        f"{ours}.mixer.output.*": f"{theirs}.self_attn.out_proj.*",
        f"{ours}.feedforward_norm.{placement}.*": f"{theirs}.final_layer_norm.*",
        f"{ours}.feedforward.up.*": f"{theirs}.fc1.*",
        f"{ours}.feedforward.down.*": f"{theirs}.fc2.*",
        f"{stack}.position.table": f"model.{stack}.embed_positions.weight",
        f"{stack}.input_norm.*": f"model.{stack}.layernorm_embedding.*",
        f"{stack}.final_norm.*": f"model.{stack}.layer_norm.*",
    }
    if stack == "decoder":
        names |= {
            f"{ours}.cross_norm.{placement}.*": f"{theirs}.encoder_attn_layer_norm.*",
            f"{ours}.cross.query.*": f"{theirs}.encoder_attn.q_proj.*",
            f"{ours}.cross.key_value.*": f"{theirs}.encoder_attn.[k_proj|v_proj].*",
            f"{ours}.cross.gap_bias.bias": f"{theirs}.encoder_attn.v_proj.bias",
            f"{ours}.cross.output.*": f"{theirs}.encoder_attn.out_proj.*",
        }
    return names


_POST_PAIR = {
    "stem.embedding.weight": "model.shared.weight",
    "head.weight": "lm_head.weight",
    "head.bias": "final_logits_bias",
    **_pair("encoder", "after"),
    **_pair("decoder", "after"),
}
_TABLES = ("model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight")


def _row(config: ModelConfig) -> tuple[int, ...]:
    return 1, config.vocab_size


def _mixtral_experts() -> dict[str, str]:
    theirs = "model.layers.#.block_sparse_moe"
    return {
        "decoder.blocks.#.feedforward.router.weight": f"{theirs}.gate.weight",
        "decoder.blocks.#.feedforward.experts.gate_up": f"{theirs}.experts.@.[w1|w3].weight",
        "decoder.blocks.#.feedforward.experts.down": f"{theirs}.experts.@.w2.weight",
    }


def _qwen_experts() -> dict[str, str]:
    theirs = "model.layers.#.mlp"
    return {
        "decoder.blocks.#.feedforward.router.weight": f"{theirs}.gate.weight",
        "decoder.blocks.#.feedforward.experts.gate_up": f"{theirs}.experts.@.[gate_proj|up_proj].weight",
        "decoder.blocks.#.feedforward.experts.down": f"{theirs}.experts.@.down_proj.weight",
    }


_LEFT = ("*.rotary_emb.inv_freq", "lm_head.weight")
FAMILIES: tuple[Family, ...] = (
    Family("llama", "LlamaForCausalLM", _read_llama, _write_llama, _DECODER | _PRE, left=_LEFT),
    Family("mistral", "MistralForCausalLM", _read_mistral, _write_mistral, _DECODER | _PRE, left=_LEFT),
    Family("qwen3", "Qwen3ForCausalLM", _read_qwen3, _write_qwen3, _DECODER | _PRE, left=_LEFT),
    Family("gemma3_text", "Gemma3ForCausalLM", _read_gemma3, _write_gemma3, _DECODER | _SANDWICH, left=_LEFT),
    Family("olmo2", "Olmo2ForCausalLM", _read_olmo2, _write_olmo2, _DECODER | _INNER, left=_LEFT),
    Family(
        "mixtral",
        "MixtralForCausalLM",
        _read_mixtral,
        _write_mixtral,
        _DECODER | _PRE | _mixtral_experts(),
        left=_LEFT,
    ),
    Family(
        "qwen3_moe",
        "Qwen3MoeForCausalLM",
        _read_qwen3_moe,
        _write_qwen3_moe,
        _DECODER | _PRE | _qwen_experts(),
        left=_LEFT,
    ),
    Family(
        "gpt2",
        "GPT2LMHeadModel",
        _read_gpt2,
        _write_gpt2,
        _GPT2,
        form=_GPT2_FORM,
        left=("*.attn.bias", "*.attn.masked_bias", "lm_head.weight"),
        prefix="transformer.",
    ),
    Family(
        "bert",
        "BertForMaskedLM",
        _read_bert,
        _write_bert,
        _BERT,
        left=("*.position_ids", "bert.pooler.dense.*", "cls.seq_relationship.*", "cls.predictions.decoder.*"),
        prefix="bert.",
    ),
    Family(
        "modernbert",
        "ModernBertForMaskedLM",
        _read_modernbert,
        _write_modernbert,
        _MODERNBERT,
        left=("decoder.weight",),
    ),
    Family(
        "vit",
        "ViTForImageClassification",
        _read_vit,
        _write_vit,
        _VIT,
        form={
            "stem.projection.weight": _patch_shape,
            "stem.embedding.weight": lambda config: (1, 1, config.model_dim),
            "encoder.position.table": lambda config: (1, config.context_length, config.model_dim),
        },
    ),
    Family(
        "t5",
        "T5ForConditionalGeneration",
        _read_t5,
        _write_t5,
        _T5,
        left=("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight"),
    ),
    Family(
        "bart",
        "BartForConditionalGeneration",
        _read_bart,
        _write_bart,
        _POST_PAIR,
        form={
            "encoder.position.table": "two unused rows",
            "decoder.position.table": "two unused rows",
            "head.bias": _row,
        },
        left=(*_TABLES, "lm_head.weight"),
    ),
    Family(
        "marian",
        "MarianMTModel",
        _read_marian,
        _write_marian,
        _POST_PAIR,
        form={"head.bias": _row},
        left=(
            *_TABLES,
            "lm_head.weight",
            "model.encoder.embed_positions.weight",
            "model.decoder.embed_positions.weight",
        ),
    ),
    Family(
        "whisper",
        "WhisperForConditionalGeneration",
        _read_whisper,
        _write_whisper,
        {
            "stem.embedding.weight": "model.decoder.embed_tokens.weight",
            "head.weight": "proj_out.weight",
            "encoder_stem.first.*": "model.encoder.conv1.*",
            "encoder_stem.second.*": "model.encoder.conv2.*",
            **_pair("encoder", "before"),
            **_pair("decoder", "before"),
        },
        left=("proj_out.weight",),
    ),
)


def shortest(blocks: tuple[BlockConfig, ...]) -> tuple[BlockConfig, ...]:
    """The fewest blocks that give these when repeated in turn."""
    for period in range(1, len(blocks)):
        if all(block == blocks[i % period] for i, block in enumerate(blocks)):
            return blocks[:period]
    return blocks


def canonical(config: ModelConfig) -> ModelConfig:
    """The same function with every open field filled in, and what only training reads set to its default."""

    def stack_of(stack: StackConfig | None) -> StackConfig | None:
        if stack is None:
            return None
        blocks = shortest(tuple(block_of(block) for block in config.layers(stack)))
        length = None if stack.context_length == config.context_length else stack.context_length
        plain = StackConfig()
        idle = {"exits": (), "exit_loss": plain.exit_loss, "ahead": 0, "ahead_loss": plain.ahead_loss}
        return replace(stack, blocks=blocks, context_length=length, **idle)

    def block_of(block: BlockConfig) -> BlockConfig:
        if not isinstance(block.mixer, Attention):
            raise Unfit("mixer")
        if block.feedforward is None:
            raise Unfit("feedforward")
        a = block.mixer
        attention = replace(
            a,
            num_kv_heads=a.num_kv_heads or a.num_heads,
            head_dim=config.head_dim(block.attention),
            key_bias=a.key_bias if a.bias else True,
            output_bias=a.bias if a.output_bias is None else a.output_bias,
            scale=None if a.scale == config.head_dim(block.attention) ** -0.5 else a.scale,
            dropout=0.0,
        )
        inner = block.feedforward
        if isinstance(inner, Experts):
            router = inner.router
            if isinstance(router, TokenChoice):
                router = replace(router, balance_loss=0.0, z_loss=0.0)
            expert = replace(inner.expert, feedforward_dim=config.feedforward_dim(inner.expert))
            inner = replace(inner, expert=expert, router=router)
        else:
            inner = replace(inner, feedforward_dim=config.feedforward_dim(inner))
        return replace(block, mixer=attention, feedforward=inner)

    return replace(
        config,
        encoder=stack_of(config.encoder),
        decoder=stack_of(config.decoder),
        dropout=0.0,
        initialization=Initialization(),
    )


def known_types(families: Iterable[Family] = FAMILIES) -> str:
    """The model types that are known, for messages."""
    return ", ".join(family.model_type for family in families)
