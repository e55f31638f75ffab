"""Damaged folders are refused with a message that names file and tensor, before memory is allocated."""

import json
import re
import resource
from dataclasses import replace

import pytest
import tokenizers
import torch
import transformers
from safetensors.torch import load_file, save_file

from isoform.checkpoint import huggingface
from isoform.checkpoint.families.registry import FAMILIES
from isoform.checkpoint.families.unsupported import REASONS
from isoform.checkpoint.huggingface import CONFIG, INDEX, WEIGHTS, read_folder, write_folder
from isoform.checkpoint.tensors import state_of
from isoform.cli import main
from isoform.mask import Window
from isoform.model.config import BlockConfig, Vocabulary
from isoform.model.decoders import MODERN
from isoform.model.parts import Attention, Gated, NTKExtension, RMSNorm, Rotary
from isoform.run import load
from models import VOCAB, build, config

LLAMA = config(
    block=BlockConfig(
        mixer=Attention(num_heads=4, num_kv_heads=2), feedforward=Gated(feedforward_dim=24), norm=RMSNorm()
    )
)
NORM = "model.layers.1.input_layernorm.weight"


@pytest.fixture
def folder(tmp_path):
    write_folder(build(LLAMA), tmp_path / "there")
    return tmp_path / "there"


def edit_config(folder, **fields):
    path = folder / CONFIG
    values = {**json.loads(path.read_text()), **fields}
    path.write_text(json.dumps({name: value for name, value in values.items() if value != "absent"}))


def edit_tensors(folder, change):
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)


def test_a_written_folder_is_read(folder):
    model = read_folder(folder)
    for name, tensor in state_of(build(LLAMA)).items():
        assert torch.equal(state_of(model)[name], tensor)


def damage_header(folder):
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(b"\xff" * 8 + data[8:])


def truncate(folder):
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[:-100])


def only_index(**file_of):
    def change(folder):
        (folder / WEIGHTS).rename(folder / "shard.safetensors")
        (folder / INDEX).write_text(json.dumps({"weight_map": file_of}))

    return change


def only_pickle(folder):
    (folder / WEIGHTS).rename(folder / "pytorch_model.bin")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda f: (f / CONFIG).unlink(), "no config.json"),
        (lambda f: (f / CONFIG).write_text("{"), "config.json is no JSON"),
        (lambda f: (f / CONFIG).write_text("[1]"), "config.json holds a list"),
        (lambda f: edit_config(f, model_type="rwkv"), "model_type='rwkv' is not supported"),
        (lambda f: edit_config(f, hidden_size="absent"), "lacks 'hidden_size'"),
        (lambda f: edit_config(f, hidden_size="16"), "hidden_size='16' is no integer"),
        (lambda f: edit_config(f, num_hidden_layers=10**12), "num_hidden_layers=1000000000000 is no integer"),
        (lambda f: edit_config(f, vocab_size=2 * 10**9), "describes .* parameters, but the files hold"),
        (lambda f: edit_config(f, num_attention_heads=3), "num_heads=3"),
        (lambda f: edit_config(f, intermediate_size=25), r"gate_proj.*has shape \[24, 16\].*require \[25, 16\]"),
        (lambda f: edit_config(f, num_hidden_layers=3), "tensors model.layers.2.* missing"),
        (
            lambda f: edit_config(f, num_hidden_layers=1),
            r"model.layers.1.*don't describe",
        ),
        (lambda f: edit_config(f, hidden_act="quick_gelu"), "hidden_act='quick_gelu' is not supported"),
        (lambda f: edit_config(f, rope_parameters={"rope_type": "longrope"}), "rope_type='longrope'"),
        (lambda f: edit_config(f, quantization_config={"bits": 4}), "quantization_config"),
        (lambda f: edit_config(f, rms_norm_eps=float("inf")), "rms_norm_eps=inf is no finite number"),
        (lambda f: edit_tensors(f, lambda t: t.pop(NORM)), f"tensor {NORM} is missing"),
        (lambda f: edit_tensors(f, lambda t: t.update(spare=torch.ones(1))), "tensor spare is there"),
        (lambda f: edit_tensors(f, lambda t: t[NORM].fill_(float("nan"))), f"{NORM}' has NaN"),
        (lambda f: edit_tensors(f, lambda t: t.update({NORM: torch.ones(16).int()})), f"{NORM}' holds torch.int32"),
        (damage_header, "model.safetensors is damaged"),
        (truncate, "model.safetensors is damaged"),
        (only_index(**{NORM: "../../secret.safetensors"}), "points outside its folder"),
        (
            only_index(**{NORM: "model-00001-of-00002.safetensors"}),
            "names model-00001-of-00002.safetensors, which",
        ),
        (
            only_index(nothing="shard.safetensors"),
            "lists the tensor 'nothing' in shard.safetensors, but",
        ),
        (only_pickle, "is a pickle, which may run code"),
        (lambda f: (f / WEIGHTS).unlink(), "no weights to read"),
    ],
)
def test_a_damaged_folder_is_refused_with_a_message(folder, spoil, words):
    spoil(folder)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=words):
        read_folder(folder)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB


def test_unknown_fields_are_warned_about(folder):
    edit_config(folder, swallows=3)
    with pytest.warns(UserWarning, match="swallows"):
        read_folder(folder)


def test_shards_are_written_and_read(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface, "SHARD", 4000)
    model = read_folder(folder)
    write_folder(model, tmp_path / "shards")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    back = read_folder(tmp_path / "shards")
    for name, tensor in state_of(model).items():
        assert torch.equal(state_of(back)[name], tensor)


def test_a_single_file_is_read_before_shards_that_are_left(folder):
    model = read_folder(folder)
    zeros = {name: tensor * 0 for name, tensor in load_file(folder / WEIGHTS).items()}
    save_file(zeros, folder / "shard.safetensors")
    (folder / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(zeros, "shard.safetensors")}))
    with pytest.warns(UserWarning, match="is read, not the files that"):
        back = read_folder(folder)
    for name, tensor in state_of(model).items():
        assert torch.equal(state_of(back)[name], tensor)


@pytest.mark.parametrize(
    ("form", "words"),
    [
        (replace(MODERN, vocab_size=VOCAB), "mixtral, qwen3_moe: no feedforward Dense$"),
        (
            replace(LLAMA, decoder=replace(LLAMA.decoder, loops=2)),
            "granite, mistral, phi3, smollm3: no decoder.loops=2$",
        ),
        (
            config(position=Rotary(fraction=0.5), block=replace(LLAMA.decoder.blocks[0], feedforward=Gated(bias=True))),
            "granite, smollm3: no decoder.position.fraction=0.5; phi3: no decoder.blocks.0.feedforward.bias=True$",
        ),
        (
            config(
                block=replace(LLAMA.decoder.blocks[0], mixer=Attention(num_heads=4, bias=True, pattern=Window(5, 1)))
            ),
            r"granite: no decoder.blocks.0.mixer.pattern window; smollm3: no decoder.blocks.0.mixer.pattern.after=1$",
        ),
        (replace(LLAMA, stem=replace(LLAMA.stem, previous=True)), "stem.previous"),
        (replace(LLAMA, head=Vocabulary(softcap=3.0)), "head.softcap"),
        (config(position=Rotary(extension=NTKExtension()), block=LLAMA.decoder.blocks[0]), "position.extension ntk"),
    ],
)
def test_what_no_class_of_theirs_can_represent_is_refused_by_the_fields(form, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        write_folder(build(form), tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_more_tokens_than_rows_are_refused_when_the_folder_is_loaded(folder):
    words = {"</s>": 0, **{f"w{i}": i for i in range(1, VOCAB + 1)}}
    save_tokenizer(folder, words)
    with pytest.raises(ValueError, match=rf"the tokenizer has {VOCAB + 1} tokens, the model's table {VOCAB} rows"):
        load(folder)
    words.popitem()
    save_tokenizer(folder, words)
    assert load(folder).codec.vocab_size == VOCAB


def save_tokenizer(folder, words):
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="w1"))
    tokenizer.add_special_tokens(["</s>"])
    tokenizer.save(str(folder / "tokenizer.json"))


@pytest.mark.parametrize("class_name", ["ViTForImageClassification", "ViTModel"])
@pytest.mark.filterwarnings("ignore:.*left aside")
def test_a_folder_of_images_is_converted(class_name, tmp_path):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    config = transformers.ViTConfig(**sizes, image_size=16, patch_size=4)
    getattr(transformers, class_name)(config).save_pretrained(tmp_path / "theirs")
    assert main(["convert", str(tmp_path / "theirs"), str(tmp_path / "ours")]) == 0
    assert getattr(transformers, class_name).from_pretrained(tmp_path / "ours").config.image_size == 16


def test_model_types_that_cannot_be_read_are_refused_with_what_is_missing(folder):
    assert not REASONS.keys() & {family.model_type for family in FAMILIES}
    assert set(REASONS) <= set(transformers.CONFIG_MAPPING)
    for model_type, reason in REASONS.items():
        edit_config(folder, model_type=model_type)
        with pytest.raises(ValueError, match=re.escape(f"model_type={model_type!r} is not supported: {reason}")):
            read_folder(folder)
