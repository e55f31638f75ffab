"""Generation: the cache, the cut-offs, stop strings, texts longer than the context, and token scores."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from isoform.batch import Encoding, Example, collate
from isoform.codecs.text import ByteCodec, CharacterCodec
from isoform.generation.answers import sample
from isoform.generation.config import Sampling
from isoform.generation.constraints import Constraints
from isoform.generation.decode import Prompt, build_prompt
from isoform.generation.sampling import Sampler, distribution, penalize
from isoform.generation.scoring import score_tokens
from isoform.generation.strategy import Step
from isoform.generation.streaming import Generation, generate
from isoform.model.config import Lookup
from isoform.model.parts import Learned
from isoform.objectives.config import Causal, Prefix, Seq2seq
from isoform.objectives.views import build_view
from models import VOCAB, build, config, pair

LETTERS = CharacterCodec("abcdefghijk")  # 11 letters and two special tokens: VOCAB


def ids_of(model, prompt, sampling, mask=None):
    (texts,) = sample(model, [prompt], sampling, Constraints(), mask=mask)
    return np.stack([text.ids for text in texts])


def first_of(model, prompt, mask=None) -> int:
    return int(ids_of(model, prompt, Sampling(max_tokens=1, temperature=0), mask)[0, 0])


@pytest.mark.parametrize("stem", [Lookup(), Lookup(previous=True, ngrams=(2, 3), ngram_rows=99)], ids=["ids", "ngrams"])
@pytest.mark.parametrize("position", [Learned(), None], ids=["learned", "none"])
def test_greedy_generation_is_the_argmax_of_the_whole_text(stem, position):
    model = build(config(stem=stem, position=position))
    text = [1, 4, 2]
    (generated,) = ids_of(model, Prompt(np.array(text)), Sampling(max_tokens=9, temperature=0))
    for token in generated.tolist():
        assert token == int(model(torch.tensor([text]))[0, -1].argmax())
        text.append(token)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_arent_finite_are_refused(temperature):
    model = build(config())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1e30)
    with pytest.raises(ValueError, match="the logits have NaN or infinite values"):
        ids_of(model, Prompt(np.array([1, 4, 2])), Sampling(max_tokens=3, temperature=temperature))


def test_a_text_longer_than_the_context_continues_from_its_last_half():
    model, text = build(config()), [3, 1]
    (generated,) = ids_of(model, Prompt(np.array(text)), Sampling(max_tokens=40, temperature=0))
    window = list(text)
    for token in generated.tolist():
        assert token == int(model(torch.tensor([window]))[0, -1].argmax())
        window.append(token)
        if len(window) > 12:
            window = window[-6:]
    long_prompt = Prompt(np.arange(40) % VOCAB)
    expected = int(model(torch.as_tensor(long_prompt.ids[-6:])[None])[0, -1].argmax())
    assert first_of(model, long_prompt) == expected


def test_samples_follow_the_distribution_and_the_seed():
    model, prompt = build(config()), Prompt(np.array([5]))
    sampling = Sampling(max_tokens=1, num_samples=4000, seed=3)
    counts = np.bincount(ids_of(model, prompt, sampling)[:, 0], minlength=VOCAB) / 4000
    expected = model(torch.tensor([[5]]))[0, -1].softmax(-1).detach().numpy()
    assert np.abs(counts - expected).max() < 0.03
    again = ids_of(model, prompt, sampling)
    assert (again == ids_of(model, prompt, sampling)).all()
    assert (again != ids_of(model, prompt, Sampling(max_tokens=1, num_samples=4000, seed=4))).any()


@pytest.mark.parametrize(
    ("sampling", "retained"),
    [
        (Sampling(top_k=2), [0, 1]),
        (Sampling(top_p=0.6), [0, 1]),
        (Sampling(top_p=0.0), [0]),
        (Sampling(min_p=0.5), [0, 1]),
        (Sampling(min_p=1.0), [0]),
        (Sampling(top_k=3, top_p=0.95, min_p=0.3), [0, 1, 2]),
        (Sampling(), [0, 1, 2, 3]),
    ],
    ids=str,
)
def test_cut_offs(sampling, retained):
    probabilities = torch.tensor([[0.5, 0.3, 0.15, 0.05]])
    cut = distribution(probabilities.log(), sampling)
    expected = torch.zeros_like(probabilities)
    expected[:, retained] = probabilities[:, retained]
    torch.testing.assert_close(cut, expected / expected.sum())


def test_temperature_sharpens_and_zero_is_greedy():
    logits = torch.tensor([[1.0, 2.0, 0.5]])
    torch.testing.assert_close(distribution(logits, Sampling(temperature=0.5)), (logits * 2).softmax(-1))
    step = Sampler(Sampling(temperature=0), [0], Constraints()).advance(logits, torch.tensor([[0]]), 1)
    assert step.tokens.tolist() == [1]


def test_repetition_penalty_makes_seen_tokens_less_likely_once():
    logits = torch.tensor([[2.0, -2.0, 1.0]])
    penalized = penalize(logits, torch.tensor([[0, 1, 1]]), 2.0)
    assert penalized.tolist() == [[1.0, -4.0, 1.0]]


def written(monkeypatch, codec, tokens, stop=(), max_tokens=100):
    def scripted(model, prompts, sampler, *, mask=None):
        for token in tokens[: sampler.max_tokens]:
            yield Step(torch.tensor([token]), None, [(0, token)]), None

    monkeypatch.setattr("isoform.generation.streaming.decode_loop", scripted)
    model = SimpleNamespace(config=SimpleNamespace(vocab_size=codec.vocab_size))
    *events, end = generate(model, codec, Prompt(np.array([0])), Sampling(stop=stop, max_tokens=max_tokens))
    assert isinstance(end, Generation)
    assert "".join(text for _, text in events) == end.text
    return events, end


def test_stop_strings_end_the_text_before_them_and_never_leak(monkeypatch):
    tokens = LETTERS.encode_text("abcabdefg").tolist()
    _, end = written(monkeypatch, LETTERS, tokens, stop=("abd", "fg"))
    assert (end.text, end.reason, end.num_tokens) == ("abc", "stop", 6)
    _, end = written(monkeypatch, LETTERS, tokens, stop=("zz", "k"))
    assert (end.text, end.reason) == ("abcabdefg", "length")
    _, end = written(monkeypatch, LETTERS, LETTERS.encode_text("abab").tolist(), stop=("abc",))
    assert (end.text, end.reason) == ("abab", "length")  # the pending text is emitted at the end


def test_end_of_text_ends_and_half_characters_wait(monkeypatch):
    codec = ByteCodec()
    events, end = written(monkeypatch, codec, [*"é€".encode(), codec.end_of_text, 65])
    assert [text for _, text in events] == ["é", "€"]
    assert (end.reason, end.num_tokens) == ("end", 6)
    _, end = written(monkeypatch, codec, list("€".encode()[:2]))
    assert end.text == "\ufffd"


def test_prompts_of_the_three_forms():
    separator = LETTERS.separator
    causal, prefix, seq2seq = (build_view(objective) for objective in (Causal(), Prefix(), Seq2seq()))
    assert build_prompt(LETTERS, "", answers_source=False, view=causal).ids.tolist() == [LETTERS.end_of_text]
    assert build_prompt(LETTERS, "ab", answers_source=False, view=causal).ids.tolist() == [0, 1]
    prompt = build_prompt(LETTERS, "ab", answers_source=True, view=prefix)
    assert (prompt.ids.tolist(), prompt.prefix, prompt.source) == ([0, 1, separator], 3, None)
    prompt = build_prompt(LETTERS, "ab", answers_source=True, view=seq2seq)
    assert (prompt.ids.tolist(), prompt.source.tolist()) == ([separator], [0, 1, separator])


@pytest.mark.parametrize("objective", [Causal(), Prefix(), Seq2seq()], ids=lambda o: type(o).__name__)
def test_generation_matches_the_training_view(objective):
    """The first token generated from a source has the distribution of the view's Example."""
    view = build_view(objective)
    model = build(pair(config()) if isinstance(objective, Seq2seq) else config())
    record = LETTERS.encode({"source": "abcd", "target": "k"})
    example = view.example(record, np.random.default_rng(0))
    from isoform.objectives.task import logits_of

    batch = collate([[example]], len(example.inputs), None if example.source is None else len(example.source))
    expected = int(logits_of(model, view, batch)[0, int(example.loss_weights.argmax())].argmax())
    prompt = build_prompt(LETTERS, "abcd", answers_source=True, view=view)
    assert first_of(model, prompt, view.inputs_mask) == expected


@torch.no_grad()
def test_a_prefix_model_reads_a_prompt_in_both_directions_and_continues_it():
    view, model = build_view(Prefix()), build(config())
    causally = []
    for text in ("abcdefg", "gfedcba", "abababa", "kkkkaaa", "hijkhij"):
        prompt = build_prompt(LETTERS, text, answers_source=False, view=view)
        assert LETTERS.decode(prompt.text) == text
        tokens = collate([[Example(Encoding(prompt.ids, 7), prompt.ids, np.ones(7, np.float32))]], 7).inputs
        first = first_of(model, prompt, view.inputs_mask)
        assert first == int(model(tokens, view.inputs_mask)[0, -1].argmax())
        causally.append(first_of(model, Prompt(prompt.ids)) == first)
    assert not all(causally)
    long = build_prompt(LETTERS, "abc" * 9, answers_source=False, view=view)
    assert isinstance(first_of(model, long, view.inputs_mask), int)


@torch.no_grad()
def test_token_scores_are_the_models_probabilities():
    model, ids = build(config()), np.arange(30) % VOCAB
    steps = score_tokens(model, ids[:12])
    logits = model(torch.as_tensor(ids[None, :11]))[0].log_softmax(-1)
    for index, step in enumerate(steps[1:]):
        assert step.probability == pytest.approx(float(logits[index, ids[index + 1]].exp()), rel=1e-4)
        assert step.alternatives[0][1] == pytest.approx(float(logits[index].max().exp()), rel=1e-4)
        assert (step.rank == 1) == (step.alternatives[0][0] == step.token)
    assert steps[0].probability is None
    long = score_tokens(model, ids)
    assert [step.token for step in long] == ids.tolist()
    window = model(torch.as_tensor(ids[None, 6:18]))[0].softmax(-1)
    assert long[17].probability == pytest.approx(float(window[10, ids[17]]), rel=1e-4)


@pytest.mark.parametrize(
    "bad",
    [{"temperature": -1}, {"top_p": 1.5}, {"min_p": -0.1}, {"max_tokens": 0}, {"repetition_penalty": 0}],
)
def test_invalid_sampling_is_refused(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        Sampling(**bad)


def test_a_source_that_does_not_fit_is_refused():
    model = build(pair(config()))
    with pytest.raises(ValueError, match="context_length=12"):
        first_of(model, Prompt(np.array([1]), source=np.arange(13)))
