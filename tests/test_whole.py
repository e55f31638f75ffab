"""Text in, text out: a folder means to isoform what it means to transformers, for every model_type."""

import itertools
import json
import random
import shutil
import warnings
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as peers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

import isoform
from families import Peer, all_peers
from isoform.checkpoint.families.registry import FAMILIES
from isoform.codecs.codec import TextCodec
from isoform.codecs.config import BPE, Bytes, Characters
from isoform.codecs.origin import STARTS
from isoform.codecs.registry import load_codec
from isoform.data.config import Data
from isoform.evaluation.evaluate import evaluate_records
from isoform.generation.answers import answer, beam_search, sample
from isoform.generation.config import Beam, Sampling
from isoform.generation.constraints import Constraints, constraints_of
from isoform.generation.decode import Prompt, build_prompt
from isoform.generation.sampling import distribution, penalize
from isoform.generation.streaming import generate
from isoform.machine import choose_machine
from isoform.model.config import StackConfig
from isoform.model.presets import PRESETS
from isoform.objectives.config import Causal, Seq2seq
from isoform.training.config import Training

CPU = choose_machine("cpu", "float32")

TEXTS = [
    "The quick brown fox jumps over the lazy dog. Don't you think that's it's?",
    "A naïve café, twice: 12 times 12 is 144!\n\nWhat's new, pussycat?",
    "def f(x):\n\treturn x  # 日本語のテキスト",
] * 20
PROMPTS = ["the fox", "A naïve café", "What's new", "x  y"]


AROUND = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "<mask>": 4}
"""RoBERTa's special tokens."""


def bytes_tokenizer(begin: str | None = None, *, around: bool = False) -> Tokenizer:
    """Byte pairs over bytes, as GPT-2's; with a beginning, as Llama 3's; with tokens around a text, as RoBERTa's."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    special = list(AROUND) if around else ["<|endoftext|>", "<|begin|>", "<|turn|>", "<pad>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=330, special_tokens=special, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(TEXTS, trainer)
    if begin:
        template = processors.TemplateProcessing(single=f"{begin} $A", special_tokens=[(begin, 1)])
        tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), template])
    if around:
        tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    return tokenizer


def vocabulary(tokenizer: Tokenizer) -> dict:
    """The vocabulary and merges of a tokenizer, as their classes take them."""
    model = json.loads(tokenizer.to_str())["model"]
    if isinstance(model["vocab"], list):
        return {"vocab": [tuple(entry) for entry in model["vocab"]]}
    return {"vocab": model["vocab"]} | ({"merges": [tuple(m) for m in model["merges"]]} if "merges" in model else {})


def qwen_tokenizer() -> Tokenizer:
    """Byte pairs as Qwen2's, whose class transformers takes whatever a folder names."""
    plain = peers.Qwen2Tokenizer(**vocabulary(bytes_tokenizer())).backend_tokenizer
    form = json.loads(plain.to_str())
    form["added_tokens"] = json.loads(bytes_tokenizer().to_str())["added_tokens"]
    return Tokenizer.from_str(json.dumps(form))


def marked_tokenizer(begin: bool = True) -> Tokenizer:
    """Byte pairs with marked spaces and byte fallback, as Llama 2's and Gemma's."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = ["<unk>", "<s>", "</s>", "<pad>"]
    letters = [f"<0x{b:02X}>" for b in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=360, special_tokens=special + letters, show_progress=False)
    tokenizer.train_from_iterator(TEXTS, trainer)
    form = json.loads(tokenizer.to_str())
    form["added_tokens"] = [token for token in form["added_tokens"] if not token["content"].startswith("<0x")]
    tokenizer = Tokenizer.from_str(json.dumps(form))
    if begin:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer


def unigram_tokenizer(begin: bool = False) -> Tokenizer:
    """Unigram, as T5's and Marian's; with a beginning, as XLM-R's and mBART's."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace("  ", " ")])
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    special = ["<pad>", "<s>", "</s>", "<unk>", "<extra_id_0>"]
    trainer = trainers.UnigramTrainer(vocab_size=110, special_tokens=special, unk_token="<unk>")
    tokenizer.train_from_iterator(TEXTS, trainer)
    single = "<s> $A </s>" if begin else "$A </s>"
    tokenizer.post_processor = processors.TemplateProcessing(
        single=single, special_tokens=[("<s>", 1), ("</s>", 2)][not begin :]
    )
    return tokenizer


def wordpiece_tokenizer() -> Tokenizer:
    """WordPiece, as BERT's."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer.train_from_iterator(TEXTS, trainers.WordPieceTrainer(vocab_size=140, special_tokens=special))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return tokenizer


BYTES = {"eos_token": "<|endoftext|>", "pad_token": "<pad>"}
MARKED = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
WORDS = {"cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]", "pad_token": "[PAD]"}
TOKENIZERS = {
    "gpt2": (bytes_tokenizer, BYTES),
    "qwen2": (qwen_tokenizer, BYTES),
    "phi3": (marked_tokenizer, MARKED | {"add_bos_token": False}),
    "stablelm": (bytes_tokenizer, BYTES),
    "smollm3": (lambda: bytes_tokenizer("<|begin|>"), BYTES | {"bos_token": "<|begin|>"}),
    "starcoder2": (bytes_tokenizer, BYTES),
    "gemma": (marked_tokenizer, MARKED),
    "granite": (bytes_tokenizer, BYTES),
    "gemma2": (marked_tokenizer, MARKED),
    "olmo": (bytes_tokenizer, BYTES),
    "gpt_neox": (bytes_tokenizer, BYTES),
    "gptj": (bytes_tokenizer, BYTES),
    "phi": (bytes_tokenizer, BYTES),
    "cohere": (bytes_tokenizer, BYTES),
    "opt": (bytes_tokenizer, BYTES),
    "bloom": (bytes_tokenizer, BYTES),
    "llama2": (marked_tokenizer, MARKED),
    "llama3": (lambda: bytes_tokenizer("<|begin|>"), BYTES | {"bos_token": "<|begin|>"}),
    "mistral": (lambda: marked_tokenizer(begin=False), MARKED | {"add_bos_token": False}),
    "qwen3": (bytes_tokenizer, BYTES | {"extra_special_tokens": ["<|turn|>"]}),
    "gemma3": (marked_tokenizer, MARKED),
    "olmo2": (bytes_tokenizer, BYTES | {"split_special_tokens": True}),
    "mixtral": (marked_tokenizer, MARKED),
    "qwen3-moe": (bytes_tokenizer, BYTES),
    "bert": (wordpiece_tokenizer, WORDS | {"clean_up_tokenization_spaces": True}),
    "roberta": (lambda: bytes_tokenizer(around=True), MARKED | {"mask_token": "<mask>"}),
    "distilbert": (wordpiece_tokenizer, WORDS),
    "electra": (wordpiece_tokenizer, WORDS),
    "modernbert": (bytes_tokenizer, BYTES),
    "t5": (unigram_tokenizer, MARKED | {"bos_token": None}),
    "mt5": (unigram_tokenizer, MARKED | {"bos_token": None}),
    "mbart": (lambda: unigram_tokenizer(begin=True), MARKED),
    "bart": (lambda: unigram_tokenizer(begin=True), MARKED),
    "marian": (unigram_tokenizer, MARKED | {"bos_token": None}),
    "whisper": (bytes_tokenizer, BYTES),
}
PAIRS = ("t5", "mt5", "mbart", "bart", "marian")
ENCODERS = ("bert", "roberta", "distilbert", "electra", "modernbert")
GENERATING = [name for name in TOKENIZERS if name not in (*ENCODERS, "whisper")]
SETTINGS = {
    "gpt2": {"suppress_tokens": [70, 71], "begin_suppress_tokens": [80, 90, 100]},
    "qwen3": {"eos_token_id": [2, 0, 120], "bad_words_ids": [[60], [100, 101], [110]]},
    "llama3": {"eos_token_id": [0, 2]},
    "t5": {"decoder_start_token_id": 0},
    "mt5": {"decoder_start_token_id": 0},
    "mbart": {"decoder_start_token_id": 2, "forced_bos_token_id": 4, "forced_eos_token_id": 2},
    "bart": {"decoder_start_token_id": 2, "forced_bos_token_id": 1, "forced_eos_token_id": 2},
    "marian": {"decoder_start_token_id": 0, "forced_eos_token_id": 2, "bad_words_ids": [[0]]},
}
"""Of generation_config.json, besides the ids of the tokenizer."""
PRINTABLE = ("llama2", "gemma3", "qwen3")
"""Models that may choose letters only."""


def odd_strings() -> list[str]:
    """200 texts: of all scripts, spaces, controls, special tokens, long ones, and none at all."""
    rng = random.Random(7)
    names = ["<s>", "</s>", "<pad>", "<unk>", "<|endoftext|>", "<|turn|>", "[MASK]", "<extra_id_0>", "<0x0A>", "▁"]
    parts = [
        *(" ", "  ", "\n", "\r\n", "\t", "\u00a0", "\u3000", "\u200b", "\ufeff", "\x00", "\x1b", "\u2028", "\x7f"),
        *("the", "Fox", "don't", "n't", " 's", ".", " .", "?!", "12", "1,000.5", "e\u0301", "é", "ﬁ", "ß", "İ", "Ǆ"),
        *(
            "日本",
            "한국어",
            "العربية",
            "हिन्दी",
            "👩‍👩‍👧",
            "🏳️‍🌈",
            "𝔘",
            "\u202e",
            "a" * 40,
            "ab " * 9,
            "_",
            "\\n",
            "##ing",
        ),
        *names,
    ]
    odd = ["", *parts, *names]
    return odd + ["".join(rng.choices(parts, k=rng.randint(2, 9))) for _ in range(200 - len(odd))]


@cache
def tokenizer_of(name: str) -> peers.PreTrainedTokenizerFast:
    build, names = TOKENIZERS[name]
    return peers.PreTrainedTokenizerFast(tokenizer_object=build(), **names)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("folders")


def folder_of(name: str, root: Path) -> Path:
    """The folder of a random model with its tokenizer, as transformers saves it."""
    folder = root / name.replace(" ", "-")
    if folder.exists():
        return folder
    tokenizer, peer = tokenizer_of(name), peer_of(name)
    config = peer.config
    config.vocab_size = len(tokenizer)
    if name == "marian":
        config.decoder_vocab_size = len(tokenizer)
    for key in ("bos", "eos", "pad"):
        setattr(config, f"{key}_token_id", getattr(tokenizer, f"{key}_token_id"))
    if name in PAIRS:
        config.decoder_start_token_id = SETTINGS[name]["decoder_start_token_id"]
    torch.manual_seed(3)
    model = peer.model(config)
    for parameter in model.parameters():  # random enough for texts that vary
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    if name in PRINTABLE:
        texts = [tokenizer.decode([i]) for i in range(len(tokenizer))]
        model.generation_config.suppress_tokens = [
            i for i, t in enumerate(texts) if not (t.isprintable() and t.isascii() and t)
        ]
    for key, value in SETTINGS.get(name, {}).items():
        setattr(model.generation_config, key, value)
    model.tie_weights()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def peer_of(name: str) -> Peer:
    every = all_peers()
    if name in ("t5", "mt5"):
        every[name].config.num_layers = 3  # their cache has as many layers as the encoder
    return every[name]


def load(name: str, root: Path):
    folder = folder_of(name, root)
    theirs = peer_of(name).model.from_pretrained(folder).eval()
    return isoform.load(folder), theirs, peers.AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_ids_and_texts_are_those_of_transformers(name, root):
    trained, _, tokenizer = load(name, root)
    codec = trained.codec
    assert isinstance(codec, TextCodec) and type(codec).__name__ != "NumberCodec"
    for text in odd_strings():
        expected = tokenizer(text).input_ids
        assert codec.encode_whole(text).tolist() == expected, text
        assert codec.decode(expected) == tokenizer.decode(expected, skip_special_tokens=True), text
        stream = codec.stream_decoder()
        streamed = "".join([*map(stream.push, expected), stream.flush()])
        assert streamed == codec.decode(expected), text


@pytest.mark.parametrize("name", GENERATING)
def test_greedy_and_beam_texts_are_those_of_transformers(name, root):
    trained, theirs, tokenizer = load(name, root)
    model, codec, view = trained.transformer, trained.codec, trained.view
    constraints = constraints_of(codec, model.config.vocab_size)
    for text in PROMPTS:
        prompt = build_prompt(codec, text, answers_source=trained.answers_source, view=view)
        inputs = tokenizer(text, return_tensors="pt")
        start = [] if name in PAIRS else inputs.input_ids[0].tolist()
        before = tokenizer.decode(start, skip_special_tokens=True)
        for beams in (1, 3):
            out = theirs.generate(
                input_ids=inputs.input_ids, max_new_tokens=10, num_beams=beams, do_sample=False, early_stopping=False
            )
            if beams == 1:
                *events, end = generate(model, codec, prompt, Sampling(max_tokens=10, temperature=0))
                got, streamed = end.text, "".join(part for _, part in events)
                assert streamed == got
            else:
                ((best,),) = beam_search(model, [prompt], Beam(size=beams, max_tokens=10), constraints)
                got = codec.decode(best.ids, prompt=prompt.text)
            assert before + got == tokenizer.decode(out[0], skip_special_tokens=True), (text, beams)


@pytest.mark.parametrize("name", GENERATING)
def test_an_answer_does_not_depend_on_its_neighbours(name, root):
    trained, _, _ = load(name, root)
    settings = {"view": trained.view, "answers_source": trained.answers_source}
    texts = [*PROMPTS, "the quick brown fox jumps"]
    for decoding in (Beam(size=2, max_tokens=45), Sampling(max_tokens=45, temperature=0)):
        together = answer(trained.transformer, trained.codec, texts, decoding, **settings)
        for text, each in zip(texts, together, strict=True):
            ((alone, _),) = answer(trained.transformer, trained.codec, [text], decoding, **settings)[0]
            assert each[0][0] == alone


@pytest.mark.parametrize("name", ["llama2", "qwen3", "t5"])
def test_a_stop_ends_the_text_before_it(name, root):
    trained, theirs, tokenizer = load(name, root)
    model, codec, view = trained.transformer, trained.codec, trained.view
    prompt = build_prompt(codec, PROMPTS[0], answers_source=trained.answers_source, view=view)
    *_, plain = generate(model, codec, prompt, Sampling(max_tokens=12, temperature=0))
    stop = plain.text[4:6]
    *_, end = generate(model, codec, prompt, Sampling(max_tokens=12, temperature=0, stop=(stop,)))
    assert end.reason == "stop" and end.text == plain.text[: plain.text.index(stop)]
    inputs = tokenizer(PROMPTS[0], return_tensors="pt").input_ids
    out = theirs.generate(inputs, max_new_tokens=12, do_sample=False, stop_strings=[stop], tokenizer=tokenizer)
    new = out[0] if name in PAIRS else out[0, inputs.shape[1] :]
    assert end.num_tokens == len(new) - (name in PAIRS)


@pytest.mark.parametrize("name", ["llama2", "gemma3", "t5"])
def test_the_stop_string_that_is_complete_first_ends_a_text_in_streams_and_in_files(name, root):
    """Also one that the decoder holds back till the end, as it does bytes, which may yet become another character."""
    trained, _, _ = load(name, root)
    model, codec, has_source = trained.transformer, trained.codec, trained.answers_source
    dice, num_tried = random.Random(2), 0
    for text, seed in itertools.product(PROMPTS, range(3)):
        sampling = Sampling(max_tokens=9, seed=seed)
        prompt = build_prompt(codec, text, answers_source=has_source, view=trained.view)
        *_, plain = generate(model, codec, prompt, sampling)
        if len(plain.text) < 4 or num_tried > 3:
            continue
        num_tried += 1
        starts = [dice.randrange(len(plain.text)) for _ in range(8)]
        for first, second in itertools.pairwise(starts):
            stop = (plain.text[first : first + 1], plain.text[second : second + 3], "absent")
            ends = {string: plain.text.find(string) + len(string) for string in stop[:2]}
            best = min(ends, key=lambda string: (ends[string], -len(string)))
            *events, end = generate(model, codec, prompt, replace(sampling, stop=stop))
            expected = plain.text[: ends[best] - len(best)]
            assert end.text == "".join(part for _, part in events) == expected and end.reason == "stop"
            (((answered, _),),) = answer(
                model, codec, [text], replace(sampling, stop=stop), view=trained.view, answers_source=has_source
            )
            assert answered == expected
    assert num_tried > 3


def test_a_special_token_stops_a_text_and_an_unclear_stop_is_refused(root):
    trained, _, _ = load("gpt2", root)
    model, codec, view = trained.transformer, trained.codec, trained.view
    prompt = build_prompt(codec, PROMPTS[0], answers_source=False, view=view)
    ((plain,),) = sample(model, [prompt], Sampling(max_tokens=12, temperature=0), Constraints())
    codec.special[int(plain.ids[4])] = "<|fifth|>"
    *_, end = generate(model, codec, prompt, Sampling(max_tokens=12, temperature=0, stop=("<|fifth|>",)))
    assert end.reason == "stop" and end.num_tokens <= 5
    with pytest.raises(ValueError, match=r"holds the special token <\|turn\|> and more"):
        next(generate(model, codec, prompt, Sampling(stop=("<|turn|>\n",))))
    with pytest.raises(ValueError, match="would end every text at once"):
        Sampling(stop=("a", ""))


EVERY = [*range(4, 60)]
CHANGED_SETTINGS = [
    ("llama3", {"eos_token_id": [2, 5000, -1], "suppress_tokens": [-1], "begin_suppress_tokens": [4000]}),
    ("llama3", {"forced_bos_token_id": 70}),
    ("bart", {"forced_bos_token_id": [10, 11], "forced_eos_token_id": [12, 13]}),
    ("bart", {"forced_bos_token_id": 10, "begin_suppress_tokens": EVERY, "bad_words_ids": [[10], [30, 31]]}),
    ("t5", {"begin_suppress_tokens": EVERY, "forced_eos_token_id": 9, "bad_words_ids": [[9]]}),
    ("t5", {"decoder_start_token_id": [5], "suppress_tokens": [8, 52]}),
]


@pytest.mark.parametrize(("name", "settings"), CHANGED_SETTINGS, ids=str)
@pytest.mark.filterwarnings("ignore:.*the model has no token")
def test_odd_settings_mean_what_they_mean_to_transformers(name, settings, root, tmp_path):
    folder = shutil.copytree(folder_of(name, root), tmp_path / "changed")
    file = folder / "generation_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings), encoding="utf-8")
    trained, theirs = isoform.load(folder), peer_of(name).model.from_pretrained(folder).eval()
    model, codec = trained.transformer, trained.codec
    constraints = constraints_of(codec, model.config.vocab_size)
    for text in ("a", *PROMPTS[:2]):
        prompt = build_prompt(codec, text, answers_source=trained.answers_source, view=trained.view)
        ids = torch.tensor([codec.encode_whole(text).tolist()])
        for beams in (1, 3):
            more = {"num_beams": beams, "do_sample": False, "early_stopping": False}
            out = theirs.generate(ids, max_new_tokens=8, **more)[0, len(prompt.ids) :]
            how = Sampling(max_tokens=8, temperature=0) if beams == 1 else Beam(size=beams, max_tokens=8)
            ((best,),) = (sample if beams == 1 else beam_search)(model, [prompt], how, constraints)
            assert best.ids.tolist() == out.tolist(), (text, beams)


def test_settings_that_leave_nothing_to_choose_are_refused(root, tmp_path):
    folder = shutil.copytree(folder_of("bart", root), tmp_path / "changed")
    file = folder / "generation_config.json"
    settings = json.loads(file.read_text())
    for changed, message in (
        ({"suppress_tokens": [1], "forced_bos_token_id": 1}, "forces the token 1 and suppresses it"),
        (
            {"suppress_tokens": [*range(200)], "forced_bos_token_id": None, "forced_eos_token_id": None},
            "suppresses all",
        ),
        ({"eos_token_id": [2.5]}, "eos_token_id has .*, which aren't ids"),
        ({"bad_words_ids": [3]}, "bad_words_ids has .*, which aren't ids"),
        ({"decoder_start_token_id": 500}, "decoder_start_token_id=500, and the model's table has"),
    ):
        file.write_text(json.dumps(settings | changed), encoding="utf-8")
        with warnings.catch_warnings(), pytest.raises(ValueError, match=message):
            warnings.filterwarnings("ignore", ".*the model has no token")
            trained = isoform.load(folder)
            constraints_of(trained.codec, trained.transformer.config.vocab_size)


def test_what_precedes_a_shorter_text_of_a_batch_is_no_part_of_it(root):
    """A banned sequence may not match the padding of a text, nor its length be that of the longest."""
    trained, _, _ = load("llama3", root)
    model, a = trained.transformer, 70
    prompts = [Prompt(np.array([a])), Prompt(np.arange(60, 66))]
    every = range(model.config.vocab_size)
    banned = Constraints(sequences=tuple((a, a, i) for i in every if i % 2), first=(100,))
    together = sample(model, prompts, Sampling(max_tokens=4, temperature=0), banned)
    for prompt, ((text,)) in zip(prompts, together, strict=True):
        ((alone,),) = sample(model, [prompt], Sampling(max_tokens=4, temperature=0), banned)
        assert text.ids.tolist() == alone.ids.tolist()
    assert [text.ids[0] == 100 for (text,) in together] == [True, False]


SAMPLINGS = [
    Sampling(temperature=0.7),
    Sampling(top_k=7),
    Sampling(top_p=0.6),
    Sampling(min_p=0.05, temperature=1.7),
    Sampling(repetition_penalty=1.3, temperature=0.9, top_k=40, top_p=0.8, min_p=0.02),
    Sampling(temperature=1e-4, top_p=1e-4),
]


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
@pytest.mark.parametrize("name", ["qwen3", "bart"])
def test_the_distribution_at_each_step_is_that_of_transformers(name, sampling, root):
    trained, theirs, tokenizer = load(name, root)
    codec, model = trained.codec, trained.transformer
    constraints = constraints_of(codec, model.config.vocab_size)
    inputs = tokenizer(PROMPTS[1], return_tensors="pt").input_ids
    out = theirs.generate(
        inputs,
        do_sample=True,
        max_new_tokens=12,
        output_scores=True,
        output_logits=True,
        return_dict_in_generate=True,
        **{key: getattr(sampling, key) for key in ("temperature", "top_p", "min_p", "repetition_penalty")},
        top_k=sampling.top_k,
    )
    start = out.sequences.shape[1] - len(out.logits)
    for step, (logits, scores) in enumerate(zip(out.logits, out.scores, strict=True), 1):
        texts = out.sequences[:, : start + step - 1]
        if sampling.repetition_penalty != 1:
            logits = penalize(logits, texts, sampling.repetition_penalty)
        ours = distribution(constraints.apply(logits, texts, step, 12), replace(sampling, seed=1))
        assert (ours - scores.softmax(-1)).abs().max() <= 1e-5


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_converted_folder_keeps_its_texts_ids_and_settings(name, root, tmp_path):
    source = folder_of(name, root)
    (source / "chat_template.jinja").write_text("{{ messages[0].content }}", encoding="utf-8")
    isoform.export(isoform.load(source), tmp_path / "out")
    before, after = (peers.AutoTokenizer.from_pretrained(folder) for folder in (source, tmp_path / "out"))
    for text in odd_strings()[::5]:
        assert after(text).input_ids == before(text).input_ids
    assert after.chat_template == before.chat_template and after.special_tokens_map == before.special_tokens_map
    generates = [peers.GenerationConfig.from_pretrained] if (source / "generation_config.json").exists() else []
    for load_config in (*generates, peers.AutoConfig.from_pretrained):
        fields = [load_config(folder).to_dict() for folder in (source, tmp_path / "out")]
        for key in fields[0]:
            if "token" in key or key in ("suppress_tokens", "bad_words_ids"):
                assert fields[0][key] == fields[1][key], key
    assert {(path.stat().st_mode & 0o777) for path in (tmp_path / "out").iterdir()} == {0o644}


def test_rows_without_a_token_are_never_chosen(root, tmp_path):
    tokenizer = tokenizer_of("gpt2")
    config = peer_of("gpt2").config
    config.vocab_size, config.eos_token_id = len(tokenizer) + 60, tokenizer.eos_token_id
    torch.manual_seed(5)
    peers.GPT2LMHeadModel(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    trained = isoform.load(tmp_path)
    prompt = build_prompt(trained.codec, "a", answers_source=False, view=trained.view)
    constraints = constraints_of(trained.codec, config.vocab_size)
    ((free,),) = sample(trained.transformer, [prompt], Sampling(max_tokens=300, temperature=2.0), Constraints())
    assert max(free.ids) >= len(tokenizer)
    ((text,),) = sample(trained.transformer, [prompt], Sampling(max_tokens=300, temperature=2.0), constraints)
    assert max(text.ids) < len(tokenizer) and np.unique(text.ids).size > 50
    ((found,),) = beam_search(trained.transformer, [prompt], Beam(size=3, max_tokens=20), constraints)
    assert max(found.ids) < len(tokenizer)


@pytest.mark.parametrize("name", PAIRS)
def test_the_loss_of_a_pair_is_that_of_transformers(name, root):
    trained, theirs, tokenizer = load(name, root)
    record = {"source": "the lazy dog", "target": "What's new?"}
    expected = theirs(
        input_ids=tokenizer(record["source"], return_tensors="pt").input_ids,
        labels=tokenizer(text_target=record["target"], return_tensors="pt").input_ids,
    ).loss
    score = evaluate_records(trained.model, trained.recipe, trained.codec, [record], CPU)
    assert score.loss == pytest.approx(float(expected.detach()), rel=1e-5)


def small(stack: StackConfig | None) -> StackConfig | None:
    """Two small layers of a stack of a preset."""
    if stack is None:
        return None
    block = stack.blocks[0]
    mixer = replace(block.mixer, num_heads=4, num_kv_heads=None, head_dim=None)
    return replace(
        stack,
        num_layers=2,
        blocks=(replace(block, mixer=mixer, feedforward=replace(block.feedforward, feedforward_dim=40)),),
    )


@pytest.mark.parametrize("codec", ["bytes", "characters", "bpe"])
@pytest.mark.parametrize("form", ["decoder", "encoder_decoder"])
def test_a_trained_model_writes_the_same_texts_in_transformers(form, codec, tmp_path):
    """Its tokenizer, too, whatever kind it is, and what it puts around texts."""
    pairs = "".join(json.dumps({"source": w, "target": w[::-1]}) + "\n" for w in ("tac", "god", "bird", "fish") * 20)
    (tmp_path / "pairs.jsonl").write_text(pairs)
    (tmp_path / "plain.txt").write_text("the cat sat on the mat and the dog sat on the cat\n" * 40)
    has_source = form == "encoder_decoder"
    preset = PRESETS["bart" if has_source else "llama2"].model
    recipe = isoform.Recipe(
        data=Data(path=str(tmp_path / ("pairs.jsonl" if has_source else "plain.txt")), rows="packed"),
        codec={"bytes": Bytes(), "characters": Characters(), "bpe": BPE(vocab_size=262)}[codec],
        objective=Seq2seq() if has_source else Causal(),
        model=replace(
            preset,
            model_dim=32,
            context_length=24,
            vocab_size=0,
            encoder=small(preset.encoder),
            decoder=small(preset.decoder),
        ),
        training=Training(steps=60, global_batch_tokens=192, validate_every=0, checkpoint_every=0, sample_every=0),
    )
    run = isoform.train(recipe, tmp_path / "run", machine=CPU)
    trained = isoform.load(run.folder)
    isoform.export(trained, tmp_path / "out")
    tokenizer = peers.AutoTokenizer.from_pretrained(tmp_path / "out")
    auto = peers.AutoModelForSeq2SeqLM if has_source else peers.AutoModelForCausalLM
    theirs = auto.from_pretrained(tmp_path / "out").eval()
    texts = ["tac", "bird"] if has_source else ["the cat", "sat"]
    for text in texts:
        prompt = build_prompt(trained.codec, text, answers_source=trained.answers_source, view=trained.view)
        *_, end = generate(trained.transformer, trained.codec, prompt, Sampling(max_tokens=8, temperature=0))
        ids = tokenizer(text, return_tensors="pt").input_ids
        out = theirs.generate(ids, max_new_tokens=8, do_sample=False)
        assert tokenizer.decode(out[0], skip_special_tokens=True) == ("" if has_source else text) + end.text
        assert isoform.load(tmp_path / "out").codec.encode_whole(text).tolist() == ids[0].tolist()


NAMED = {"<s>": 330, "</s>": 331, "<mask>": 332, "<unk>": 333}
CLASSES = {
    "LlamaTokenizer": lambda: peers.LlamaTokenizer(**vocabulary(marked_tokenizer()), add_bos_token=True),
    "GemmaTokenizer": lambda: peers.GemmaTokenizer(**vocabulary(marked_tokenizer()), bos_token="<s>", eos_token="</s>"),
    "Qwen2Tokenizer": lambda: peers.Qwen2Tokenizer(**vocabulary(bytes_tokenizer())),
    "GPT2Tokenizer": lambda: peers.GPT2Tokenizer(**vocabulary(bytes_tokenizer())),
    "WhisperTokenizer": lambda: peers.WhisperTokenizer(**vocabulary(bytes_tokenizer())),
    "RobertaTokenizer": lambda: peers.RobertaTokenizer(
        merges=vocabulary(bytes_tokenizer())["merges"], vocab=vocabulary(bytes_tokenizer())["vocab"] | NAMED
    ),
    "T5Tokenizer": lambda: peers.T5Tokenizer(**vocabulary(unigram_tokenizer()), extra_ids=0),
    "XLMRobertaTokenizer": lambda: peers.XLMRobertaTokenizer(**vocabulary(unigram_tokenizer())),
    "BertTokenizer": lambda: peers.BertTokenizer(**vocabulary(wordpiece_tokenizer()), do_lower_case=False),
}


@pytest.mark.parametrize("name", CLASSES)
def test_tokenizers_of_their_classes_have_the_same_ids_and_texts(name, tmp_path):
    CLASSES[name]().save_pretrained(tmp_path)
    theirs, codec = peers.AutoTokenizer.from_pretrained(tmp_path), load_codec(tmp_path)
    assert type(theirs).__name__ == name
    for text in odd_strings():
        expected = theirs(text).input_ids
        assert codec.encode_whole(text).tolist() == expected, text
        assert codec.decode(expected) == theirs.decode(expected, skip_special_tokens=True), text


def test_the_start_that_an_absent_field_means_is_that_of_their_class():
    for model_type in {family.model_type for family in FAMILIES}:
        config = peers.AutoConfig.for_model(model_type)
        if config.is_encoder_decoder:
            assert STARTS[model_type] == getattr(config, "decoder_start_token_id", None), model_type
        assert config.is_encoder_decoder == (model_type in STARTS)
