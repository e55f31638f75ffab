"""The architectures: the names of a family's config fields and of our tensors in GGUF.

Tensor names map directly from GGUF's to ours, by tables as checkpoint/tensors.py reads them. Metadata keys map to the
fields of the family's config.json, which the family reads already, with its defaults and its checks: the tables here
are names only, and the semantics of a family is defined once.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from isoform.checkpoint.families.experts import MIXTRAL, QWEN3_MOE
from isoform.checkpoint.families.family import Family, decoder_of
from isoform.checkpoint.families.gemma import GEMMA3
from isoform.checkpoint.families.gpt import GPT2
from isoform.checkpoint.families.llama import LLAMA, OLMO2, QWEN3
from isoform.checkpoint.families.sliding import FULL, SLIDING
from isoform.checkpoint.gguf.format import Header, TensorInfo
from isoform.model.config import ModelConfig

FREQUENCIES = "rope_freqs.weight"
"""Llama 3's scaling of the rotary frequencies, which GGUF stores as a factor for each frequency."""


def _same(name: str, tensor: Tensor, config: ModelConfig) -> Tensor:
    return tensor


def _halves(name: str, tensor: Tensor, config: ModelConfig) -> Tensor:
    """Rows of queries and keys: pairs that rotate together are interleaved there, half a head apart here."""
    if not re.search(r"\.attn_[qk]\.", name):
        return tensor
    half = config.head_dim(decoder_of(config).blocks[0].attention) // 2
    return tensor.reshape(-1, half, 2, tensor[0].numel()).transpose(1, 2).reshape(tensor.shape)


def _less_one(name: str, tensor: Tensor, config: ModelConfig) -> Tensor:
    """Norms multiply by their weight there, by 1 + weight here."""
    return tensor.float() - 1 if name.endswith("_norm.weight") else tensor


@dataclass(frozen=True, eq=False, kw_only=True)
class Architecture:
    """One `general.architecture`: its family and its names.

    keys: metadata key, without the architecture as prefix, to config field; fixed: fields with the same value in all
    models of the architecture, which GGUF omits; names: our tensors to GGUF's; restore: undoes what llama.cpp's
    converter did to the values of the tensor of that name.
    """

    name: str
    family: Family
    keys: Mapping[str, str]
    names: Mapping[str, str]
    fixed: Mapping[str, Any] = field(default_factory=dict)
    restore: Callable[[str, Tensor, ModelConfig], Tensor] = _same
    is_rotary: bool = True

    @property
    def ignored(self) -> tuple[str, ...]:
        """Tensors that may be present and are not parameters of the model."""
        return ("output.weight", FREQUENCIES) if self.is_rotary else ("output.weight",)


_KEYS = {
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
}
_MIXTRAL_KEYS = {"expert_count": "num_local_experts", "expert_used_count": "num_experts_per_tok"}
_QWEN_EXPERT_KEYS = {
    "expert_count": "num_experts",
    "expert_used_count": "num_experts_per_tok",
    "expert_feed_forward_length": "moe_intermediate_size",
}
_GEMMA_KEYS = {"attention.sliding_window": "sliding_window", "final_logit_softcapping": "final_logit_softcapping"}
_GPT2_KEYS = {
    "block_count": "n_layer",
    "context_length": "n_positions",
    "embedding_length": "n_embd",
    "feed_forward_length": "n_inner",
    "attention.head_count": "n_head",
    "attention.layer_norm_epsilon": "layer_norm_epsilon",
}
_OPTIONAL = {"attention.head_count_kv", "attention.key_length", "final_logit_softcapping"}
"""Keys that may be absent: key/value heads then equal heads, heads divide the width, there is no cap."""
_REAL = {"attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon", "final_logit_softcapping"}
"""Keys of real numbers; the others are counts."""
_ROTARY = {
    "rope.freq_base", "rope.freq_base_swa", "rope.dimension_count",
    "rope.scaling.type", "rope.scaling.factor", "rope.scaling.original_context_length",
    "rope.scaling.yarn_beta_fast", "rope.scaling.yarn_beta_slow",
}  # fmt: skip
_IGNORED = {"vocab_size", "tensor_data_layout", "rope.scaling.finetuned"}
"""Keys that don't affect the computed function, or repeat a tensor's shape."""
_DEFAULTS = {
    "attention.causal": True,
    "attention.sliding_window_pattern": 6,
    "expert_count": 0,
    "expert_used_count": 0,
    "expert_gating_func": 1,
    "expert_shared_count": 0,
    "expert_weights_norm": True,
    "expert_weights_scale": 1.0,
    "leading_dense_block_count": 0,
    "pooling_type": 0,
    "rope.scaling.attn_factor": 1.0,
}
"""Keys that must have this value, which the families assume."""

_DECODER = {
    "stem.embedding.weight": "token_embd.weight",
    "head.weight": "output.weight",
    "decoder.final_norm.*": "output_norm.*",
    "decoder.blocks.#.mixer.query_key_value.*": "blk.#.[attn_q|attn_k|attn_v].*",
    "decoder.blocks.#.mixer.query_norm.*": "blk.#.attn_q_norm.*",
    "decoder.blocks.#.mixer.key_norm.*": "blk.#.attn_k_norm.*",
    "decoder.blocks.#.mixer.output.*": "blk.#.attn_output.*",
    "decoder.blocks.#.feedforward.gate_up.*": "blk.#.[ffn_gate|ffn_up].*",
    "decoder.blocks.#.feedforward.down.*": "blk.#.ffn_down.*",
    "decoder.blocks.#.feedforward.router.weight": "blk.#.ffn_gate_inp.weight",
    "decoder.blocks.#.feedforward.experts.gate_up": "blk.#.[ffn_gate_exps|ffn_up_exps].weight",
    "decoder.blocks.#.feedforward.experts.down": "blk.#.ffn_down_exps.weight",
}
_PRE_NORMS = {
    "decoder.blocks.#.mixer_norm.before.*": "blk.#.attn_norm.*",
    "decoder.blocks.#.feedforward_norm.before.*": "blk.#.ffn_norm.*",
}
_INNER_NORMS = {
    "decoder.blocks.#.mixer_norm.inner.*": "blk.#.post_attention_norm.*",
    "decoder.blocks.#.feedforward_norm.inner.*": "blk.#.post_ffw_norm.*",
}
_GPT2 = {
    "decoder.position.table": "position_embd.weight",
    "decoder.blocks.#.mixer.query_key_value.*": "blk.#.attn_qkv.*",
    "decoder.blocks.#.feedforward.up.*": "blk.#.ffn_up.*",
}

_LLAMA = Architecture(name="llama", family=LLAMA, keys=_KEYS, names=_DECODER | _PRE_NORMS, restore=_halves)
_MIXTRAL = Architecture(
    name="llama", family=MIXTRAL, keys=_KEYS | _MIXTRAL_KEYS, names=_DECODER | _PRE_NORMS, restore=_halves
)
"""The architecture "llama" with experts."""
_GEMMA3 = Architecture(
    name="gemma3",
    family=GEMMA3,
    keys=_KEYS | _GEMMA_KEYS,
    names=_DECODER | _PRE_NORMS | _INNER_NORMS,
    restore=_less_one,
)
ARCHITECTURES = {
    architecture.name: architecture
    for architecture in (
        _LLAMA,
        Architecture(name="qwen3", family=QWEN3, keys=_KEYS, names=_DECODER | _PRE_NORMS),
        Architecture(
            name="qwen3moe",
            family=QWEN3_MOE,
            keys=_KEYS | _QWEN_EXPERT_KEYS,
            names=_DECODER | _PRE_NORMS,
            fixed={"norm_topk_prob": True},
        ),
        _GEMMA3,
        Architecture(name="olmo2", family=OLMO2, keys=_KEYS, names=_DECODER | _INNER_NORMS),
        Architecture(name="gpt2", family=GPT2, keys=_GPT2_KEYS, names=_DECODER | _PRE_NORMS | _GPT2, is_rotary=False),
    )
}


def architecture_of(header: Header) -> Architecture:
    """The architecture of a file. Raises ValueError for an unknown one."""
    name = header.value("general.architecture", str)
    architecture = ARCHITECTURES.get(name)
    if architecture is None:
        raise ValueError(
            f"{header.path}: general.architecture={name!r} is not known (known: {', '.join(ARCHITECTURES)})"
        )
    return _MIXTRAL if architecture is _LLAMA and header.metadata.get("llama.expert_count") else architecture


def read_config(header: Header, architecture: Architecture) -> ModelConfig:
    """The model's config. Raises ValueError for keys that are missing, unknown, or contradict each other."""
    fields = dict(architecture.fixed)
    for key, name in architecture.keys.items():
        full = f"{architecture.name}.{key}"
        if full in header.metadata or key not in _OPTIONAL:
            fields[name] = header.real(full) if key in _REAL else header.count(full)
    _check_keys(header, architecture)
    fields["vocab_size"] = _table(header).shape[0]
    layers = fields[architecture.keys["block_count"]]
    if layers > len(header.tensors):
        raise ValueError(
            f"{header.path}: {architecture.name}.block_count={layers:,}, but there are {len(header.tensors):,} tensors"
        )
    _fill_in_heads(header, architecture, fields)
    fields["tie_word_embeddings"] = _is_tied(header)
    if architecture.is_rotary:
        fields["rope_parameters"] = _rotary(header, architecture.name, fields)
    if architecture is _LLAMA:
        fields["attention_bias"] = "blk.0.attn_q.bias" in header.tensors
        fields["mlp_bias"] = "blk.0.ffn_up.bias" in header.tensors
    if architecture is _GEMMA3:
        fields |= _gemma3_fields(header, fields)
    try:
        return architecture.family.read(architecture.family.fields_of(fields, "its metadata"), set())
    except (ValueError, TypeError, OverflowError) as error:
        raise ValueError(f"{header.path}: {error}; get the file again") from error


def _check_keys(header: Header, architecture: Architecture) -> None:
    """Raises ValueError for a key of the architecture that is unknown, or has an unsupported value."""
    keys = {*architecture.keys, "attention.value_length", *_IGNORED, *(_ROTARY if architecture.is_rotary else ())}
    for name, value in header.metadata.items():
        key = name.removeprefix(f"{architecture.name}.")
        if key == name or key in keys or (key in _DEFAULTS and value == _DEFAULTS[key]):
            continue
        only = f" other than {_DEFAULTS[key]!r}" if key in _DEFAULTS else ""
        raise ValueError(
            f"{header.path}: {name}={str(value)[:60]!r}: a value{only} of this key is not supported "
            f"(known: {', '.join(sorted(keys | _DEFAULTS.keys()))})"
        )


def _fill_in_heads(header: Header, architecture: Architecture, fields: dict[str, Any]) -> None:
    """Fill in heads and their width. Raises ValueError if they are inconsistent."""
    dim, heads = fields[architecture.keys["embedding_length"]], fields[architecture.keys["attention.head_count"]]
    if "head_dim" not in fields and dim % heads:
        raise ValueError(f"{header.path}: {architecture.name}.embedding_length={dim} is not divisible by {heads} heads")
    if not architecture.is_rotary:
        return
    width = fields.setdefault("head_dim", dim // heads)
    kv_heads = fields.setdefault("num_key_value_heads", heads)
    if heads % kv_heads or width % 2:
        raise ValueError(f"{header.path}: {heads} heads of width {width} can't share {kv_heads} key/value heads")
    for key in (f"{architecture.name}.attention.value_length", f"{architecture.name}.rope.dimension_count"):
        value = header.metadata.get(key, width)
        if value != width:
            raise ValueError(f"{header.path}: {key}={value!r} is not supported, only the head's width, {width}")


def _table(header: Header) -> TensorInfo:
    """The embedding table, a row for each token of the vocabulary."""
    table = header.tensors.get("token_embd.weight")
    if table is None or len(table.shape) != 2:
        raise ValueError(f"{header.path} has no table 'token_embd.weight'; it is not a language model")
    return table


def _is_tied(header: Header) -> bool:
    """Whether the head is tied to the embeddings: it is absent, or has the same bytes."""
    table, head = _table(header), header.tensors.get("output.weight")
    if head is None:
        return True
    is_same_format = (head.shape, head.format) == (table.shape, table.format)
    return is_same_format and np.array_equal(header.raw(head), header.raw(table))


def _gemma3_fields(header: Header, fields: Mapping[str, Any]) -> dict[str, Any]:
    """What differs from layer to layer, and the attention scale, which is special in the largest, of 62 blocks."""
    layers, shared = fields["num_hidden_layers"], fields["hidden_size"] // fields["num_attention_heads"]
    sliding = {"rope_type": "default", "rope_theta": _base(header, "gemma3.rope.freq_base_swa")}
    return {
        "query_pre_attn_scalar": shared if layers == 62 else fields["head_dim"],
        "layer_types": [SLIDING if (i + 1) % 6 else FULL for i in range(layers)],
        "rope_parameters": {FULL: fields["rope_parameters"], SLIDING: sliding},
    }


def _base(header: Header, key: str) -> float:
    return header.real(key) if key in header.metadata else 10000.0


def _rotary(header: Header, name: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """The rotary scheme with the file's scaling. Raises ValueError for an unknown type of scaling."""
    rope, table = f"{name}.rope", {"rope_theta": _base(header, f"{name}.rope.freq_base")}
    scaling_type = header.metadata.get(f"{rope}.scaling.type", "none")
    if FREQUENCIES in header.tensors:
        if scaling_type != "none":
            raise ValueError(
                f"{header.path}: both {FREQUENCIES!r} and {rope}.scaling.type={scaling_type!r} are present; only one "
                f"may be"
            )
        return {**table, **_llama3(header, fields["head_dim"], table["rope_theta"])}
    match scaling_type:
        case "none":
            return {**table, "rope_type": "default"}
        case "linear":
            return {**table, "rope_type": "linear", "factor": header.real(f"{rope}.scaling.factor")}
        case "yarn":
            betas = {f"beta_{end}": f"{rope}.scaling.yarn_beta_{end}" for end in ("fast", "slow")}
            return {
                **table,
                "rope_type": "yarn",
                "factor": header.real(f"{rope}.scaling.factor"),
                "original_max_position_embeddings": header.count(f"{rope}.scaling.original_context_length"),
                **{beta: header.real(key) for beta, key in betas.items() if key in header.metadata},
            }
        case _:
            raise ValueError(
                f"{header.path}: {rope}.scaling.type={scaling_type!r} is not known (known: none, linear, yarn)"
            )


def _llama3(header: Header, head_dim: int, base: float) -> dict[str, Any]:
    """Llama 3's four parameters from the factors; three of them are the same in all its versions."""
    info, half = header.tensors[FREQUENCIES], head_dim // 2
    if info.shape != (half,) or info.end - info.begin != 4 * half:
        raise ValueError(f"{header.path}: the tensor {FREQUENCIES!r} has shape {list(info.shape)}, not [{half}] in F32")
    factors = header.raw(info).view("<f4").astype(np.float64)
    factor, low, high, original = float(factors.max()), 1.0, 4.0, 8192
    turns = original * base ** (-np.arange(half) / half) / (2 * math.pi)
    smooth = np.clip((turns - low) / (high - low), 0, 1)
    if not np.allclose(factors, 1 / ((1 - smooth) / factor + smooth), rtol=1e-3, atol=0):
        raise ValueError(f"{header.path}: the factors in {FREQUENCIES!r} are not those of Llama 3; not supported")
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": original,
    }
