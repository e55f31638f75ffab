"""GGUF files, the format of llama.cpp, read into what the Hugging Face folder of the same model says.

An architecture is a table of metadata keys and a table of tensors, beside their names there; `#` is the number of a
block, `@` of an expert. The header is walked here, each size against the file's before memory is taken; the library
`gguf` knows the number formats. Text in the file, such as a chat template, is data and nothing else.
The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import itertools
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from isoform.machine import library

MAGIC = b"GGUF"
VERSIONS = (2, 3)
STRING, ARRAY = 8, 9
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""The metadata types that have one size, as `struct` writes them."""
MOST_DIMENSIONS = 4
LARGEST = 2**31
"""No size among the metadata may be larger."""
FLOATS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""What is given as it is stored; all else is dequantised to float32."""
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5
"""Kinds of pieces in a tokenizer."""


@dataclass(frozen=True)
class GGUFModel:
    """A model as a Hugging Face folder has it: config.json, the tensors by name, and tokenizer.json if it is BPE."""

    config: dict[str, Any]
    tensors: dict[str, Tensor]
    tokenizer: dict[str, Any] | None


@dataclass(frozen=True)
class Stored:
    """A tensor as it lies in the file: shape, rows first, the number format, and its bytes from `begin` to `end`."""

    name: str
    shape: tuple[int, ...]
    format: int
    begin: int
    end: int


@dataclass(frozen=True)
class Header:
    """All that a file says before its numbers: metadata and where each tensor lies."""

    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, Stored]


@dataclass(frozen=True)
class Name:
    """A tensor's name in GGUF and in Hugging Face's, and its shape in GGUF.

    shape: one word a dimension, a product of sizes: D model width, N query heads, K key/value heads, H head width,
    F feed-forward width, E experts, V vocabulary, C context. form: what undoes llama.cpp's change of the numbers. when:
    the flag of the config that it depends on; `not ` before it negates.
    """

    gguf: str
    theirs: str
    shape: str
    form: str = ""
    when: str = ""


@dataclass(frozen=True)
class Architecture:
    """One kind of model: the class that transformers has for it, and the tables.

    keys: metadata key, without the architecture before it, to config field; sizes: letter to config field; fixed: what
    GGUF doesn't say because all models of the kind have it.
    """

    model_type: str
    architecture: str
    keys: Mapping[str, str]
    names: tuple[Name, ...]
    sizes: Mapping[str, str]
    fixed: Mapping[str, Any] = field(default_factory=dict)
    is_rotary: bool = True


# The tables

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
"""Keys that may be absent: as many key/value heads as heads, heads that share the width, no cap."""
_REAL = {"attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon", "final_logit_softcapping"}
"""Keys with a real number; the others are counts."""
_ROTARY = {
    *("rope.freq_base", "rope.freq_base_swa", "rope.dimension_count"),
    *("rope.scaling.type", "rope.scaling.factor", "rope.scaling.original_context_length"),
    *("rope.scaling.yarn_beta_fast", "rope.scaling.yarn_beta_slow"),
}
_SILENT = {"vocab_size", "tensor_data_layout", "rope.scaling.finetuned"}
"""Keys that say nothing about the function, or what a tensor's shape says too."""
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
"""Keys that may say this only, which is what the class in transformers does."""

_SIZES = {
    "D": "hidden_size",
    "N": "num_attention_heads",
    "K": "num_key_value_heads",
    "H": "head_dim",
    "F": "intermediate_size",
    "V": "vocab_size",
}
_OUTER = (
    Name("token_embd.weight", "model.embed_tokens.weight", "V D"),
    Name("output.weight", "lm_head.weight", "V D", when="not tie_word_embeddings"),
)
_FINAL = (Name("output_norm.weight", "model.norm.weight", "D"),)


def _heads(form: str) -> tuple[Name, ...]:
    """The products of attention; `form` is that of queries and keys."""
    theirs = "model.layers.#.self_attn"
    return (
        Name("blk.#.attn_q.weight", f"{theirs}.q_proj.weight", "NH D", form),
        Name("blk.#.attn_k.weight", f"{theirs}.k_proj.weight", "KH D", form),
        Name("blk.#.attn_v.weight", f"{theirs}.v_proj.weight", "KH D"),
        Name("blk.#.attn_output.weight", f"{theirs}.o_proj.weight", "D NH"),
    )


def _qk_norm(query: str, key: str, form: str = "") -> tuple[Name, ...]:
    return (
        Name("blk.#.attn_q_norm.weight", "model.layers.#.self_attn.q_norm.weight", query, form),
        Name("blk.#.attn_k_norm.weight", "model.layers.#.self_attn.k_norm.weight", key, form),
    )


def _experts(theirs: str, gate: str, up: str, down: str) -> tuple[Name, ...]:
    return (
        Name("blk.#.ffn_gate_inp.weight", f"{theirs}.gate.weight", "E D"),
        Name("blk.#.ffn_gate_exps.weight", f"{theirs}.experts.@.{gate}.weight", "E F D"),
        Name("blk.#.ffn_up_exps.weight", f"{theirs}.experts.@.{up}.weight", "E F D"),
        Name("blk.#.ffn_down_exps.weight", f"{theirs}.experts.@.{down}.weight", "E D F"),
    )


_BIASES = (
    Name("blk.#.attn_q.bias", "model.layers.#.self_attn.q_proj.bias", "NH", "halves", "attention_bias"),
    Name("blk.#.attn_k.bias", "model.layers.#.self_attn.k_proj.bias", "KH", "halves", "attention_bias"),
    Name("blk.#.attn_v.bias", "model.layers.#.self_attn.v_proj.bias", "KH", "", "attention_bias"),
    Name("blk.#.attn_output.bias", "model.layers.#.self_attn.o_proj.bias", "D", "", "attention_bias"),
    Name("blk.#.ffn_gate.bias", "model.layers.#.mlp.gate_proj.bias", "F", "", "mlp_bias"),
    Name("blk.#.ffn_up.bias", "model.layers.#.mlp.up_proj.bias", "F", "", "mlp_bias"),
    Name("blk.#.ffn_down.bias", "model.layers.#.mlp.down_proj.bias", "D", "", "mlp_bias"),
)
_GATED = (
    Name("blk.#.ffn_gate.weight", "model.layers.#.mlp.gate_proj.weight", "F D"),
    Name("blk.#.ffn_up.weight", "model.layers.#.mlp.up_proj.weight", "F D"),
    Name("blk.#.ffn_down.weight", "model.layers.#.mlp.down_proj.weight", "D F"),
)
_PRE = (
    Name("blk.#.attn_norm.weight", "model.layers.#.input_layernorm.weight", "D"),
    Name("blk.#.ffn_norm.weight", "model.layers.#.post_attention_layernorm.weight", "D"),
)
_INNER = (
    Name("blk.#.post_attention_norm.weight", "model.layers.#.post_attention_layernorm.weight", "D"),
    Name("blk.#.post_ffw_norm.weight", "model.layers.#.post_feedforward_layernorm.weight", "D"),
)
_GEMMA_NORMS = (
    Name("output_norm.weight", "model.norm.weight", "D", "less one"),
    Name("blk.#.attn_norm.weight", "model.layers.#.input_layernorm.weight", "D", "less one"),
    Name("blk.#.post_attention_norm.weight", "model.layers.#.post_attention_layernorm.weight", "D", "less one"),
    Name("blk.#.ffn_norm.weight", "model.layers.#.pre_feedforward_layernorm.weight", "D", "less one"),
    Name("blk.#.post_ffw_norm.weight", "model.layers.#.post_feedforward_layernorm.weight", "D", "less one"),
)
_GPT2 = (
    Name("token_embd.weight", "transformer.wte.weight", "V D"),
    Name("position_embd.weight", "transformer.wpe.weight", "C D"),
    Name("output_norm.weight", "transformer.ln_f.weight", "D"),
    Name("output_norm.bias", "transformer.ln_f.bias", "D"),
    Name("output.weight", "lm_head.weight", "V D", when="not tie_word_embeddings"),
    Name("blk.#.attn_norm.weight", "transformer.h.#.ln_1.weight", "D"),
    Name("blk.#.attn_norm.bias", "transformer.h.#.ln_1.bias", "D"),
    Name("blk.#.attn_qkv.weight", "transformer.h.#.attn.c_attn.weight", "3D D", "transposed"),
    Name("blk.#.attn_qkv.bias", "transformer.h.#.attn.c_attn.bias", "3D"),
    Name("blk.#.attn_output.weight", "transformer.h.#.attn.c_proj.weight", "D D", "transposed"),
    Name("blk.#.attn_output.bias", "transformer.h.#.attn.c_proj.bias", "D"),
    Name("blk.#.ffn_norm.weight", "transformer.h.#.ln_2.weight", "D"),
    Name("blk.#.ffn_norm.bias", "transformer.h.#.ln_2.bias", "D"),
    Name("blk.#.ffn_up.weight", "transformer.h.#.mlp.c_fc.weight", "F D", "transposed"),
    Name("blk.#.ffn_up.bias", "transformer.h.#.mlp.c_fc.bias", "F"),
    Name("blk.#.ffn_down.weight", "transformer.h.#.mlp.c_proj.weight", "D F", "transposed"),
    Name("blk.#.ffn_down.bias", "transformer.h.#.mlp.c_proj.bias", "D"),
)

ARCHITECTURES = {
    "llama": Architecture(
        "llama",
        "LlamaForCausalLM",
        _KEYS,
        (*_OUTER, *_FINAL, *_PRE, *_heads("halves"), *_GATED, *_BIASES),
        _SIZES,
        {"hidden_act": "silu"},
    ),
    "qwen3": Architecture(
        "qwen3",
        "Qwen3ForCausalLM",
        _KEYS,
        (*_OUTER, *_FINAL, *_PRE, *_heads(""), *_qk_norm("H", "H"), *_GATED),
        _SIZES,
        {"hidden_act": "silu", "attention_bias": False, "use_sliding_window": False},
    ),
    "qwen3moe": Architecture(
        "qwen3_moe",
        "Qwen3MoeForCausalLM",
        _KEYS | _QWEN_EXPERT_KEYS,
        (
            *(*_OUTER, *_FINAL, *_PRE, *_heads(""), *_qk_norm("H", "H")),
            *_experts("model.layers.#.mlp", "gate_proj", "up_proj", "down_proj"),
        ),
        _SIZES | {"E": "num_experts", "F": "moe_intermediate_size"},
        {
            "hidden_act": "silu",
            "attention_bias": False,
            "use_sliding_window": False,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
            "norm_topk_prob": True,
        },
    ),
    "gemma3": Architecture(
        "gemma3_text",
        "Gemma3ForCausalLM",
        _KEYS | _GEMMA_KEYS,
        (*_OUTER, *_GEMMA_NORMS, *_heads(""), *_qk_norm("H", "H", "less one"), *_GATED),
        _SIZES,
        {"hidden_activation": "gelu_pytorch_tanh", "attention_bias": False, "attn_logit_softcapping": None},
    ),
    "olmo2": Architecture(
        "olmo2",
        "Olmo2ForCausalLM",
        _KEYS,
        (*_OUTER, *_FINAL, *_INNER, *_heads(""), *_qk_norm("NH", "KH"), *_GATED),
        _SIZES,
        {"hidden_act": "silu", "attention_bias": False},
    ),
    "gpt2": Architecture(
        "gpt2",
        "GPT2LMHeadModel",
        _GPT2_KEYS,
        _GPT2,
        {"D": "n_embd", "N": "n_head", "F": "n_inner", "V": "vocab_size", "C": "n_positions"},
        {"activation_function": "gelu_new"},
        is_rotary=False,
    ),
}
_MIXTRAL = Architecture(
    "mixtral",
    "MixtralForCausalLM",
    _KEYS | _MIXTRAL_KEYS,
    (
        *(*_OUTER, *_FINAL, *_PRE, *_heads("halves")),
        *_experts("model.layers.#.block_sparse_moe", "w1", "w3", "w2"),
    ),
    _SIZES | {"E": "num_local_experts"},
    {"hidden_act": "silu", "sliding_window": None},
)
"""What "llama" is when it has experts."""
FREQUENCIES = "rope_freqs.weight"
"""Llama 3's stretching of the rotary scheme, which GGUF keeps as a factor for each frequency."""


def read_gguf(path: str | Path) -> GGUFModel:
    """The model in a file, in Hugging Face's terms.

    F32, F16 and BF16 tensors have the type they are stored in, quantised ones are float32. All metadata and shapes are
    checked before numbers are read. Raises ValueError naming file and key or tensor for what is damaged or not known,
    and where the library `gguf` is missing.
    """
    gguf = library("gguf", extra="hub")
    header = read_header(path)
    name = _metadata(header, "general.architecture", str)
    architecture = ARCHITECTURES.get(name)
    if architecture is None:
        raise ValueError(f"{path}: general.architecture={name!r} is not known (known: {', '.join(ARCHITECTURES)})")
    if name == "llama" and header.metadata.get("llama.expert_count"):
        architecture = _MIXTRAL
    numbers = np.memmap(header.path, np.uint8, "r")
    config = _config(header, architecture, name, numbers)
    wanted = _wanted(header, architecture, config)
    for stored in header.tensors.values():
        _check_format(header, stored, gguf)
    tokenizer = _tokenizer(header, config["vocab_size"])
    tensors: dict[str, Tensor] = {}
    for tensor, (row, theirs) in wanted.items():
        whole = _formed(_numbers(header.tensors[tensor], numbers, gguf), row.form, config)
        if "@" in theirs:
            tensors |= {theirs.replace("@", str(i)): part.clone() for i, part in enumerate(whole)}
        else:
            tensors[theirs] = whole
    return GGUFModel(config, tensors, tokenizer)


# The header


class _Reader:
    """A place in the file, and reading on from it, never beyond the end."""

    def __init__(self, path: Path, data: np.ndarray) -> None:
        self.path, self.data, self.at = path, data, 0

    def take(self, count: int, what: str) -> memoryview:
        """The next bytes. Raises ValueError where the file ends before."""
        if count > len(self.data) - self.at:
            raise ValueError(
                f"{self.path} ends in {what}: {count:,} bytes are asked for at {self.at:,} of {len(self.data):,}; "
                "it is truncated or damaged, get it again"
            )
        self.at += count
        return self.data[self.at - count : self.at].data

    def scalar(self, letter: str, what: str) -> Any:
        """The next number."""
        return struct.unpack(f"<{letter}", self.take(struct.calcsize(f"<{letter}"), what))[0]

    def text(self, what: str) -> str:
        """The next string. Raises ValueError where it isn't UTF-8."""
        raw = bytes(self.take(self.scalar("Q", what), what))
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            raise ValueError(f"{self.path}: {what} is no UTF-8; the file is damaged, get it again") from None

    def value(self, what: str) -> Any:
        """The next value of metadata, after its type."""
        kind = self.scalar("I", what)
        if kind == STRING:
            return self.text(what)
        if kind in SCALARS:
            return self.scalar(SCALARS[kind], what)
        if kind != ARRAY:
            raise ValueError(f"{self.path}: {what} has the unknown type {kind}; the file is damaged, get it again")
        kind, count = self.scalar("I", what), self.scalar("Q", what)
        if kind == STRING:
            self.room(count, 8, what)
            return [self.text(what) for _ in range(count)]
        if kind not in SCALARS:
            raise ValueError(f"{self.path}: {what} is an array of type {kind}, which no known key has")
        return np.frombuffer(
            self.take(count * struct.calcsize(f"<{SCALARS[kind]}"), what), f"<{SCALARS[kind]}"
        ).tolist()

    def room(self, count: int, least: int, what: str) -> None:
        """Raises ValueError if so many things of at least so many bytes can't follow."""
        if count * least > len(self.data) - self.at:
            raise ValueError(
                f"{self.path}: {what} says it has {count:,} entries, but {len(self.data) - self.at:,} bytes follow; "
                "it is truncated or damaged, get it again"
            )


def read_header(path: str | Path) -> Header:
    """The metadata and the places of the tensors; no numbers are read.

    Raises ValueError for a file that is missing, something else, truncated, or describes what can't be.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        data = np.memmap(path, np.uint8, "r") if size else np.zeros(0, np.uint8)
    except OSError as error:
        raise ValueError(f"{path} can't be read ({error.strerror}); check the path") from None
    reader = _Reader(path, data)
    if bytes(data[:4]) != MAGIC:
        raise ValueError(f"{path} is no GGUF file: it begins with {bytes(data[:4])!r} instead of {MAGIC!r}")
    reader.at = 4
    version = reader.scalar("I", "its version")
    if version not in VERSIONS:
        swapped = " (its bytes are swapped: big-endian files are not supported)" if version & 0xFFFF == 0 else ""
        raise ValueError(f"{path} has GGUF version {version}{swapped}; 2 and 3 can be read, convert the model again")
    num_tensors, num_keys = reader.scalar("Q", "the number of tensors"), reader.scalar("Q", "the number of keys")
    reader.room(num_keys, 8 + 4 + 1, "the metadata")
    metadata: dict[str, Any] = {}
    for i in range(num_keys):
        key = reader.text(f"the name of key {i}")
        if key in metadata:
            raise ValueError(f"{path}: the key {key!r} is there twice; the file is damaged, get it again")
        metadata[key] = reader.value(f"the key {key!r}")
    parts = metadata.get("split.count", 1)
    if parts not in (0, 1):
        raise ValueError(f"{path} is one of {parts} parts; join them with llama-gguf-split --merge")
    alignment = metadata.get("general.alignment", 32)
    if not _is_count(alignment) or alignment & (alignment - 1):
        raise ValueError(
            f"{path}: general.alignment={alignment!r} is no power of two; the file is damaged, get it again"
        )
    reader.room(num_tensors, 8 + 4 + 8 + 4 + 8, "the list of tensors")
    infos = [_tensor_info(reader, i) for i in range(num_tensors)]
    begin = -(-reader.at // alignment) * alignment
    return Header(path, metadata, _placed(path, infos, begin, alignment, size))


def _tensor_info(reader: _Reader, number: int) -> tuple[str, tuple[int, ...], int, int]:
    """Name, shape with rows first, number format and offset of the next tensor."""
    name = reader.text(f"the name of tensor {number}")
    what = f"the tensor {name!r}"
    rank = reader.scalar("I", what)
    if not 1 <= rank <= MOST_DIMENSIONS:
        raise ValueError(f"{reader.path}: {what} has {rank} dimensions, not 1 to {MOST_DIMENSIONS}; get the file again")
    shape = tuple(reader.scalar("Q", what) for _ in range(rank))[::-1]
    return name, shape, reader.scalar("I", what), reader.scalar("Q", what)


def _placed(
    path: Path, infos: list[tuple[str, tuple[int, ...], int, int]], begin: int, alignment: int, size: int
) -> dict[str, Stored]:
    """Where each tensor lies. Raises ValueError for one that is there twice, or reaches into another or too far."""
    sizes = library("gguf", extra="hub").GGML_QUANT_SIZES
    tensors: dict[str, Stored] = {}
    for name, shape, code, offset in infos:
        what = f"{path}: the tensor {name!r}"
        if name in tensors:
            raise ValueError(f"{what} is there twice; the file is damaged, get it again")
        if min(shape) < 1:
            raise ValueError(f"{what} has shape {list(shape)}; the file is damaged, get it again")
        if code not in sizes:
            raise ValueError(f"{what} has the unknown number format {code}; is the library gguf too old for it?")
        block, num_bytes = sizes[code]
        if shape[-1] % block:
            raise ValueError(
                f"{what} has rows of {shape[-1]:,} numbers, which blocks of {block} don't fill; get it again"
            )
        if offset % alignment:
            raise ValueError(
                f"{what} begins at {offset:,}, no multiple of {alignment}; the file is damaged, get it again"
            )
        end = begin + offset + math.prod(shape) // block * num_bytes
        if end > size:
            raise ValueError(
                f"{what} of shape {list(shape)} reaches to byte {end:,}, but the file has {size:,}; "
                "it is truncated or damaged, get it again"
            )
        tensors[name] = Stored(name, shape, code, begin + offset, end)
    ordered = sorted(tensors.values(), key=lambda t: t.begin)
    for one, other in itertools.pairwise(ordered):
        if other.begin < one.end:
            raise ValueError(f"{path}: the tensors {one.name!r} and {other.name!r} overlap; get the file again")
    return tensors


# Metadata to config.json


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= LARGEST


def _metadata(header: Header, key: str, kind: type) -> Any:
    """A value that has to be there. Raises ValueError naming the key."""
    value = header.metadata.get(key)
    if not isinstance(value, kind):
        there = "is missing" if value is None else f"is {value!r}"
        raise ValueError(
            f"{header.path}: the key {key!r} {there}; a {kind.__name__} is needed, convert the model again"
        )
    return value


def _count(header: Header, key: str) -> int:
    """A size; an array with the same for every block counts as one."""
    value = header.metadata.get(key)
    if isinstance(value, list) and value:
        if any(one != value[0] for one in value):
            raise ValueError(f"{header.path}: {key!r} differs from block to block, which is not supported")
        value = value[0]
    if not _is_count(value):
        there = "is missing" if value is None else f"is {value!r}"
        raise ValueError(f"{header.path}: the key {key!r} {there}; a whole number from 1 is needed, get the file again")
    assert isinstance(value, int)
    return value


def _real(header: Header, key: str) -> float:
    """A real number, as it was meant before it was rounded to float32."""
    value = float(_metadata(header, key, float))
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{header.path}: {key}={value!r} has to be finite and greater than 0; get the file again")
    return float(str(np.float32(value)))


def _config(header: Header, kind: Architecture, prefix: str, numbers: np.ndarray) -> dict[str, Any]:
    """What config.json says. Raises ValueError for keys that are missing, unknown, or contradict each other."""
    there = {
        key.removeprefix(f"{prefix}."): value for key, value in header.metadata.items() if key.startswith(prefix + ".")
    }
    config: dict[str, Any] = {
        "architectures": [kind.architecture],
        "model_type": kind.model_type,
        "dtype": "float32",
        **kind.fixed,
    }
    for key, name in kind.keys.items():
        if key in there or key not in _OPTIONAL:
            read = _real if key in _REAL else _count
            config[name] = read(header, f"{prefix}.{key}")
    known = {*kind.keys, "attention.value_length", *_SILENT, *(_ROTARY if kind.is_rotary else ())}
    for key, value in there.items():
        if key not in known and (key not in _DEFAULTS or value != _DEFAULTS[key]):
            only = f" other than {_DEFAULTS[key]!r}" if key in _DEFAULTS else ""
            raise ValueError(
                f"{header.path}: {prefix}.{key}={str(value)[:60]!r}: a value{only} of this key is not supported "
                f"(known: {', '.join(sorted(known | _DEFAULTS.keys()))})"
            )
    config["vocab_size"] = _table(header).shape[0]
    layers = config[kind.keys["block_count"]]
    if layers > len(header.tensors):
        raise ValueError(
            f"{header.path}: {prefix}.block_count={layers:,}, but there are {len(header.tensors):,} tensors"
        )
    _config_of_heads(header, kind, prefix, config)
    names = header.tensors.keys()
    config["tie_word_embeddings"] = _is_tied(header, numbers)
    if prefix == "llama" and kind is not _MIXTRAL:
        config["attention_bias"], config["mlp_bias"] = "blk.0.attn_q.bias" in names, "blk.0.ffn_up.bias" in names
    if kind.is_rotary:
        config["rope_parameters"] = _rotary(header, prefix, config, numbers)
    if prefix == "gemma3":
        # GGUF keeps no scale: llama.cpp knows that the largest, of 62 blocks, has another
        shared = config["hidden_size"] // config["num_attention_heads"]
        config["query_pre_attn_scalar"] = shared if layers == 62 else config["head_dim"]
        config["layer_types"] = ["sliding_attention" if (i + 1) % 6 else "full_attention" for i in range(layers)]
        config["rope_parameters"] = {
            "full_attention": config["rope_parameters"],
            "sliding_attention": {"rope_type": "default", "rope_theta": _base(header, f"{prefix}.rope.freq_base_swa")},
        }
    for name in ("bos", "eos"):
        config[f"{name}_token_id"] = _piece(header, name, config["vocab_size"])
    return config


def _config_of_heads(header: Header, kind: Architecture, prefix: str, config: dict[str, Any]) -> None:
    """Fills in heads and their width. Raises ValueError where they don't fit."""
    dim, heads = config[kind.sizes["D"]], config[kind.sizes["N"]]
    if "H" not in kind.sizes or "head_dim" not in config:
        if dim % heads:
            raise ValueError(f"{header.path}: {prefix}.embedding_length={dim} is not divisible by {heads} heads")
        if "H" not in kind.sizes:
            return
    width = config.setdefault("head_dim", dim // heads)
    kv_heads = config.setdefault("num_key_value_heads", heads)
    if heads % kv_heads or width % 2:
        raise ValueError(f"{header.path}: {heads} heads of width {width} can't share {kv_heads} key/value heads")
    for key in ("attention.value_length", "rope.dimension_count"):
        if header.metadata.get(f"{prefix}.{key}", width) != width:
            given = header.metadata[f"{prefix}.{key}"]
            raise ValueError(
                f"{header.path}: {prefix}.{key}={given!r} is not supported, only the head's width, {width}"
            )


def _table(header: Header) -> Stored:
    """The embeddings, whose rows are the vocabulary."""
    if "token_embd.weight" not in header.tensors or len(header.tensors["token_embd.weight"].shape) != 2:
        raise ValueError(
            f"{header.path} has no table 'token_embd.weight'; it holds something else than a language model"
        )
    return header.tensors["token_embd.weight"]


def _is_tied(header: Header, numbers: np.ndarray) -> bool:
    """Whether the head is the table of embeddings: because it is left out, or the same bytes."""
    table, head = _table(header), header.tensors.get("output.weight")
    if head is None:
        return True
    is_alike = (head.shape, head.format) == (table.shape, table.format)
    return is_alike and np.array_equal(numbers[head.begin : head.end], numbers[table.begin : table.end])


def _base(header: Header, key: str) -> float:
    return _real(header, key) if key in header.metadata else 10000.0


def _rotary(header: Header, prefix: str, config: Mapping[str, Any], numbers: np.ndarray) -> dict[str, Any]:
    """The rotary scheme, stretched as the file says. Raises ValueError for a way to stretch that is not known."""
    rope, table = f"{prefix}.rope", {"rope_theta": _base(header, f"{prefix}.rope.freq_base")}
    name = header.metadata.get(f"{rope}.scaling.type", "none")
    if FREQUENCIES in header.tensors:
        if name != "none":
            raise ValueError(
                f"{header.path}: both {FREQUENCIES!r} and {rope}.scaling.type={name!r} are there; one can be"
            )
        return {**table, **_llama3(header, config, table["rope_theta"], numbers)}
    match name:
        case "none":
            return {**table, "rope_type": "default"}
        case "linear":
            return {**table, "rope_type": "linear", "factor": _real(header, f"{rope}.scaling.factor")}
        case "yarn":
            betas = {f"beta_{end}": f"{rope}.scaling.yarn_beta_{end}" for end in ("fast", "slow")}
            return {
                **table,
                "rope_type": "yarn",
                "factor": _real(header, f"{rope}.scaling.factor"),
                "original_max_position_embeddings": _count(header, f"{rope}.scaling.original_context_length"),
                **{beta: _real(header, key) for beta, key in betas.items() if key in header.metadata},
            }
        case _:
            raise ValueError(f"{header.path}: {rope}.scaling.type={name!r} is not known (known: none, linear, yarn)")


def _llama3(header: Header, config: Mapping[str, Any], base: float, numbers: np.ndarray) -> dict[str, Any]:
    """Llama 3's four numbers from the factors that they gave; three have been the same in all its versions."""
    stored = header.tensors[FREQUENCIES]
    half = config["head_dim"] // 2
    if stored.shape != (half,) or stored.end - stored.begin != 4 * half:
        raise ValueError(
            f"{header.path}: the tensor {FREQUENCIES!r} has shape {list(stored.shape)}, not [{half}] in F32"
        )
    factors = numbers[stored.begin : stored.end].view("<f4").astype(np.float64)
    factor, low, high, original = float(factors.max()), 1.0, 4.0, 8192
    turns = original * base ** (-np.arange(half) / half) / (2 * math.pi)
    smooth = np.clip((turns - low) / (high - low), 0, 1)
    if not np.allclose(factors, 1 / ((1 - smooth) / factor + smooth), rtol=1e-3, atol=0):
        raise ValueError(f"{header.path}: the factors in {FREQUENCIES!r} are not made as Llama 3's are; not supported")
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": original,
    }


# Tensors


def _wanted(header: Header, kind: Architecture, config: Mapping[str, Any]) -> dict[str, tuple[Name, str]]:
    """Every tensor of the file with its row and its name there.

    Raises ValueError for tensors that are missing, not known, or of another shape.
    """
    sizes = {letter: config[name] for letter, name in kind.sizes.items()}
    layers = config[kind.keys["block_count"]]
    wanted = {}
    for row in kind.names:
        if row.when and bool(config[row.when.removeprefix("not ")]) == row.when.startswith("not "):
            continue
        for i in range(layers if "#" in row.gguf else 1):
            wanted[row.gguf.replace("#", str(i))] = row, row.theirs.replace("#", str(i))
    missing = [name for name in wanted if name not in header.tensors]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise ValueError(f"{header.path} has no tensor {missing[0]!r}{more}; it is incomplete, get it again")
    aside = {FREQUENCIES} if kind.is_rotary else set()
    aside |= {"output.weight"} if config["tie_word_embeddings"] else set()
    for name in header.tensors:
        if name not in wanted and name not in aside:
            known = ", ".join(row.gguf for row in kind.names)
            raise ValueError(f"{header.path}: the tensor {name!r} is not known in {kind.model_type} (known: {known})")
    for name, (row, _) in wanted.items():
        shape = tuple(math.prod(int(c) if c.isdigit() else sizes[c] for c in word) for word in row.shape.split())
        if header.tensors[name].shape != shape:
            raise ValueError(
                f"{header.path}: the tensor {name!r} has shape {list(header.tensors[name].shape)}, but the metadata "
                f"ask for {list(shape)}; the file is damaged, get it again"
            )
    return wanted


def _check_format(header: Header, stored: Stored, gguf: Any) -> None:
    """Raises ValueError for a number format that can't be turned into floating numbers."""
    kind = gguf.GGMLQuantizationType(stored.format)
    try:
        if kind.name not in FLOATS:
            gguf.dequantize(np.zeros((1, gguf.GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
    except NotImplementedError:
        raise ValueError(
            f"{header.path}: the tensor {stored.name!r} has the format {kind.name}, which can't be turned into "
            "floating numbers; take a file in another"
        ) from None


def _numbers(stored: Stored, numbers: np.ndarray, gguf: Any) -> Tensor:
    """The numbers of a tensor, in memory of its own."""
    kind, raw = gguf.GGMLQuantizationType(stored.format), numbers[stored.begin : stored.end]
    if kind.name in FLOATS:
        return torch.from_numpy(np.array(raw)).view(FLOATS[kind.name]).reshape(stored.shape)
    rows = np.asarray(raw).reshape(math.prod(stored.shape[:-1]), -1)
    with np.errstate(all="ignore"):  # whoever builds the model looks for numbers that aren't finite
        values = np.asarray(gguf.dequantize(rows, kind), np.float32)
    return torch.from_numpy(values.reshape(stored.shape))


def _formed(tensor: Tensor, form: str, config: Mapping[str, Any]) -> Tensor:
    """The numbers as Hugging Face has them."""
    match form:
        case "halves":  # neighbouring rows, which turn together there, half a head apart, as they turn here
            pairs = tensor.reshape(-1, config["head_dim"] // 2, 2, tensor[0].numel())
            return pairs.transpose(1, 2).reshape(tensor.shape)
        case "transposed":
            return tensor.T.contiguous()
        case "less one":  # its norms multiply by one more than their weight
            return tensor.float() - 1
        case _:
            return tensor


# The tokenizer

_CASELESS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_BYTES: dict[str, Any] = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}


def _split(pattern: str) -> dict[str, Any]:
    """Cuts by a pattern, then bytes."""
    cut = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return {"type": "Sequence", "pretokenizers": [cut, {**_BYTES, "use_regex": False}]}


_THREE_DIGITS = {"pre_tokenizer": _split(_CASELESS + r"|\p{N}{1,3}" + _REST)}
PRETOKENIZERS: dict[str, dict[str, Any]] = {
    "gpt-2": {"pre_tokenizer": _BYTES},
    "smollm": {
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, _BYTES]}
    },
    "llama-bpe": _THREE_DIGITS,
    "dbrx": _THREE_DIGITS,
    "qwen2": {"pre_tokenizer": _split(_CASELESS + r"|\p{N}" + _REST), "normalizer": {"type": "NFC"}},
}
"""What cuts a text before pieces are merged, by the names that GGUF has for it."""


def _piece(header: Header, name: str, vocab_size: int) -> int | None:
    """The id of a special piece. Raises ValueError for one outside the vocabulary."""
    key = f"tokenizer.ggml.{name}_token_id"
    value = header.metadata.get(key)
    if value is not None and not (value == 0 or (_is_count(value) and value < vocab_size)):
        raise ValueError(
            f"{header.path}: {key}={value!r} is outside the vocabulary of {vocab_size:,}; get the file again"
        )
    return value


def _tokenizer(header: Header, vocab_size: int) -> dict[str, Any] | None:
    """A tokenizer.json of a byte-level BPE, None for another model. Raises ValueError naming a damaged key."""
    if header.metadata.get("tokenizer.ggml.model") != "gpt2":
        return None
    pre = _metadata(header, "tokenizer.ggml.pre", str)
    if pre not in PRETOKENIZERS:
        raise ValueError(f"{header.path}: tokenizer.ggml.pre={pre!r} is not known (known: {', '.join(PRETOKENIZERS)})")
    tokens, merges = _list(header, "tokens", str), _list(header, "merges", str)
    kinds = (
        _list(header, "token_type", int) if "tokenizer.ggml.token_type" in header.metadata else [NORMAL] * len(tokens)
    )
    if len(kinds) != len(tokens) or len(tokens) > vocab_size or len(set(tokens)) != len(tokens):
        raise ValueError(
            f"{header.path}: tokenizer.ggml.tokens has {len(tokens):,} pieces, {len(set(tokens)):,} of them different, "
            f"token_type {len(kinds):,} and the table {vocab_size:,} rows; these don't fit, get the file again"
        )
    ends = {_piece(header, name, vocab_size) for name in ("bos", "eos")}
    used = [(i, token, kind) for i, (token, kind) in enumerate(zip(tokens, kinds, strict=True)) if kind != UNUSED]
    added = [
        {
            "id": i,
            "content": token,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": kind != USER_DEFINED,
        }
        for i, token, kind in used
        if kind in (CONTROL, USER_DEFINED) or i in ends
    ]
    begin = _piece(header, "bos", vocab_size)
    has_begin = header.metadata.get("tokenizer.ggml.add_bos_token", pre == "llama-bpe") and begin in range(len(tokens))
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": PRETOKENIZERS[pre].get("normalizer"),
        "pre_tokenizer": PRETOKENIZERS[pre]["pre_tokenizer"],
        "post_processor": _beginning(tokens[begin or 0], begin or 0) if has_begin else None,
        "decoder": _BYTES,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": pre == "llama-bpe",
            "vocab": {token: i for i, token, _ in used},
            "merges": merges,
        },
    }


def _beginning(token: str, number: int) -> dict[str, Any]:
    """What sets a special piece before each text."""
    special = {"SpecialToken": {"id": token, "type_id": 0}}
    first, second = {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}
    return {
        "type": "TemplateProcessing",
        "single": [special, first],
        "pair": [special, first, {"SpecialToken": {"id": token, "type_id": 1}}, second],
        "special_tokens": {token: {"id": token, "ids": [number], "tokens": [token]}},
    }


def _list(header: Header, name: str, kind: type) -> list:
    """An array of the tokenizer. Raises ValueError naming the key where it holds something else."""
    values = _metadata(header, f"tokenizer.ggml.{name}", list)
    if not all(isinstance(value, kind) for value in values):
        raise ValueError(
            f"{header.path}: tokenizer.ggml.{name} holds something else than {kind.__name__}; get it again"
        )
    return values
