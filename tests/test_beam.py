"""Beam search: the results of transformers with the same weights, and of exhaustive search."""

import itertools
import json
import logging
import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from families import VOCAB, all_peers, make
from isoform.checkpoint.huggingface import read_folder
from isoform.generation.answers import beam_search, sample
from isoform.generation.config import Beam, Sampling
from isoform.generation.constraints import Constraints
from isoform.generation.decode import Prompt
from isoform.generation.sampling import distribution, penalize
from isoform.mask import Causal, Prefix
from isoform.model.config import Lookup, ModelConfig
from isoform.model.parts import Rotary
from isoform.model.transformer import Transformer
from models import build, config, pair

logging.getLogger("transformers").setLevel(logging.ERROR)
PEERS = all_peers()
EARLY = {"size": True, "bound": False, "never": "never"}
converted: dict[str, tuple] = {}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("beam")


def both(name, root):
    if name not in converted:
        theirs = make(PEERS[name], root / name)
        converted[name] = theirs, read_folder(root / name)
    return converted[name]


def texts(lengths: tuple[int, ...], seed: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(3, VOCAB, n) for n in lengths]


# With one beam transformers is greedy and ends when the most probable token is the end.
SEARCHES = [(size, penalty, early) for size, penalty in ((4, 1.0), (3, 0.0), (4, 2.0)) for early in EARLY]


@pytest.mark.parametrize(("size", "length_penalty", "early_stopping"), [*SEARCHES, (1, 1.0, "size")])
@pytest.mark.parametrize("name", ["bart", "t5", "llama3", "mistral"])
def test_results_are_those_of_transformers(name, size, length_penalty, early_stopping, root):
    theirs, ours = both(name, root)
    arguments = {
        "num_beams": size,
        "num_return_sequences": size,
        "length_penalty": length_penalty,
        "early_stopping": EARLY[early_stopping],
        "max_new_tokens": 12,
        "pad_token_id": 0,
        "do_sample": False,
        "output_scores": True,
        "return_dict_in_generate": True,
        "use_cache": name != "t5",  # theirs makes a cache of as many layers as the encoder has
    }
    if PEERS[name].form == "pair":
        sources, begin = texts((20, 7, 13), 0), theirs.config.decoder_start_token_id
        padded = torch.zeros(3, 20, dtype=torch.long)
        for row, source in zip(padded, sources, strict=True):
            row[: len(source)] = torch.from_numpy(source)
        arguments |= {
            "input_ids": padded,
            "attention_mask": (padded > 0).long(),
            "decoder_input_ids": torch.full((3, 1), begin),
        }
        prompts = [Prompt(np.array([begin]), source=source) for source in sources]
    else:  # prompts of one length: theirs may be padded on the left only
        starts = texts((6, 6, 6), 1)
        arguments["input_ids"] = torch.from_numpy(np.stack(starts))
        prompts = [Prompt(start) for start in starts]
    start = len(prompts[0].ids)
    with torch.no_grad():
        free = theirs.generate(**arguments, eos_token_id=None).sequences[:, start:]
        end = Counter(free.flatten().tolist()).most_common(3)[-1][0]  # a token at which some texts will end
        expected = theirs.generate(**arguments, eos_token_id=end)
    beam = Beam(size=size, length_penalty=length_penalty, early_stopping=early_stopping, max_tokens=12, num_best=size)
    hypotheses = [each for texts in beam_search(ours, prompts, beam, Constraints(ends=(end,))) for each in texts]
    scores = [1.0] * len(hypotheses) if size == 1 else expected.sequences_scores.tolist()
    assert len(hypotheses) == len(expected.sequences)
    for hypothesis, ids, score in zip(hypotheses, expected.sequences[:, start:].tolist(), scores, strict=True):
        ids = ids[: ids.index(end) + 1] if end in ids else ids
        assert hypothesis.ids.tolist() == ids[: len(hypothesis.ids)] and len(hypothesis.ids) in (len(ids), 12)
        assert size == 1 or hypothesis.score == pytest.approx(score, abs=1e-4)


def tiny(**more) -> Transformer:
    torch.manual_seed(3)
    config = ModelConfig(vocab_size=5, model_dim=16, context_length=12, **more)
    model = Transformer(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.5)
    return model


def log_probability(model, prompt, text, mask=None) -> float:
    ids = torch.tensor([[*prompt.ids, *text]])
    logits = model(ids[:, :-1], mask)
    each = logits.log_softmax(-1)[0].gather(1, ids[0, 1:, None])[len(prompt.ids) - 1 :]
    return float(each.sum())


@torch.no_grad()
def test_a_wide_beam_finds_the_most_probable_text():
    model, prompt, end = tiny(), Prompt(np.array([1, 2])), 0
    whole = [text for n in range(1, 5) for text in itertools.product(range(5), repeat=n)]
    ended = [t for t in whole if end not in t[:-1] and (t[-1] == end or len(t) == 4)]
    for penalty in (0.0, 1.0):
        best = sorted(ended, key=lambda t: -log_probability(model, prompt, t) / len(t) ** penalty)[:3]
        beam = Beam(size=625, length_penalty=penalty, early_stopping="never", max_tokens=4, num_best=3)
        (hypotheses,) = beam_search(model, [prompt], beam, Constraints(ends=(end,)))
        assert [tuple(one.ids) for one in hypotheses] == best
        assert hypotheses[0].log_probability == pytest.approx(log_probability(model, prompt, best[0]), abs=1e-4)


def test_batched_prompts_have_the_results_of_single_ones():
    for stem in ({}, {"kind": "lookup", "ngrams": (2, 3)}):
        model = tiny(**({"stem": type(ModelConfig().stem)(ngrams=stem["ngrams"])} if stem else {}))
        prompts = [Prompt(np.array(ids), prefix=len(ids)) for ids in ([1], [2, 3, 4, 1], [3, 1])]
        beam, mask = Beam(size=3, max_tokens=20, num_best=3), Prefix() | Causal()  # of a context of 12
        together = beam_search(model, prompts, beam, Constraints(ends=(0,)), mask=mask)
        for prompt, beside in zip(prompts, together, strict=True):
            (alone,) = beam_search(model, [prompt], beam, Constraints(ends=(0,)), mask=mask)
            assert [one.ids.tolist() for one in alone] == [one.ids.tolist() for one in beside]
            for single, batched in zip(alone, beside, strict=True):
                assert single.score == pytest.approx(batched.score, abs=1e-5)


@pytest.mark.parametrize("cross", ["separate", "joint"])
@pytest.mark.parametrize("lengths", [(3, 3, 3), (1, 5, 3)])
def test_batched_sources_have_the_results_of_single_ones(cross, lengths):
    whole = pair(config(position=Rotary()))
    assert whole.decoder is not None
    torch.manual_seed(3)
    model = Transformer(replace(whole, decoder=replace(whole.decoder, cross=cross))).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    rng, ended = np.random.default_rng(0), set()
    prompts = [Prompt(np.array([1]), source=rng.integers(2, 13, n)) for n in lengths]
    for end in range(0, 13, 2):
        for search, how in (
            (beam_search, Beam(size=3, max_tokens=11, num_best=3, early_stopping="size")),
            (sample, Sampling(num_samples=3, max_tokens=11)),
        ):
            together = search(model, prompts, how, Constraints(ends=(end,)))
            for number, beside in enumerate(together):
                numbers = {} if search is beam_search else {"numbers": [number]}
                (alone,) = search(model, [prompts[number]], how, Constraints(ends=(end,)), **numbers)
                assert [one.ids.tolist() for one in alone] == [one.ids.tolist() for one in beside]
                assert [one.score for one in alone] == pytest.approx([one.score for one in beside], abs=1e-4)
                ended.add((search, (max if search is beam_search else min)(len(one.ids) for one in beside)))
    assert all(len({n for s, n in ended if s is search}) > 1 for search in (beam_search, sample)), (
        "some end before the rest"
    )


def test_limits_are_named():
    model = tiny()
    with pytest.raises(ValueError, match="13 tokens, which don't fit context_length=12"):
        beam_search(model, [Prompt(np.ones(13, np.int64), prefix=13)], Beam(), Constraints(ends=(0,)))
    with pytest.raises(ValueError, match="num_best=5"):
        Beam(num_best=5)


def joint(**fields) -> ModelConfig:
    whole = pair(config(position=Rotary()))
    assert whole.decoder is not None
    return replace(whole, decoder=replace(whole.decoder, cross="joint", **fields))


LONG = {
    "ngrams": (config(stem=Lookup(previous=True, ngrams=(2, 3), ngram_rows=99)), (2, 7, 12, 20)),
    "separate": (pair(config(position=Rotary())), (2, 7, 12, 20)),
    "joint": (joint(), (2, 2, 2, 2)),
    "layerwise": (joint(memory_layers="layerwise"), (2, 2, 2, 2)),
}
"""Models with a context of 12, and the lengths of the prompts."""


def windows_log_probability(model, prompt: Prompt, ids: list[int]) -> float:
    """Of a text of any length, by full passes over its windows of at most 12 tokens."""
    window = prompt.ids.tolist() if len(prompt.ids) <= 12 else prompt.ids[-6:].tolist()
    source = None if prompt.source is None else torch.from_numpy(prompt.source)[None]
    total = 0.0
    for token in ids:
        total += float(model(torch.tensor([window]), source=source)[0, -1].log_softmax(-1)[token])
        window.append(token)
        window = window if len(window) <= 12 else window[-6:]
    return total


@pytest.mark.parametrize("form", LONG)
@torch.no_grad()
def test_texts_that_outgrow_the_context_continue_from_their_last_half_batched_or_alone(form):
    whole, sizes = LONG[form]
    model, rng = build(whole, seed=1), np.random.default_rng(0)
    prompts = [Prompt(rng.integers(1, 13, n)) for n in sizes]
    if form != "ngrams":
        prompts = [replace(p, source=rng.integers(1, 13, n)) for p, n in zip(prompts, (5, 1, 12, 4), strict=True)]
    lengths = set()
    for search, how in (
        (beam_search, Beam(size=3, max_tokens=25, num_best=3, early_stopping="size")),
        (sample, Sampling(num_samples=2, max_tokens=70)),
    ):
        together = search(model, prompts, how, Constraints(ends=(0,)))
        for number, beside in enumerate(together):
            numbers = {} if search is beam_search else {"numbers": [number]}
            (alone,) = search(model, [prompts[number]], how, Constraints(ends=(0,)), **numbers)
            assert [one.ids.tolist() for one in alone] == [one.ids.tolist() for one in beside]
            for hypothesis in beside:
                expected = windows_log_probability(model, prompts[number], hypothesis.ids.tolist())
                assert hypothesis.log_probability == pytest.approx(expected, abs=1e-3)
                lengths.add(len(hypothesis.ids))
    assert max(lengths) > 18 and len(lengths) > 3, "some outgrow the context, and some end before the rest"


def outspoken(seed: int = 0, **changes) -> Transformer:
    torch.manual_seed(seed)
    config = ModelConfig(model_dim=16, vocab_size=11, context_length=12, **changes)
    model = Transformer(config)
    with torch.no_grad():  # at initialisation all tokens are nearly equally probable
        for parameter in model.parameters():
            parameter.mul_(3.0)
    return model.eval()


PROMPTS = [Prompt(np.array(ids)) for ids in ([1, 2, 3], [4], [5, 6, 7, 8, 9])]


def test_samples_do_not_depend_on_the_rest_of_the_batch():
    model = outspoken()
    sampling = Sampling(max_tokens=6, num_samples=3, top_p=0.9, seed=5)
    together = sample(model, PROMPTS, sampling, Constraints(ends=(0,)))
    for number, prompt in enumerate(PROMPTS):
        (alone,) = sample(model, [prompt], sampling, Constraints(ends=(0,)), numbers=[number])
        for batched, single in zip(together[number], alone, strict=True):
            assert batched.ids.tolist() == single.ids.tolist()
            assert batched.log_probability == pytest.approx(single.log_probability, abs=1e-4)
        for hypothesis in alone:
            text = torch.from_numpy(np.concatenate([prompt.ids, hypothesis.ids]))
            log_probabilities = model(text.unsqueeze(0))[0].log_softmax(-1)[len(prompt.ids) - 1 : -1]
            total = log_probabilities.gather(1, text[len(prompt.ids) :, None]).sum().item()
            assert hypothesis.log_probability == pytest.approx(total, abs=1e-3)
            assert hypothesis.score == pytest.approx(total / len(hypothesis.ids), abs=1e-3)
            assert 0 not in hypothesis.ids[:-1] and (hypothesis.ids[-1] == 0 or len(hypothesis.ids) == 6)
    assert len({tuple(one.ids) for each in together for one in each}) > 3
    reseeded = sample(model, PROMPTS, replace(sampling, seed=6), Constraints(ends=(0,)))
    assert [one.ids.tolist() for one in reseeded[0]] != [one.ids.tolist() for one in together[0]]


def test_sampled_frequencies_match_the_probabilities():
    model, many = outspoken(), 4000
    for changes in ({}, {"top_k": 3}, {"temperature": 0.7, "min_p": 0.1}):
        sampling = Sampling(max_tokens=1, num_samples=many, **changes)
        (hypotheses,) = sample(model, PROMPTS[:1], sampling, Constraints(ends=(0,)))
        counts = np.bincount([int(one.ids[0]) for one in hypotheses], minlength=11)
        with torch.no_grad():
            probabilities = distribution(model(torch.tensor([[1, 2, 3]]))[:, -1], sampling)[0].numpy()
        assert (counts[probabilities == 0] == 0).all()
        assert (
            np.abs(counts - many * probabilities) <= 4.5 * np.sqrt(many * probabilities * (1 - probabilities)) + 1
        ).all()


@pytest.mark.parametrize("penalty", [1.0, 1.8])
def test_greedy_tokens_are_those_of_full_passes(penalty):
    model = outspoken(3)
    sampling = Sampling(max_tokens=6, temperature=0, repetition_penalty=penalty)
    for prompt, (hypothesis,) in zip(PROMPTS, sample(model, PROMPTS, sampling, Constraints(ends=(0,))), strict=True):
        text = prompt.ids.tolist()
        for token in hypothesis.ids.tolist():
            ids = torch.tensor([text])
            assert token == int(penalize(model(ids)[:, -1], ids, penalty).argmax())
            text.append(token)


def test_a_file_of_sources_is_answered_line_by_line(tmp_path, capsys):
    from isoform.cli import main

    recipe = ["--training.steps", "60", "--training.sample_tokens", "3", "--training.validate_every", "0"]
    small = ["--model.model_dim", "32", "--training.global_batch_tokens", "416"]
    assert main(["train", "reverse-seq2seq", "--out", str(tmp_path / "run"), "--no_report", *recipe, *small]) == 0
    words = ["abc", "transformer", "no", "attention"]
    (tmp_path / "in.txt").write_text("\n".join(words) + "\n")
    ask = ["generate", str(tmp_path / "run"), "--path", str(tmp_path / "in.txt"), "--max_tokens", "14"]
    capsys.readouterr()
    assert main([*ask, "--beams", "3", "--out", str(tmp_path / "out.txt")]) == 0
    together = (tmp_path / "out.txt").read_text().splitlines()
    capsys.readouterr()
    for word, answered in zip(words, together, strict=True):
        assert main(["generate", str(tmp_path / "run"), "--prompt", word, "--beams", "3", "--max_tokens", "14"]) == 0
        assert capsys.readouterr().out.rstrip("\n") == answered
    assert main([*ask, "--temperature", "0", "--json"]) == 0
    greedy = json.loads(capsys.readouterr().out)["answers"]
    for word, (answered,) in zip(words, greedy, strict=True):
        arguments = ["generate", str(tmp_path / "run"), "--prompt", word, "--temperature", "0", "--max_tokens", "14"]
        assert main(arguments) == 0 and capsys.readouterr().out.rstrip("\n") == answered["text"]
    assert main([*ask, "--seed", "3", "--json"]) == 0
    first = json.loads(capsys.readouterr().out)["answers"][0][0]["text"]
    arguments = ["generate", str(tmp_path / "run"), "--prompt", words[0], "--seed", "3", "--max_tokens", "14"]
    assert main(arguments) == 0 and capsys.readouterr().out.rstrip("\n") == first
    assert main([*ask, "--num_samples", "2", "--out", str(tmp_path / "out.txt")]) == 0
    lines = [line.split("\t") for line in (tmp_path / "out.txt").read_text().splitlines()]
    assert [number for number, _, _ in lines] == ["1", "1", "2", "2", "3", "3", "4", "4"]
    assert all(float(score) < 0 for _, score, _ in lines)
    (tmp_path / "in.txt").write_text("abc\n\nd\n")
    assert main(ask) == 65 and "line 2 is empty" in capsys.readouterr().err
    (tmp_path / "in.txt").write_text("abc\n" + "d" * 200 + "\n")
    assert main(ask) == 65 and "text 2 has" in capsys.readouterr().err
    (tmp_path / "in.txt").write_text("abc\nA-Ö\n")
    assert main(ask) == 65 and "in.txt: text 2: the character 'A'" in capsys.readouterr().err
    assert main([*ask, "--out", str(tmp_path)]) == 65 and "is a folder; name a file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--beams", "2", "--stop", "a"], "stop has no effect with beams"),
        (["--beams", "2", "--temperature", "0.5"], "temperature has no effect with beams"),
        (["--beams", "2", "--probabilities"], "probabilities has no effect with beams"),
        (["--path", "in.txt", "--prompt", "a"], "prompt has no effect with path"),
        (["--path", "in.txt", "--attention", "a.png"], "attention has no effect with path"),
        (["--out", "out.txt"], "out='out.txt' is for the output of path"),
        (["--beams", "2", "--num_samples", "3"], "num_samples=3 must be at most beams=2"),
    ],
)
def test_a_flag_without_an_effect_is_refused(flags, message, capsys):
    from isoform.cli import main

    assert main(["generate", "run", *flags]) == 65 and message in capsys.readouterr().err


@pytest.mark.parametrize("penalty", [-5.0, 5.0])
def test_any_length_penalty_returns_a_text_of_any_length(penalty):
    beam = Beam(size=2, max_tokens=300, length_penalty=penalty)
    ((best,),) = beam_search(tiny(), [Prompt(np.array([1]))], beam, Constraints())
    assert len(best.ids) == 300 and math.isfinite(best.score)
