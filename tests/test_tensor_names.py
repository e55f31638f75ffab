"""Tensors in a folder under other names than today's: base classes, earlier versions, tied tables, leftovers. What
transformers makes of the same files decides."""

import json
import logging
import warnings
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from families import all_peers, make
from isoform.checkpoint.families.registry import FAMILIES
from isoform.checkpoint.huggingface import CONFIG, WEIGHTS, read_folder, write_folder
from isoform.checkpoint.tensors import is_tied, state_of
from isoform.model.config import Lookup
from test_conversions import assert_equal_logits

logging.getLogger("transformers").setLevel(logging.CRITICAL)
transformers.utils.logging.disable_progress_bar()
PEERS = all_peers()
BY_TYPE = {family.model_type: family for family in FAMILIES}
FIRST = {peer.config.model_type: name for name, peer in reversed(PEERS.items())}
"""The first model of each type."""
TIED = [name for model_type, name in FIRST.items() if BY_TYPE[model_type].ties]


def saved(name: str, folder: Path, change, **fields) -> Path:
    """A model of theirs with its tensors changed, and fields of its config."""
    make(PEERS[name], folder)
    tensors = load_file(folder / WEIGHTS)
    tensors = change(tensors) or tensors
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, folder / WEIGHTS, {"format": "pt"})
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**config, **fields}))
    return folder


def theirs(name: str, folder: Path):
    return PEERS[name].model.from_pretrained(folder).eval()


def head_of(name: str) -> str:
    family, architecture = BY_TYPE[PEERS[name].config.model_type], PEERS[name].model.__name__
    names = next((each.names for each in family.heads if each.architecture == architecture), family.names)
    return names["head.weight"]


def without_prefix(prefix: str, dropped: str = ""):
    def change(tensors):
        return {key.removeprefix(f"{prefix}."): tensor for key, tensor in tensors.items() if key != dropped}

    return change


@pytest.mark.parametrize("name", TIED)
def test_names_of_the_base_class_are_read(name, tmp_path):
    prefix = PEERS[name].model.base_model_prefix
    folder = saved(name, tmp_path, without_prefix(prefix, head_of(name)), tie_word_embeddings=True)
    assert_equal_logits(theirs(name, folder), read_folder(folder))


@pytest.mark.parametrize("wrapper", ["module.", "_orig_mod.", "_orig_mod.module.", "itself"])
@pytest.mark.parametrize("name", ["llama2", "gpt2", "bert", "t5", "bart"])
def test_the_prefix_of_a_module_around_the_model_is_taken_off(name, wrapper, tmp_path):
    prefix = f"{PEERS[name].model.base_model_prefix}." if wrapper == "itself" else wrapper
    plain = saved(name, tmp_path / "plain", lambda tensors: tensors)
    folder = saved(name, tmp_path / "wrapped", lambda tensors: {prefix + key: t for key, t in tensors.items()})
    assert_equal_logits(theirs(name, plain), read_folder(folder))


@pytest.mark.parametrize(("name", "over"), [("bert", "mean"), ("modernbert", "mean"), ("vit", "first")])
def test_an_encoder_without_a_head_gives_a_vector(name, over, tmp_path):
    model = make(PEERS[name], tmp_path / "whole").base_model
    model.save_pretrained(tmp_path / "base")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*left aside")
        base, whole = read_folder(tmp_path / "base"), read_folder(tmp_path / "whole")
    assert base.config.head.over == over and base.config.head.embed
    for key, tensor in state_of(base).items():
        assert torch.equal(tensor, state_of(whole)[key])
    assert write_folder(base, tmp_path / "again") == type(model).__name__


@pytest.mark.parametrize("name", FIRST.values())
def test_the_names_of_today_are_read_too(name, tmp_path):
    model = make(PEERS[name], tmp_path / "original")
    model.save_pretrained(tmp_path / "today", save_original_format=False)
    assert_equal_logits(model, read_folder(tmp_path / "today"))


@pytest.mark.parametrize("shape", [(), (6,), (6, 48), (20_000, 2, 1)])
def test_a_stack_of_experts_of_another_shape_is_named(shape, tmp_path):
    name = "model.layers.0.mlp.experts.gate_up_proj"
    folder = saved("qwen3-moe", tmp_path, lambda tensors: tensors.update({name: torch.ones(shape)}))
    with pytest.raises(ValueError, match=f"the tensor {name} is there"):
        read_folder(folder)


def test_a_decoder_without_a_head_is_read_if_it_is_tied(tmp_path):
    folder = saved("llama2", tmp_path, without_prefix("model", "lm_head.weight"), tie_word_embeddings=False)
    with pytest.raises(ValueError, match=r"a base model without a head: lm_head.weight is missing"):
        read_folder(folder)


def test_a_stack_that_is_missing_is_named(tmp_path):
    folder = saved("t5", tmp_path, lambda t: {k: v for k, v in t.items() if not k.startswith(("decoder.", "lm_"))})
    with pytest.raises(ValueError, match="describes a model with decoder, but the files hold no tensor of its blocks"):
        read_folder(folder)


@pytest.mark.parametrize("name", ["bert", "gpt2", "bart", "whisper", "vit"])
def test_layer_norms_once_had_gamma_and_beta(name, tmp_path):
    def rename(tensors):
        names = {"weight": "gamma", "bias": "beta"}
        return {
            f"{key.rpartition('.')[0]}.{names[key.rpartition('.')[2]]}" if "norm" in key.lower() else key: tensor
            for key, tensor in tensors.items()
        }

    make(PEERS[name], tmp_path / "today")
    then, today = read_folder(saved(name, tmp_path / "then", rename)), read_folder(tmp_path / "today")
    for key, tensor in state_of(today).items():
        assert torch.equal(state_of(then)[key], tensor)


@pytest.mark.parametrize("name", TIED)
def test_a_head_that_differs_from_the_table_it_is_tied_to_is_read_with_a_warning(name, tmp_path):
    head = head_of(name)

    def change(tensors):
        shape = tensors[head].shape if head in tensors else (50, 32)
        tensors[head] = torch.randn(shape, generator=torch.Generator().manual_seed(9))

    folder = saved(name, tmp_path / "theirs", change, tie_word_embeddings=True)
    with pytest.warns(UserWarning, match=f"ties .*{head}.* to .*, but the files hold other values"):
        ours = read_folder(folder)
    assert not is_tied(ours)
    assert_equal_logits(theirs(name, folder), ours)
    write_folder(ours, tmp_path / "ours", {"model_type": PEERS[name].config.model_type})
    assert_equal_logits(theirs(name, tmp_path / "ours"), ours)


@pytest.mark.parametrize("name", TIED)
def test_tied_tensors_may_be_there_under_any_of_their_names(name, tmp_path):
    family, head = BY_TYPE[PEERS[name].config.model_type], head_of(name)
    source = family.ties[head]

    def all_of_them(tensors):
        for copy, original in family.ties.items():
            tensors[copy] = tensors[original].clone()

    def only_the_head(tensors):
        tensors[head] = tensors.pop(source)

    for i, change in enumerate((all_of_them, only_the_head)):
        folder = saved(name, tmp_path / str(i), change, tie_word_embeddings=True)
        ours = read_folder(folder)  # without a warning
        assert is_tied(ours)
        assert_equal_logits(theirs(name, folder), ours)


@pytest.mark.parametrize("name", [name for name in TIED if name not in ("t5", "mt5")])
def test_untied_tables_are_written_and_read_as_theirs(name, tmp_path):
    peer = PEERS[name]
    peer.config.tie_word_embeddings = False
    try:
        model = make(peer, tmp_path / "theirs")
    finally:
        peer.config.tie_word_embeddings = name not in ("llama2", "qwen3")
    ours = read_folder(tmp_path / "theirs")
    assert not is_tied(ours)
    assert_equal_logits(model, ours)
    write_folder(ours, tmp_path / "ours", {"model_type": peer.config.model_type})
    again, report = peer.model.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert_equal_logits(again.eval(), ours)


def test_an_encoder_with_a_table_of_its_own_stays_so(tmp_path):
    def change(tensors):
        tensors["model.encoder.embed_tokens.weight"] = tensors["model.shared.weight"] * 0.5

    folder = saved("bart", tmp_path / "theirs", change)
    with pytest.warns(UserWarning, match=r"ties model.encoder.embed_tokens.weight to model.shared.weight"):
        ours = read_folder(folder)
    assert isinstance(ours.config.encoder_stem, Lookup) and is_tied(ours)
    assert_equal_logits(theirs("bart", folder), ours)
    write_folder(ours, tmp_path / "ours")
    assert_equal_logits(theirs("bart", tmp_path / "ours"), ours)


@pytest.mark.parametrize("factor", [1.0, 0.5])
def test_positions_in_a_file_of_marian_are_those_that_are_read(factor, tmp_path):
    model = make(PEERS["marian"], tmp_path / "theirs")
    tables = {
        f"model.{stack}.embed_positions.weight": model.get_submodule(f"model.{stack}.embed_positions").weight * factor
        for stack in ("encoder", "decoder")
    }
    folder = saved("marian", tmp_path / "theirs", lambda tensors: tensors.update(tables))
    ours = read_folder(folder)
    assert_equal_logits(theirs("marian", folder), ours)
    write_folder(ours, tmp_path / "ours")
    assert_equal_logits(theirs("marian", tmp_path / "ours"), ours)


def test_parameters_without_a_use_are_named_once(tmp_path):
    name = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
    folder = saved("t5", tmp_path / "t5", lambda tensors: tensors.update({name: torch.ones(8, 4)}))
    with pytest.warns(UserWarning, match=f"the tensor {name} is left aside") as record:
        ours = read_folder(folder)
    assert len(record) == 1
    assert_equal_logits(theirs("t5", folder), ours)
    buffers = {"transformer.h.0.attn.bias": torch.ones(1, 1, 40, 40), "h.0.attn.masked_bias": torch.tensor(-1e4)}
    read_folder(saved("gpt2", tmp_path / "gpt2", lambda tensors: tensors.update(buffers)))  # without a warning
