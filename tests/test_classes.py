"""Tokenizers that transformers builds by a class, beside a tokenizer.json that says otherwise."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import transformers as peers
from tokenizers import Tokenizer
from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING_NAMES, tokenizer_class_from_name

import isoform
from isoform.checkpoint.families.registry import FAMILIES
from isoform.checkpoint.special_ids import special_ids
from isoform.codecs.classes import ALIASES, CLASSES, LANGUAGES, OF_MODELS, OTHERS, PLAIN
from isoform.codecs.codec import TextCodec
from isoform.codecs.config import Bytes
from isoform.codecs.registry import build_codec, load_codec, read_tokenizer
from test_whole import bytes_tokenizer, marked_tokenizer, odd_strings, unigram_tokenizer, wordpiece_tokenizer
from test_whole import folder_of as model_folder

DIFFERS = "says otherwise than"
TEXTS = [*odd_strings(), " ", "the <mask>, <extra_id_3> and <|startoftranscript|> of en_XX"]


def by_bytes() -> Tokenizer:
    """Of a class that lowercases nothing, puts nothing around a text, and has a pattern of its own."""
    tokenizer = bytes_tokenizer("<|begin|>")
    form = json.loads(tokenizer.to_str())
    split = {"type": "Split", "pattern": {"Regex": "\\d|\\s+|[^\\s\\d]+"}, "behavior": "Isolated", "invert": False}
    level = {**form["pre_tokenizer"], "use_regex": False}
    form["normalizer"] = {"type": "Lowercase"}
    form["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split, level]}
    return Tokenizer.from_str(json.dumps(form))


def by_scores() -> Tokenizer:
    """With MBart's languages in its vocabulary, and without its special tokens around a text."""
    form = json.loads(unigram_tokenizer().to_str())
    form["model"]["vocab"] += [[name, -9.0] for name in LANGUAGES.split()]
    form["normalizer"], form["post_processor"] = {"type": "Lowercase"}, None
    return Tokenizer.from_str(json.dumps(form))


def by_words() -> Tokenizer:
    form = json.loads(wordpiece_tokenizer().to_str())
    form["normalizer"]["strip_accents"], form["post_processor"] = False, None
    form["decoder"]["cleanup"] = False
    return Tokenizer.from_str(json.dumps(form))


FILES = dict.fromkeys(CLASSES, by_bytes)
FILES |= dict.fromkeys(("LlamaTokenizer", "CodeLlamaTokenizer", "GemmaTokenizer"), marked_tokenizer)
FILES |= dict.fromkeys(("T5Tokenizer", "XLMRobertaTokenizer", "CamembertTokenizer", "BarthezTokenizer"), by_scores)
FILES |= {"MBartTokenizer": by_scores, "MBart50Tokenizer": by_scores, "BertTokenizer": by_words}
SETTINGS: dict[str, list[dict[str, Any]]] = {name: [{"add_prefix_space": True}] for name in CLASSES}
SETTINGS |= {
    "LlamaTokenizer": [{"legacy": True}, {"legacy": False, "add_prefix_space": False}],
    "CodeLlamaTokenizer": [{"add_prefix_space": False}, {"bos_token": None}],
    "GemmaTokenizer": [{"unk_token": {"__type": "AddedToken", "content": "<unk>"}}],
    "WhisperTokenizer": [{"predict_timestamps": True}],
    "BertTokenizer": [{"do_lower_case": False, "strip_accents": True}, {"tokenize_chinese_chars": False}],
    "T5Tokenizer": [{"extra_ids": 5}, {"extra_special_tokens": ["<extra_id_0>"]}],
    "XLMRobertaTokenizer": [{"add_prefix_space": False}],
    "CamembertTokenizer": [{"add_prefix_space": False}, {"mask_token": "<hole>"}],
    "BarthezTokenizer": [{"add_prefix_space": False}],
    "MBartTokenizer": [{"src_lang": "de_DE"}, {"mask_token": "<hole>", "extra_special_tokens": ["<x>"]}],
    "MBart50Tokenizer": [{"src_lang": "de_DE"}],
}
TOKENS = {
    "added_tokens_decoder": {"1": {"content": "<s>", "special": True}, "7": {"content": "the", "lstrip": True}},
    "pad_token": "<zz>",
}
CASES = [(name, {**each, **more}) for name in CLASSES for each in ({}, *SETTINGS[name]) for more in ({}, TOKENS)]


def folder_of(folder: Path, tokenizer: Tokenizer, settings: dict[str, Any], **config: Any) -> Path:
    tokenizer.save(str(folder / "tokenizer.json"))
    if settings:
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    if config:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


def check(folder: Path, codec: TextCodec | None = None, **config: Any) -> None:
    """The ids and texts of a folder are those of transformers."""
    theirs = peers.AutoTokenizer.from_pretrained(folder)
    ours = load_codec(folder, special_ids(config)) if codec is None else codec
    assert isinstance(ours, TextCodec)
    for text in TEXTS:
        expected = theirs(text).input_ids
        assert ours.encode_whole(text).tolist() == expected, text
        assert ours.decode(expected) == theirs.decode(expected, skip_special_tokens=True), text


@pytest.mark.parametrize(("name", "settings"), CASES, ids=str)
@pytest.mark.filterwarnings(f"ignore:.*{DIFFERS}")
def test_a_class_is_followed_where_tokenizer_json_says_otherwise(name, settings, tmp_path):
    folder = folder_of(tmp_path, FILES[name](), {**settings, "tokenizer_class": name})
    assert type(peers.AutoTokenizer.from_pretrained(folder)).__name__ == name
    check(folder)


@pytest.mark.parametrize("name", [name for name in CLASSES if FILES[name] is not marked_tokenizer])
def test_what_differs_is_warned_about(name, tmp_path):
    folder = folder_of(tmp_path, FILES[name](), {"tokenizer_class": name})
    with pytest.warns(UserWarning, match=f"tokenizer.json {DIFFERS} {name}, by which .* follows {name}"):
        load_codec(folder, {})


def test_another_form_is_not_warned_about(tmp_path):
    """Llama 2's file marks spaces in its normaliser, its class in its pre-tokenizer."""
    folder = folder_of(tmp_path, marked_tokenizer(), {"tokenizer_class": "LlamaTokenizer"}, model_type="llama")
    check(folder, model_type="llama")  # a warning is an error here
    codec = load_codec(folder, special_ids({"model_type": "llama"}))
    assert codec.encode_whole(" ").tolist() == [1, 306] and marked_tokenizer().encode(" ").ids == [1, 306, 306]


NAMED = (None, "LlamaTokenizer", "LlamaTokenizerFast", "PreTrainedTokenizerFast", "GPT2TokenizerFast", "PhiTokenizer")
CODE = {"auto_map": {"AutoTokenizer": ["code.Slow", "code.Fast"]}}


@pytest.mark.parametrize("model_type", [family.model_type for family in FAMILIES])
@pytest.mark.filterwarnings(f"ignore:.*{DIFFERS}", "ignore:.*transformers builds this tokenizer by MarianTokenizer")
def test_the_class_is_the_one_that_transformers_takes(model_type, tmp_path):
    """By the name in tokenizer_config.json or config.json, the model_type, and the kind of tokenizer.json."""
    config = {"model_type": model_type, "decoder_start_token_id": 2}
    files = ("tokenizer_config.json", "config.json", "code")
    for number, (named, file) in enumerate((named, file) for named in NAMED for file in files):
        for kind in (by_bytes, marked_tokenizer, by_scores):
            folder, tokenizer = tmp_path / f"{number}-{kind.__name__}", kind()
            folder.mkdir()
            settings = {"unk_token": "<unk>"} | (CODE if file == "code" else {})
            settings |= {"tokenizer_class": named} if named and file != "config.json" else {}
            fields = {**config, **({"tokenizer_class": named} if file == "config.json" else {})}
            folder_of(folder, tokenizer, settings, **fields)
            try:
                theirs = type(peers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)).__name__
            except (AttributeError, TypeError, ValueError):  # none can be built
                continue
            ours = load_codec(folder, special_ids(fields)).origin.class_name
            assert (ours or "TokenizersBackend") == theirs, (named, file)


@pytest.mark.parametrize("name", sorted(OF_MODELS.keys() - {"marian"}))
def test_the_class_of_a_model_type(name):
    assert TOKENIZER_MAPPING_NAMES[name] in (OF_MODELS[name], "MistralCommonBackend")


def test_every_class_of_theirs_is_read_or_warned_about():
    """Or it has no tokenizer.json of its own making."""
    for name in {*filter(None, TOKENIZER_MAPPING_NAMES.values())}:
        short = name.removesuffix("Fast").removesuffix("Tokenizer")
        if name.removesuffix("Fast") in (*CLASSES, *PLAIN) or short in (*ALIASES, *OTHERS):
            continue
        try:
            kind = tokenizer_class_from_name(name)
        except ImportError:
            continue
        assert "__init__" not in vars(kind), name


def test_a_class_that_is_not_read_is_named_in_a_warning(tmp_path):
    folder = folder_of(tmp_path, by_scores(), {"tokenizer_class": "AlbertTokenizerFast"})
    with pytest.warns(UserWarning, match="is followed, but transformers builds this tokenizer by AlbertTokenizer"):
        codec = load_codec(folder, {})
    assert codec.encode_whole("A b").tolist() == Tokenizer.from_file(str(folder / "tokenizer.json")).encode("A b").ids


@pytest.mark.parametrize(
    ("name", "tokenizer", "settings", "words"),
    [
        ("T5Tokenizer", by_bytes, {}, "its vocabulary has no scores"),
        ("MBart50Tokenizer", unigram_tokenizer, {}, "its vocabulary has no languages"),
        ("XLMRobertaTokenizer", by_scores, {"bos_token": None}, "bos_token is null"),
        ("T5Tokenizer", by_scores, {"extra_ids": 10**9}, "extra_ids is 1000000000"),
        ("T5Tokenizer", by_scores, {"extra_ids": "many"}, ""),
        ("BertTokenizer", by_words, {"do_lower_case": "perhaps"}, ""),
        ("MBartTokenizer", by_scores, {"src_lang": ["de_DE"]}, ""),
    ],
)
def test_a_class_that_can_not_be_built_is_refused(name, tokenizer, settings, words, tmp_path):
    folder = folder_of(tmp_path, tokenizer(), {"tokenizer_class": name, **settings})
    with pytest.raises(ValueError, match=f"no {name}, as of transformers, can be built .*{words}"):
        load_codec(folder, {})


@pytest.mark.parametrize("name", ["LlamaTokenizer", "GPT2Tokenizer", "T5Tokenizer", "BertTokenizer"])
@pytest.mark.filterwarnings(f"ignore:.*{DIFFERS}")
def test_a_run_keeps_the_class(name, tmp_path):
    """Also with further special tokens, which the class would leave out; and without the class as well."""
    for folder in ("source", "plain", "more", "earlier"):
        (tmp_path / folder).mkdir()
    ends = {"eos_token": "</s>"} if name != "BertTokenizer" else {}
    source = folder_of(tmp_path / "source", FILES[name](), {"tokenizer_class": name, **ends, **TOKENS})
    codec = read_tokenizer(source / "tokenizer.json")
    codec.save(tmp_path / "plain")
    codec.with_special(["<|mode_r|>"]).save(tmp_path / "more")
    for folder in (tmp_path / "plain", tmp_path / "more"):
        again = load_codec(folder)
        assert isinstance(again, TextCodec)
        theirs = peers.AutoTokenizer.from_pretrained(folder)
        for text in TEXTS:
            expected = theirs(text, add_special_tokens=False, split_special_tokens=True).input_ids
            assert again.encode_text(text).tolist() == codec.encode_text(text).tolist() == expected, text
    assert load_codec(tmp_path / "more").special_token("<|mode_r|>") == theirs.convert_tokens_to_ids("<|mode_r|>")
    form = json.loads((tmp_path / "plain" / "codec.json").read_text())
    assert form.pop("class") == name
    form["kind"] = "tokenizer"
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "earlier" / file).write_bytes((source / file).read_bytes())
    (tmp_path / "earlier" / "codec.json").write_text(json.dumps(form))
    assert load_codec(tmp_path / "earlier").encode_text("A b  c 12").tolist() == (
        Tokenizer.from_file(str(source / "tokenizer.json")).encode("A b  c 12", add_special_tokens=False).ids
    )


@pytest.mark.filterwarnings(f"ignore:.*{DIFFERS}")
def test_times_are_left_out_of_texts(tmp_path):
    """As Whisper's class does; they are no special tokens in the file."""
    tokenizer = bytes_tokenizer()
    tokenizer.add_tokens(["<|0.00|>", "<|12.40|>", "<|x|>"])
    folder = folder_of(tmp_path, tokenizer, {"tokenizer_class": "WhisperTokenizer"})
    theirs, ours = peers.AutoTokenizer.from_pretrained(folder), load_codec(folder, {})
    assert isinstance(ours, TextCodec)
    text = "<|0.00|> the<|12.40|> fox <|x|>"
    ids = theirs(text).input_ids
    assert ours.encode_whole(text).tolist() == ids
    assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True) == " the fox <|x|>"


def exported(codec: TextCodec, model: str, root: Path, folder: Path) -> None:
    """Export a model with another tokenizer, which transformers then reads as isoform does."""
    trained = replace(isoform.load(model_folder(model, root)), codec=codec)
    isoform.export(trained, folder)
    theirs = peers.AutoTokenizer.from_pretrained(folder)
    for text in TEXTS:
        expected = theirs(text, add_special_tokens=False, split_special_tokens=True).input_ids
        assert codec.encode_text(text).tolist() == expected, text


@pytest.mark.filterwarnings(f"ignore:.*{DIFFERS}")
def test_an_exported_tokenizer_is_the_one_of_training(tmp_path):
    """Where the model that is exported has another class than the folder of the tokenizer."""
    for name in ("alone", "named"):
        (tmp_path / name).mkdir()
    alone = read_tokenizer(folder_of(tmp_path / "alone", by_bytes(), {}) / "tokenizer.json")
    exported(alone, "gpt2", tmp_path, tmp_path / "gpt2-out")
    settings = {"tokenizer_class": "LlamaTokenizer", "eos_token": "</s>"}
    named = read_tokenizer(folder_of(tmp_path / "named", marked_tokenizer(), settings) / "tokenizer.json")
    assert named.encode_text(" ").tolist() == [306]
    exported(named, "llama2", tmp_path, tmp_path / "llama-out")
    exported(named, "mistral", tmp_path, tmp_path / "mistral-out")
    assert (tmp_path / "llama-out/tokenizer.json").read_bytes() == (tmp_path / "named/tokenizer.json").read_bytes()


def test_an_exported_tokenizer_that_transformers_will_not_follow_is_named(tmp_path):
    trained = replace(isoform.load(model_folder("qwen2", tmp_path)), codec=build_codec(Bytes(), ()))
    with pytest.warns(UserWarning, match=f"{DIFFERS} Qwen2Tokenizer, by which .* isoform follows tokenizer.json"):
        isoform.export(trained, tmp_path / "out")
