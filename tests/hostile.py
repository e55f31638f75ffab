"""Files that nobody should be able to hurt a reader with, made from seeds, and the verbs that read them.

    python tests/hostile.py [--every N] [--only NAME]

makes a folder for each, calls the command line in a fork of a process that has everything imported, and prints a line
of JSON: exit code, lines of the message, seconds, memory above that of a harmless call, and what an audit hook saw
(processes, sockets, and writes outside the folder).
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import os
import pickle
import random
import shutil
import socket
import struct
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

import isoform
from isoform.cli import main
from isoform.config import overlay
from isoform.files import seal
from isoform.machine import choose_machine
from isoform.manifest import DUE
from isoform.model.presets import PRESETS

ESCAPES = "\x1b]0;title\x07\x1b[2J\nisoform: all is well\u202e"
NUMBERS = (-1, 0, 1e308, 2**31, 10**12, 10**30, "x", ESCAPES, [], [[]], {}, {"a": 1}, True)
CONFIG, CODEC, RECIPE = "model/config.json", "model/codec.json", "recipe.toml"
GENERATE = ("--prompt", "the cat", "--max_tokens", "2", "--temperature", "0")
DANGEROUS = ("subprocess.Popen", "os.exec", "os.posix_spawn", "os.system", "os.fork", "os.forkpty", "pty.spawn")
NETWORK = ("socket.connect", "socket.bind", "socket.sendto", "socket.getaddrinfo", "urllib.Request")
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
MOVES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link", "os.symlink", "shutil.rmtree")


@dataclass(frozen=True)
class Case:
    """One hostile folder: `make` changes a harmless one; the command is called inside it."""

    name: str
    command: tuple[str, ...]
    make: Callable[[Path], object]


@dataclass(frozen=True)
class Outcome:
    """What came of it; `seen` is what must not be."""

    name: str
    code: int
    lines: int
    message: str
    seconds: float
    megabytes: float
    seen: list[str]


class Marker:
    """Runs a command when it is unpickled."""

    def __reduce__(self):
        return os.system, ("touch executed",)


def harmless(folder: Path) -> None:
    """A folder with a text, runs, and a folder of another library: `text.txt`, `run`, `sealed`, `hf`."""
    text = folder / "text.txt"
    text.write_text("the cat sat on the mat, and the dog sat on the cat.\n" * 40)
    model = {"model_dim": 8, "context_length": 16, "decoder": {"num_layers": 1}}
    training = {"steps": 2, "global_batch_tokens": 32, "sample_tokens": 0}
    recipe = overlay(isoform.load_recipe("shakespeare"), {"model": model, "training": training})
    recipe = overlay(recipe, {"data": {"path": "text.txt"}, "sample_prompt": "t"})
    before = Path.cwd()
    os.chdir(folder)
    try:
        isoform.train(recipe, "run", machine=choose_machine("cpu", "float32"))
        small = {"model_dim": 8, "context_length": 32, "decoder": {"num_layers": 1, "blocks": {"0": BLOCK}}}
        llama = overlay(recipe, {"codec": {"kind": "bpe", "vocab_size": 262}, "model": {"kind": "model_config"}})
        llama = isoform.Recipe(
            data=llama.data, codec=llama.codec, training=llama.training,
            model=overlay(PRESETS["llama2"].model, {**small, "vocab_size": 0}),
        )  # fmt: skip
        isoform.train(llama, "llama", machine=choose_machine("cpu", "float32"))
        isoform.export(isoform.load("llama"), folder / "hf")
        shutil.copytree("run", "sealed")
        before_manifests(Path("run"))  # so that what is changed is read
    finally:
        os.chdir(before)


def before_manifests(run: Path) -> None:
    """Make a run one of an earlier version."""
    (run / "manifest.json").unlink()
    config = json.loads((run / "model/config.json").read_text())
    (run / "model/config.json").write_text(json.dumps({**config, "format": DUE - 1}))


BLOCK = {"mixer": {"num_heads": 2, "num_kv_heads": 2}, "feedforward": {"feedforward_dim": 16}}


def put(name: str, content: bytes | str) -> Callable[[Path], object]:
    """A file in place of another."""
    data = content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content

    def make(folder: Path) -> None:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)

    return make


def edit(name: str, change: Callable[[dict], object]) -> Callable[[Path], object]:
    """A JSON file with a change."""

    def make(folder: Path) -> None:
        values = json.loads((folder / name).read_text())
        change(values)
        (folder / name).write_text(json.dumps(values))

    return make


def special(name: str, kind: str) -> Callable[[Path], object]:
    """A file in place of another that isn't a plain one, or is a very large one."""

    def make(folder: Path) -> None:
        path = folder / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)
        match kind:
            case "pipe":
                os.mkfifo(path)
            case "zero":
                path.symlink_to("/dev/zero")
            case "loop":
                path.symlink_to(path.name)
            case "socket":
                server = socket.socket(socket.AF_UNIX)
                server.bind(os.path.relpath(path))
                server.close()
            case "folder":
                path.mkdir()
            case "huge":
                with path.open("wb") as file:
                    file.truncate(2**40)

    return make


KINDS = ("pipe", "zero", "loop", "socket", "folder", "huge")


def deep(name: str, opening: str, count: int = 100_000) -> Callable[[Path], object]:
    """A file of brackets only."""
    return put(name, opening * count)


def folder_cases() -> Iterator[Case]:
    """Hugging Face folders: configs, tensors, indices, pickles, tokenizers."""
    command = ("generate", "hf", *GENERATE)
    fields = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size")
    fields = (*fields, "max_position_embeddings", "rms_norm_eps", "rope_theta", "model_type", "rope_scaling")
    draw = random.Random(0)
    for field in fields:
        for value in draw.sample(NUMBERS, 4):
            make = edit("hf/config.json", lambda c, field=field, value=value: c.update({field: value}))
            yield Case(f"hf {field}={value!r}"[:60], command, make)
    for name in ("config.json", "tokenizer.json", "model.safetensors", "tokenizer_config.json"):
        for kind in draw.sample(KINDS, 4):
            yield Case(f"hf {name} {kind}", command, special(f"hf/{name}", kind))
    for name in ("config.json", "tokenizer_config.json", "generation_config.json", "tokenizer.json"):
        yield Case(f"hf {name} deep", command, deep(f"hf/{name}", draw.choice(["[", '{"a":'])))
        yield Case(f"hf {name} wrong type", command, put(f"hf/{name}", draw.choice(["[]", "3", "null", '"x"'])))
    yield Case("hf config many values", command, put("hf/config.json", '{"a": [' + "[]," * 4_000_000 + "0]}"))
    yield Case("hf config UTF-16", command, put("hf/config.json", "{}".encode("utf-16")))
    yield Case("hf config digits", command, put("hf/config.json", '{"a": ' + "9" * 100_000 + "}"))
    yield Case("hf auto_map", command, lambda f: (with_code(f), edit("hf/config.json", map_code)(f)))
    for name in ("eos_token_id", "bad_words_ids", "suppress_tokens", "forced_eos_token_id"):
        value = draw.choice([v for v in NUMBERS if v not in (0, True)])
        yield Case(f"hf generation {name}", command, put("hf/generation_config.json", json.dumps({name: value})))
    yield from tensor_cases(command)
    index = "hf/model.safetensors.index.json"
    for target in ("../../x", "/etc/passwd", "..", "", index, "model.safetensors", ESCAPES, 3, None, []):
        yield Case(f"hf index {target!r}"[:50], command, only_index({"weight_map": {"a": target}}))
    yield Case("hf index wrong type", command, only_index({"weight_map": [1]}))
    for name in ("pytorch_model.bin", "model.ckpt", "tf_model.h5", "flax_model.msgpack", "model.pt", "weights.pkl"):
        yield Case(f"hf pickle {name}", command, only_pickle(name))
    yield Case("hf pickle as safetensors", command, put("hf/model.safetensors", pickle.dumps(Marker())))


def only_index(values: dict) -> Callable[[Path], None]:
    """An index of several files instead of a single one, which would be read first."""

    def make(folder: Path) -> None:
        (folder / "hf/model.safetensors").rename(folder / "hf/shard.safetensors")
        (folder / "hf/model.safetensors.index.json").write_text(json.dumps(values))

    return make


def with_code(folder: Path) -> None:
    """Code in the folder of a model, which would leave a file."""
    (folder / "hf/modeling_evil.py").write_text("open('executed', 'w')\nclass Evil: ...\n")


def map_code(config: dict) -> None:
    config["auto_map"] = {"AutoModelForCausalLM": "modeling_evil.Evil", "AutoConfig": "modeling_evil.Evil"}
    config["model_type"] = "evil"


def only_pickle(name: str) -> Callable[[Path], object]:
    def make(folder: Path) -> None:
        (folder / "hf/model.safetensors").unlink()
        (folder / "hf" / name).write_bytes(pickle.dumps(Marker()))

    return make


def safetensors(header: object, data: bytes = b"", size: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if size is None else size) + text + data


def tensor_cases(command: tuple[str, ...]) -> Iterator[Case]:
    one = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    headers = {
        "size 2^63": safetensors({}, size=2**63),
        "size 0": safetensors(b"", size=0),
        "size beyond": safetensors({}, size=10**6),
        "empty": b"",
        "no JSON": safetensors(b"{{{{"),
        "deep": safetensors(b"[" * 100_000),
        "list": safetensors([one]),
        "beyond the end": safetensors({"a": {**one, "data_offsets": [0, 2**40], "shape": [2**38]}}),
        "negative": safetensors({"a": {**one, "data_offsets": [-8, 0]}}),
        "overlapping": safetensors({"a": one, "b": one}, b"\0" * 8),
        "overflow": safetensors({"a": {**one, "shape": [2**40, 2**40, 0], "data_offsets": [0, 0]}}),
        "unknown format": safetensors({"a": {**one, "dtype": ESCAPES}}, b"\0" * 8),
        "hostile name": safetensors({ESCAPES: one}, b"\0" * 8),
        "integers": safetensors({"model.norm.weight": {**one, "dtype": "I32"}}, b"\0" * 8),
        "many": safetensors(
            b"{"
            + b",".join(b'"%d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}' % i for i in range(600_000))
            + b"}"
        ),
    }
    for name, data in headers.items():
        yield Case(f"hf tensors {name}", command, put("hf/model.safetensors", data))
    yield Case("hf tensors cut", command, lambda f: os.truncate(f / "hf/model.safetensors", 3000))


def tokenizer_cases() -> Iterator[Case]:
    command = ("generate", "hf", "--prompt", "the cat " + "a" * 40, *GENERATE[2:])

    def of(**fields: object) -> Callable[[Path], object]:
        return edit("hf/tokenizer.json", lambda form: form.update(fields))

    def split(pattern: str) -> dict:
        return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}

    def replaced(old: str, new: str) -> dict:
        return {"type": "Replace", "pattern": {"String": old}, "content": new}

    for pattern in (
        "(a+)+$",
        "(a|a)*b",
        "(.*)*x",
        "((a{99}){99}){99}",
        r"(a)\1+b",
        "a?" * 40 + "a" * 40,
        "(a",
        "x" * 10**6,
    ):
        yield Case(f"tokenizer pattern {pattern[:20]}", command, of(pre_tokenizer=split(pattern)))
    yield Case(
        "tokenizer growth", command, of(normalizer={"type": "Sequence", "normalizers": [replaced("a", "a" * 99)] * 8})
    )
    yield Case(
        "tokenizer growth decoded", command, of(decoder={"type": "Sequence", "decoders": [replaced("a", "a" * 99)] * 8})
    )
    yield Case("tokenizer empty pattern", command, of(normalizer=replaced("", "xx")))
    for table in ("AAAA", "/////wAAAAAAAAAA", "A" * 10**6):
        yield Case(
            f"tokenizer table {len(table)}",
            command,
            of(normalizer={"type": "Precompiled", "precompiled_charsmap": table}),
        )
    yield Case("tokenizer id", command, edit("hf/tokenizer.json", lambda f: f["model"]["vocab"].update({"zz": 2**31})))
    yield Case(
        "tokenizer ids", command, edit("hf/tokenizer.json", lambda f: f["model"]["vocab"].update({"zz": 3 * 10**6}))
    )
    yield Case("tokenizer empty", command, of(model={"type": "BPE", "vocab": {}, "merges": []}, added_tokens=[]))
    yield Case(
        "tokenizer merges", command, edit("hf/tokenizer.json", lambda f: f["model"].update(merges=[["no", "pe"]]))
    )
    yield Case("tokenizer model", command, of(model={"type": ESCAPES}))
    for form in (
        {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "n"},
        {"type": "Unigram", "unk_id": 9, "vocab": [["a", 0]]},
    ):
        yield Case(f"tokenizer {form['type']}", command, of(model=form))


def run_cases() -> Iterator[Case]:
    """Run directories of others."""
    generate, train = ("generate", "run", *GENERATE), ("train", "--no_report", "--out", "run")
    draw = random.Random(1)
    for name in (RECIPE, CONFIG, CODEC):
        for kind in KINDS:
            yield Case(f"run {name} {kind}", generate if draw.random() < 0.5 else train, special(f"run/{name}", kind))
    wrong = ("[]", "{}", "null", "3", '"x"', "\x00")
    for name in (CONFIG, CODEC):
        for value in (*wrong, "[" * 100_000, '{"a":' * 100_000, "{" + '"a":1,' * 2_000_000):
            yield Case(f"run {name} {value[:6]!r}", generate, put(f"run/{name}", value))

    def config(field: str, value: object) -> Callable[[Path], object]:
        return edit(f"run/{CONFIG}", lambda c: c.update({field: value}))

    for field, value in (("format", "x"), ("format", 10**9), ("model", []), ("model", {}), ("model", 3)):
        yield Case(f"run config {field}={value!r}", generate, config(field, value))
    yield Case("run config answers_source", generate, config("answers_source", []))
    for field, value in (("model_dim", 10**6), *((name, 2**31 - 1) for name in ("vocab_size", "context_length"))):
        change = edit(f"run/{CONFIG}", lambda c, f=field, v=value: c["model"].update({f: v}))
        yield Case(f"run config {field}={value}", generate, change)
    for layers in (10_000, 10**5, 10**9):
        change = edit(f"run/{CONFIG}", lambda c, n=layers: c["model"]["decoder"].update(num_layers=n))
        yield Case(f"run config num_layers={layers}", generate, change)
    fields = {"alphabet": (123, []), "kind": (5, ESCAPES), "special": (3, [[]])}
    for field, value in ((field, value) for field, values in fields.items() for value in values):
        change = edit(f"run/{CODEC}", lambda c, f=field, v=value: c.update({f: v}))
        yield Case(f"run codec {field}={value!r}"[:40], generate, change)
    for name in (".lock", "samples.txt", "metrics.jsonl", "model", "checkpoints"):
        yield Case(
            f"run {name} elsewhere",
            ("train", "--no_report", "--out", "run", "--training.steps", "3"),
            linked(f"run/{name}"),
        )
    sealed, entry = ("generate", "sealed", *GENERATE), {"path": RECIPE, "size": 1, "sha256": "a"}
    for kind in KINDS:
        yield Case(f"manifest {kind}", sealed, special("sealed/manifest.json", kind))
        yield Case(f"manifest, recipe {kind}", sealed, special(f"sealed/{RECIPE}", kind))
    whole = {"format": 1, "files": [entry], "fingerprints": {}, "changes": []}
    for change in (
        *({name: value} for name in whole for value in (None, "x", 3, [3], {"a": 3})),
        *({"files": [{**entry, "path": path}]} for path in ("/etc/passwd", "../../x", "/dev/zero", ESCAPES, 3)),
    ):
        make = put("sealed/manifest.json", seal({**whole, **change}))
        yield Case(f"manifest {change}"[:60], sealed, make)
    yield Case("run package", ("generate", "package:torch/../../../../etc"), lambda folder: None)


def linked(name: str) -> Callable[[Path], object]:
    """A file or folder moved out of the folder, with a link in its place."""

    def make(folder: Path) -> None:
        path, outside = folder / name, folder.parent / "outside"
        path.rename(outside)
        path.symlink_to(outside)

    return make


def recipe_cases() -> Iterator[Case]:
    """Recipes and claims."""
    texts = {
        "dotted": "a" + ".a" * 100_000 + " = 1",
        "dotted table": "[a" + ".a" * 100_000 + "]",
        "dotted, quoted": '"a"' + ' . "a"' * 50_000 + " = 1",
        "dotted inside": "x = {a" + ".a" * 50_000 + " = 1}",
        "deep list": "a = " + "[" * 100_000,
        "deep table": "a = " + "{a=" * 100_000,
        "large": "a = '" + "x" * 2_000_000 + "'",
        "digits": "seed = " + "9" * 100_000,
        "not UTF-8": b"a = '\xff'",
        "NUL": "a\0 = 1",
        "layers": "[model]\ndecoder.num_layers = 1000000000",
        "width": "[model]\nmodel_dim = 2000000000",
        "escapes": f"[data]\npath = {json.dumps(ESCAPES)}",
        "infinite": "[training]\nclip_norm = inf",
        "kind": "[model]\nkind = 3",
        "wrong type": "model = 3",
        "dates": "seed = 1979-05-27T07:32:00Z",
    }
    for name, text in texts.items():
        yield Case(f"recipe {name}", ("train", "./r.toml", "--out", "new"), put("r.toml", text))
        if name.startswith(("d", "l", "n", "N")):
            yield Case(
                f"claim {name}", ("reproduce", "./r.toml", "--out", "new", "--pool", "pool"), put("r.toml", text)
            )
    for kind in KINDS:
        yield Case(f"recipe {kind}", ("train", "./r.toml", "--out", "new"), special("r.toml", kind))
        yield Case(f"recipe shown {kind}", ("recipes", "--show", "./r.toml"), special("r.toml", kind))


def data_cases() -> Iterator[Case]:
    """Training texts and prompts."""
    train = ("train", "shakespeare", "--training.steps", "1", "--no_report", "--out", "new", "--data.path")
    prompts = ("generate", "run", *GENERATE[2:], "--path")
    for kind in KINDS:
        yield Case(f"data {kind}", (*train, "d.txt"), special("d.txt", "pipe" if kind == "huge" else kind))
        yield Case(f"prompts {kind}", (*prompts, "d.txt"), special("d.txt", kind))
        yield Case(f"pairs {kind}", (*train, "d.{txt,md}"), special("d.txt", "zero" if kind == "huge" else kind))
    bomb = gzip.compress(b"a" * 2**28, 1)
    yield Case("data bomb", (*train, "d.txt.gz"), put("d.txt.gz", bomb * 4))
    yield Case("data bomb, records", (*train, "d.jsonl.gz"), put("d.jsonl.gz", bomb * 4))
    yield Case("data cut", (*train, "d.txt.gz"), put("d.txt.gz", gzip.compress(b"abc" * 1000)[:20]))
    yield Case("data no gzip", (*train, "d.txt.gz"), put("d.txt.gz", "plain"))
    yield Case("data long line", (*train, "d.jsonl"), sparse("d.jsonl", 2**30))
    records = {
        "deep": "[" * 100_000,
        "deep text": '{"text":' * 100_000,
        "digits": '{"text": "a", "label": ' + "9" * 100_000 + "}",
        "half": '{"text": "\\ud800"}',
        "wrong": '{"text": 3}',
        "infinite": '{"text": "a", "label": 1e999}',
        "key": json.dumps({ESCAPES: 1}),
    }
    for name, record in records.items():
        yield Case(f"data record {name}", (*train, "d.jsonl"), put("d.jsonl", record))
    yield Case("data name", (*train, f"{ESCAPES[1:9]}.txt"), lambda folder: None)
    yield Case("data not UTF-8", (*train, "d.txt"), put("d.txt", b"abc\xff\xfe"))
    for path in (
        "package:../../etc",
        "package:os",
        "toy:capitals:1e99",
        "toy:nothing",
        "~nobody-at-all/x",
        "d.{a,b",
        "",
    ):
        yield Case(f"data {path}", (*train, path), lambda folder: None)


def container_cases() -> Iterator[Case]:
    """Tables, archives, Parquet and Arrow files, folders of datasets."""
    small = ("--model.model_dim", "8", "--model.context_length", "16", "--training.global_batch_tokens", "32")
    small = (*small, "--model.decoder.num_layers", "1", "--training.sample_tokens", "0", "--training.steps", "1")
    train = ("train", "shakespeare", *small, "--no_report", "--out", "new", "--data.path")
    zeros = b"a" * 2**27
    tables = {
        "d.csv": {
            "quote": 'text,label\n"' + "a,b\n" * 200_000,
            "commas": "," * 4_000_000,
            "ragged": "text,label\na\n",
            "names": f"{ESCAPES.splitlines()[0]},x\na,b\n",
            "twice": "text,text\na,b\n",
            "NUL": "text\n\0\0\n\0\n",
        },
        "d.tsv": {"quotes": 'text\tx\n"' * 10_000, "tabs": "\t" * 4_000_000},
        "d.json": {
            "deep": "[" * 100_000,
            "deep objects": '{"a":' * 100_000,
            "many": "[" + "[]," * 4_000_000 + "0]",
            "many inside": '{"a": [' + "[]," * 4_000_000 + "0]}",
            "digits": '[{"text": "a", "label": ' + "9" * 100_000 + "}]",
        },
    }
    for name, texts in tables.items():
        for what, text in texts.items():
            yield Case(f"data {name} {what}", (*train, name), put(name, text))
    for name in ("../up.txt", "/etc/up.txt", ESCAPES, "a" * 5000 + ".txt", "..\\up.txt", "..", ""):
        yield Case(
            f"data zip name {name[:20]!r}",
            (*train, "d.zip"),
            put("d.zip", zip_file({name: b"text", "a.txt": b"b" * 500})),
        )
        yield Case(
            f"data tar name {name[:20]!r}",
            (*train, "d.tar"),
            put("d.tar", tar_file({name: b"text", "a.txt": b"b" * 500})),
        )
    yield Case("data zip bomb", (*train, "d.zip"), put("d.zip", zip_file({"a.txt": zeros})))
    yield Case(
        "data zip of bombs", (*train, "d.zip"), put("d.zip", zip_file({f"{i}.txt": zeros[: 2**22] for i in range(40)}))
    )
    yield Case("data zip many", (*train, "d.zip"), put("d.zip", b"PK\x03\x04" + b"PK\x01\x02" * 1_100_000))
    yield Case("data zip empty", (*train, "d.zip"), put("d.zip", b"PK\x05\x06" + b"\0" * 18))
    yield Case("data tar bomb", (*train, "d.tgz"), put("d.tgz", gzip.compress(tar_file({"a.txt": zeros}), 1)))
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE):
        yield Case(f"data tar {kind!r}", (*train, "d.tar"), put("d.tar", tar_file({}, kind, "/etc/passwd")))
    yield Case(
        "data tar sizes", (*train, "d.tar"), put("d.tar", tar_file({"a.txt": b""}).replace(b"0" * 11, b"7" * 11, 1))
    )
    for name in ("d.zip", "d.tar", "d.parquet", "d.arrow", "d.csv", "d.json"):
        yield Case(f"data {name} pickle", (*train, name), put(name, pickle.dumps(Marker())))
        yield Case(f"data {name} zeros", (*train, name), sparse(name, 2**20))
    yield from arrow_cases(train)


def zip_file(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


def tar_file(members: dict[str, bytes], kind: bytes = tarfile.REGTYPE, link: str = "") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in (members or {"link.txt": b""}).items():
            info = tarfile.TarInfo(name)
            info.size, info.type, info.linkname = len(content), kind, link
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def arrow_cases(train: tuple[str, ...]) -> Iterator[Case]:
    """Parquet and Arrow files, damaged and long, and what names them."""
    import pyarrow
    import pyarrow.parquet

    texts = pyarrow.table({"text": [f"the text {i}" for i in range(500)], "n": list(range(500))})
    long = pyarrow.table({"text": pyarrow.DictionaryArray.from_arrays([0] * 10**6, ["x" * 10**5])})
    equal = pyarrow.table({"text": ["x" * 10**6] * 200})
    for name, table, options in (("long", long, {"store_schema": False}), ("equal", equal, {"use_dictionary": False})):
        yield Case(f"data parquet {name}", (*train, "d.parquet"), put("d.parquet", parquet_file(table, **options)))
    nothing = pyarrow.table({"text": pyarrow.nulls(5_000_000, pyarrow.string())})
    yield Case("data parquet nothing", (*train, "d.parquet"), put("d.parquet", parquet_file(nothing)))
    stream = io.BytesIO()
    with pyarrow.ipc.new_stream(stream, texts.schema) as writer:
        writer.write_table(texts)
    draw = random.Random(2)
    for name, data in (("d.parquet", parquet_file(texts)), ("d.arrow", stream.getvalue())):
        for trial in range(24):
            damaged = bytearray(data)
            for _ in range(1 + trial % 4):
                damaged[draw.randrange(len(data))] = draw.choice((0, 255, 127, draw.randrange(256)))
            yield Case(f"data {name} damaged {trial}", (*train, name), put(name, bytes(damaged)))
        yield Case(f"data {name} cut", (*train, name), put(name, data[: len(data) // 2]))
    for name in ("../x.arrow", "/etc/passwd", ESCAPES, 3, None, "state.json"):
        state = json.dumps({"_data_files": [{"filename": name}]})
        yield Case(f"data state {name!r}"[:40], (*train, "set"), put("set/state.json", state))
        splits = json.dumps({"splits": [name]})
        yield Case(f"data splits {name!r}"[:40], (*train, "set"), put("set/dataset_dict.json", splits))


def parquet_file(table: object, **options: object) -> bytes:
    import pyarrow.parquet

    buffer = io.BytesIO()
    pyarrow.parquet.write_table(table, buffer, compression="zstd", **options)
    return buffer.getvalue()


def template_cases() -> Iterator[Case]:
    """Chat templates."""
    command = ("train", "--start", "hf", "--data.path", "c.jsonl", "--data.rows", "packed", "--training.steps", "1")
    command = (*command, "--no_report", "--out", "new")
    talk = json.dumps({"messages": [{"role": "user", "content": "the"}, {"role": "assistant", "content": "cat"}]})

    def of(template: object) -> Callable[[Path], object]:
        def make(folder: Path) -> None:
            put("c.jsonl", f"{talk}\n" * 40)(folder)
            edit("hf/tokenizer_config.json", lambda values: values.update(chat_template=template))(folder)

        return make

    grown = "{% set ns = namespace(x=['aaaa']) %}{% for i in range(99) %}{% set ns.x = GROWN %}{% endfor %}{{ ns.x }}"
    templates = {
        "loop": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "product": "{{ 'a' * 10**10 }}",
        "sum": grown.replace("GROWN", "ns.x + ns.x"),
        "texts": grown.replace("GROWN", "ns.x ~ ns.x"),
        "lists": grown.replace("GROWN", "[ns.x, ns.x]"),
        "centre": "{{ 'a'.center(10**10) }}",
        "recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "python": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "system": "{{ raise_exception.__globals__['os'].system('touch executed') }}",
        "file": "{% include '/etc/passwd' %}",
        "escapes": ESCAPES,
        "syntax": "{% for %}",
        "depth": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
        "long": "a" * 2_000_000,
        "number": 3,
        "lists of them": [3, {"name": "default", "template": []}],
    }
    for name, template in templates.items():
        yield Case(f"template {name}", command, of(template))


def sparse(name: str, size: int) -> Callable[[Path], object]:
    def make(folder: Path) -> None:
        with (folder / name).open("wb") as file:
            file.truncate(size)

    return make


def gguf_cases() -> Iterator[Case]:
    """GGUF files."""

    def text(value: str | bytes) -> bytes:
        data = value if isinstance(value, bytes) else value.encode()
        return struct.pack("<Q", len(data)) + data

    def head(tensors: int, keys: int, version: int = 3) -> bytes:
        return b"GGUF" + struct.pack("<IQQ", version, tensors, keys)

    def entry(name: str, kind: int, value: bytes) -> bytes:
        return text(name) + struct.pack("<I", kind) + value

    arch = entry("general.architecture", 8, text("llama"))
    info = text("a") + struct.pack("<IQQIQ", 2, 2**40, 2**40, 0, 0)
    files = {
        "empty": b"",
        "magic": b"GGML" + b"\0" * 100,
        "version": head(0, 0, 2**31),
        "swapped": head(0, 0, 3 << 24),
        "many keys": head(0, 2**60),
        "many tensors": head(2**60, 1) + arch,
        "long name": head(0, 1) + struct.pack("<Q", 2**62),
        "long list": head(0, 1) + entry("a", 9, struct.pack("<IQ", 4, 2**61)),
        "long texts": head(0, 1) + entry("a", 9, struct.pack("<IQ", 8, 2**40)),
        "nested list": head(0, 1) + entry("a", 9, struct.pack("<IQIQ", 9, 1, 9, 1)),
        "many texts": head(0, 1) + entry("a", 9, struct.pack("<IQ", 8, 5_000_000) + b"\0" * 8 * 5_000_000),
        "many bytes": head(0, 1) + entry("a", 9, struct.pack("<IQ", 0, 50_000_000) + b"\0" * 50_000_000),
        "unknown type": head(0, 1) + entry("a", 99, b""),
        "no UTF-8": head(0, 1) + entry("general.architecture", 8, text(b"\xff\xff")),
        "twice": head(0, 2) + arch + arch,
        "huge tensor": head(1, 1) + arch + info,
        "no tensors": head(0, 1) + arch,
        "architecture": head(0, 1) + entry("general.architecture", 8, text(ESCAPES)),
        "pickle": pickle.dumps(Marker()),
    }
    for name, data in files.items():
        yield Case(f"gguf {name}", ("generate", "m.gguf", *GENERATE), put("m.gguf", data))
    for kind in KINDS:
        yield Case(f"gguf {kind}", ("generate", "m.gguf", *GENERATE), special("m.gguf", kind))


def all_cases() -> list[Case]:
    """All of them; names are unique."""
    makers = (folder_cases, tokenizer_cases, run_cases, recipe_cases, data_cases, gguf_cases)
    makers = (*makers, container_cases, template_cases)
    return list({case.name: case for maker in makers for case in maker()}.values())


def watch(folder: Path, report: int) -> None:
    """Report what the process does that reading files doesn't need; it can't be undone."""

    def is_outside(path: object) -> bool:
        if isinstance(path, int) or path is None:
            return False
        real = os.path.realpath(os.fsdecode(path))
        if real.startswith(str(folder.parent / "outside")):  # whose contents are compared
            return False
        return real != os.devnull and not real.startswith(f"{folder}{os.sep}")

    def hook(event: str, arguments: tuple) -> None:
        if event in DANGEROUS or event in NETWORK or (event == "import" and "evil" in str(arguments[0])):
            os.write(report, f"{event} {arguments!r}\n".encode()[:300])
        elif (
            event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        ):
            if is_outside(arguments[0]):
                os.write(report, f"open {arguments!r}\n".encode()[:300])
        elif event in MOVES and is_outside(arguments[0]):
            os.write(report, f"{event} {arguments!r}\n".encode()[:300])

    sys.addaudithook(hook)


def call(case: Case, template: Path, limit: float = 60.0) -> Outcome:
    """The outcome of a case in a fork."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve() / "inside"
        shutil.copytree(template, folder)
        before = Path.cwd()
        os.chdir(folder)
        case.make(folder)
        os.chdir(before)
        error, report, outside = Path(name) / "stderr", Path(name) / "report", contents(Path(name) / "outside")
        started, pid = time.perf_counter(), os.fork()
        if not pid:
            _run(case, folder, error, report, limit)
        _, status, usage = os.wait4(pid, 0)
        seconds = time.perf_counter() - started
        message = error.read_text(errors="replace")
        seen = report.read_text(errors="replace").splitlines()
        if contents(Path(name) / "outside") != outside:
            seen.append("changed a file outside")
        if (folder / "executed").exists() or (folder / "hf/executed").exists():
            seen.append("executed")
        lines = [line for line in message.splitlines() if not line.startswith("warning: ")]
        code = os.waitstatus_to_exitcode(status)
        return Outcome(case.name, code, len(lines), message[-300:], seconds, usage.ru_maxrss / 1024, seen)


def contents(path: Path) -> dict[str, bytes]:
    """The files at a path, with their bytes."""
    files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
    return {str(file): file.read_bytes() for file in files}


def _run(case: Case, folder: Path, error: Path, report: Path, limit: float) -> None:
    import resource
    import signal

    code = 99
    try:
        signal.alarm(int(limit))
        resource.setrlimit(resource.RLIMIT_AS, (16 * 2**30, 16 * 2**30))
        os.chdir(folder)
        os.environ.update(TMPDIR=str(folder), ISOFORM_CACHE=str(folder / "cache"), HOME=str(folder))
        tempfile.tempdir = None
        for path, descriptor in ((error, 2), (folder.parent / "stdout", 1)):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), descriptor)
        sys.stdout, sys.stderr = (os.fdopen(os.dup(number), "w", encoding="utf-8") for number in (1, 2))
        handle = os.open(report, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        watch(folder, handle)
        code = main([*case.command, "--device", "cpu"] if case.command[0] in ("train", "generate") else [*case.command])
    finally:
        sys.stderr.flush()
        os._exit(int(code))


def outcomes(cases: list[Case]) -> Iterator[Outcome]:
    """The outcome of each case, with the memory and time of a harmless call taken off."""
    torch.set_num_threads(1)  # a fork would wait for the others
    with tempfile.TemporaryDirectory() as name:
        template = Path(name) / "harmless"
        template.mkdir()
        harmless(template)
        for command in (("generate", "run", *GENERATE), ("generate", "hf", *GENERATE)):
            base = call(Case("harmless", command, lambda folder: None), template)
            assert base.code == 0 and not base.seen, base
        refused = call(Case("refused", ("generate", "nothing"), lambda folder: None), template)
        for case in cases:
            found = asdict(call(case, template))
            found["seconds"] = round(found["seconds"] - refused.seconds, 3)
            found["megabytes"] = round(found["megabytes"] - refused.megabytes, 1)
            yield Outcome(**found)


def is_fine(outcome: Outcome) -> bool:
    """Whether a file was refused in one line, or harmlessly used; nothing else was done."""
    return not outcome.seen and (outcome.code == 0 or (outcome.code == 65 and outcome.lines == 1))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--only", default="")
    options = parser.parse_args()
    chosen = [case for case in all_cases() if options.only in case.name][:: options.every]
    for outcome in outcomes(chosen):
        print(json.dumps({**asdict(outcome), "is_fine": is_fine(outcome)}), flush=True)
