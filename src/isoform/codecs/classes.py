"""Tokenizers that transformers builds itself: the vocabulary and the merges are those of tokenizer.json, all else is as
the class says that tokenizer_config.json or the model_type names."""

from __future__ import annotations

import base64
import json
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from isoform.codecs.bounds import without_panics
from isoform.codecs.origin import Origin, content_of
from isoform.codecs.tokenizer import SPACE, add_tokens

Settings = Mapping[str, Any]
"""tokenizer_config.json."""
Parts = tuple[Any, Any, Any]
"""Normaliser, pre-tokenizer and decoder."""
PROBES = (
    "The quick brown fox jumps over 1234 lazy dogs, doesn't it?",
    "Two  spaces, a\ttab;\nand a line: x_1 = (y+2)*3.50!",
    "Ça déjà-vu, e\u0301, Größe, ﬁn, Ａ, 日本語, русский 👩‍👧",
)
"""Texts on which a class and the file are compared."""
MAX_SPANS = 10_000
"""The largest number of tokens for spans; T5 has 100."""
QWEN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LANGUAGES = (
    "ar_AR cs_CZ de_DE en_XX es_XX et_EE fi_FI fr_XX gu_IN hi_IN it_IT ja_XX kk_KZ ko_KR lt_LT lv_LV my_MM ne_NP nl_XX "
    "ro_RO ru_RU si_LK tr_TR vi_VN zh_CN"
)
MORE_LANGUAGES = (
    "af_ZA az_AZ bn_IN fa_IR he_IL hr_HR id_ID ka_GE km_KH mk_MK ml_IN mn_MN mr_IN pl_PL ps_AF pt_XX sv_SE sw_KE ta_IN "
    "te_IN th_TH tl_XX uk_UA ur_PK xh_ZA gl_ES sl_SI"
)


@dataclass(frozen=True)
class Built:
    """How a class builds its tokenizer."""

    model: Callable[[Any, Any, Settings], Any]
    """From vocabulary and merges."""
    parts: Callable[[Settings, Any], Parts]
    """From settings, and the file's table of normalised characters, if it has one."""
    tokens: Mapping[str, Any]
    """Special tokens where settings name none."""
    around: Callable[[Settings], tuple[Sequence[str], Sequence[str]]] | None = None
    """The tokens before and after a text; None: those of the file."""
    extra: Callable[[Settings], Sequence[str]] = lambda settings: ()
    """Further special tokens where settings list none."""
    hidden: re.Pattern | None = None
    """Tokens that are left out of a decoded text, as special ones are."""


def _pairs(vocabulary: Any, merges: Any, settings: Settings, *, has_unk: bool = False, **options: Any) -> Any:
    pairs: Any = [tuple(pair.split(" ") if isinstance(pair, str) else pair) for pair in merges or []]
    unk = content_of(settings["unk_token"]) if has_unk else None
    return models.BPE(_numbered(vocabulary), pairs, unk_token=unk, **options)


def _unigram(vocabulary: Any, merges: Any, settings: Settings, *, unk: int | None = None) -> Any:
    if not isinstance(vocabulary, list):
        raise ValueError("its vocabulary has no scores")
    scores = [tuple(entry) for entry in vocabulary]
    named = content_of(settings["unk_token"])
    unk = next((i for i, (token, _) in enumerate(scores) if token == named), 0) if unk is None else unk
    return models.Unigram(scores, unk_id=unk, byte_fallback=False)


def _numbered(vocabulary: Any) -> dict[str, int]:
    """The ids of a vocabulary, which may be in their order with scores."""
    if isinstance(vocabulary, list):
        return {token: i for i, (token, _) in enumerate(vocabulary)}
    return vocabulary


def _mbart50_unigram(vocabulary: Any, merges: Any, settings: Settings) -> Any:
    if not {token for token, _ in vocabulary} & {*LANGUAGES.split(), *MORE_LANGUAGES.split()}:
        raise ValueError("its vocabulary has no languages")  # it would be put in another order
    return _unigram(vocabulary, merges, settings, unk=3)


def _words(vocabulary: Any, merges: Any, settings: Settings) -> Any:
    return models.WordPiece(_numbered(vocabulary), unk_token=content_of(settings["unk_token"]))


def _bytes(settings: Settings, table: Any, *before: Any, nfc: bool = False, use_regex: bool = True) -> Parts:
    has_prefix = bool(settings.get("add_prefix_space"))
    level = pre_tokenizers.ByteLevel(add_prefix_space=has_prefix, use_regex=use_regex)
    split = pre_tokenizers.Sequence([*before, level]) if before else level
    return normalizers.NFC() if nfc else None, split, decoders.ByteLevel()


def _marked(settings: Settings, table: Any, *, strips: bool = False) -> Parts:
    """Llama's; strips: a text loses its first space whether or not it was given one."""
    has_prefix = settings.get("add_prefix_space") in (None, True)
    scheme = "never" if not has_prefix else "always" if settings.get("legacy") else "first"
    texts = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    texts += [decoders.Strip(" ", 1, 0)] if has_prefix or strips else []
    return None, pre_tokenizers.Metaspace(SPACE, scheme, split=False), decoders.Sequence(texts)


def _gemma(settings: Settings, table: Any) -> Parts:
    texts = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
    return normalizers.Replace(" ", SPACE), pre_tokenizers.Split(" ", "merged_with_previous"), texts


def _spaced(settings: Settings, table: Any, *, splits: bool = True, always: bool = False, before: Any = None) -> Parts:
    """SentencePiece's; splits: at all kinds of spaces first; before: makes the normaliser of the table."""
    scheme = "always" if always or settings.get("add_prefix_space", True) else "never"
    split = pre_tokenizers.Metaspace(SPACE, scheme)
    split = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), split]) if splits else split
    return before(table) if before else table, split, decoders.Metaspace(SPACE, scheme)


def _single_spaces(table: Any) -> Any:
    return normalizers.Sequence([*([table] if table else []), normalizers.Replace(Regex(" {2,}"), " ")])


def _stripped(table: Any) -> Any:
    spaces = normalizers.Replace(Regex(r"\s{2,}|[\n\r\t]"), " ")
    return normalizers.Sequence([spaces, normalizers.NFC(), normalizers.Strip(left=False, right=True)])


def _bert(settings: Settings, table: Any) -> Parts:
    normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=settings.get("tokenize_chinese_chars", True),
        strip_accents=settings.get("strip_accents"),
        lowercase=settings.get("do_lower_case", True),
    )
    return normalizer, pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()


def _named(before: str = "", after: str = "") -> Callable[[Settings], tuple[Sequence[str], Sequence[str]]]:
    """The special tokens of these names, such as "bos eos", around a text."""

    def around(settings: Settings) -> tuple[Sequence[str], Sequence[str]]:
        names = [[f"{name}_token" for name in side.split()] for side in (before, after)]
        if absent := [name for side in names for name in side if not settings[name]]:
            raise ValueError(f"{absent[0]} is null")
        first, last = ([content_of(settings[name]) for name in side] for side in names)
        return first, last

    return around


def _whisper(settings: Settings) -> tuple[Sequence[str], Sequence[str]]:
    chosen = [settings.get("language"), settings.get("task")]
    last = [] if settings.get("predict_timestamps") else ["notimestamps"]
    before = [f"<|{name}|>" for name in ("startoftranscript", *filter(None, chosen), *last)]
    return before, [content_of(settings["eos_token"])]


def _spans(settings: Settings) -> Sequence[str]:
    number = settings.get("extra_ids", 100)
    if not 0 <= number <= MAX_SPANS:
        raise ValueError(f"extra_ids is {number}, and at most {MAX_SPANS:,} are read")
    return [f"<extra_id_{i}>" for i in range(number)]


def _language(settings: Settings) -> str:
    return settings.get("src_lang") or "en_XX"


END = dict.fromkeys(("unk_token", "bos_token", "eos_token"), "<|endoftext|>")
MARKS = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
PADDED = {**MARKS, "sep_token": "</s>", "cls_token": "<s>", "pad_token": "<pad>", "mask_token": "<mask>"}
AFTER_SPACE = {**PADDED, "mask_token": {"content": "<mask>", "lstrip": True, "normalized": True}}
WORDS = {f"{name}_token": f"[{name.upper()}]" for name in ("unk", "sep", "pad", "cls", "mask")}
CODE = {f"{name}_token": f"▁<{name[:3].upper()}>" for name in ("prefix", "middle", "suffix")}
CODE |= {"eot_token": "▁<EOT>", "fill_token": "<FILL_ME>"}
_fallback = partial(_pairs, fuse_unk=True, byte_fallback=True)
_numbers = pre_tokenizers.Digits(individual_digits=True)
_qwen = pre_tokenizers.Split(Regex(QWEN), "isolated")

CLASSES = {
    "LlamaTokenizer": Built(_fallback, _marked, MARKS),
    "CodeLlamaTokenizer": Built(
        partial(_fallback, has_unk=True),
        lambda settings, table: _marked({**settings, "legacy": False}, table, strips=True),
        {**MARKS, **CODE},
        around=lambda settings: ([content_of(settings["bos_token"])] if settings["bos_token"] else [], []),
        extra=lambda settings: [*CODE.values()],
    ),
    "GemmaTokenizer": Built(
        partial(_fallback, has_unk=True),
        _gemma,
        {f"{name}_token": f"<{name}>" for name in ("unk", "bos", "eos", "pad", "mask")},
    ),
    "Qwen2Tokenizer": Built(
        _pairs,
        lambda settings, table: _bytes(settings, table, _qwen, nfc=True, use_regex=False),
        {**END, "bos_token": None, "pad_token": "<|endoftext|>"},
    ),
    "GPT2Tokenizer": Built(_pairs, _bytes, END),
    "CodeGenTokenizer": Built(_pairs, _bytes, END),
    "GPTNeoXTokenizer": Built(_pairs, partial(_bytes, nfc=True), {**END, "pad_token": "<|padding|>"}, around=_named()),
    "CohereTokenizer": Built(
        _pairs,
        lambda settings, table: _bytes(settings, table, _numbers, nfc=True),
        {
            "unk_token": "<UNK>",
            "bos_token": "<BOS_TOKEN>",
            "eos_token": "<|END_OF_TURN_TOKEN|>",
            "pad_token": "<PAD>",
            "cls_token": "<CLS>",
            "sep_token": "<SEP>",
            "mask_token": "<MASK_TOKEN>",
        },
    ),
    "WhisperTokenizer": Built(_pairs, _bytes, END, around=_whisper, hidden=re.compile(r"<\|\d+\.\d+\|>")),
    "RobertaTokenizer": Built(_pairs, _bytes, PADDED, around=_named("cls", "sep")),
    "BertTokenizer": Built(_words, _bert, WORDS, around=_named("cls", "sep")),
    "T5Tokenizer": Built(
        partial(_unigram, unk=2),
        partial(_spaced, always=True),
        {"unk_token": "<unk>", "eos_token": "</s>", "pad_token": "<pad>"},
        around=_named("", "eos"),
        extra=_spans,
    ),
    "XLMRobertaTokenizer": Built(partial(_unigram, unk=3), _spaced, PADDED, around=_named("bos", "eos")),
    "CamembertTokenizer": Built(
        _unigram,
        _spaced,
        {**PADDED, "mask_token": {"content": "<mask>", "lstrip": True}},
        around=_named("bos", "eos"),
        extra=lambda settings: ["<s>NOTUSED", "</s>NOTUSED", "<unk>NOTUSED"],
    ),
    "BarthezTokenizer": Built(partial(_unigram, unk=3), partial(_spaced, splits=False, before=_stripped), AFTER_SPACE),
    "MBartTokenizer": Built(
        partial(_unigram, unk=3),
        partial(_spaced, always=True, before=lambda table: None),
        AFTER_SPACE,
        around=lambda settings: ([], [content_of(settings["eos_token"]), _language(settings)]),
        extra=lambda settings: LANGUAGES.split(),
    ),
    "MBart50Tokenizer": Built(
        _mbart50_unigram,
        partial(_spaced, splits=False, always=True, before=_single_spaces),
        {name: token for name, token in AFTER_SPACE.items() if name != "bos_token"},
        around=lambda settings: ([_language(settings)], [content_of(settings["eos_token"])]),
        extra=lambda settings: f"{LANGUAGES} {MORE_LANGUAGES}".split(),
    ),
}
"""The classes of the model_types that are read."""
ALIASES = {
    **dict.fromkeys(("Bart", "LED", "Longformer", "Mvp"), "RobertaTokenizer"),
    **dict.fromkeys(("DistilBert", "Electra", "MobileBert", "SqueezeBert", "LayoutLM", "Lxmert"), "BertTokenizer"),
}
"""Further names of them, without Tokenizer."""
OTHERS = (
    *("Albert", "BigBird", "Blenderbot", "CLIP", "Cpm", "Deberta", "DebertaV2", "Esmc", "FNet", "Funnel"),
    *("DPRContextEncoder", "DPRQuestionEncoder", "DPRReader"),
    *("Herbert", "Lasr", "LayoutLMv2", "LayoutLMv3", "LayoutXLM", "Luke", "MarkupLM", "MLuke", "MPNet", "Nllb"),
    *("Nougat", "OpenAIGPT", "Pegasus", "Qwen3_5", "Reformer", "RemBert", "RoFormer", "SeamlessM4T", "Siglip2"),
    *("Splinter", "Tipsv2", "Udop", "VideoPrism", "XGLM", "XLNet"),
    # those that read other files than tokenizer.json
    *("Bartpho", "BertGeneration", "BertJapanese", "Bertweet", "BioGpt", "BlenderbotSmall", "ByT5", "CTRL", "Canine"),
    *("Clvp", "CpmAnt", "Dia", "Esm", "FSMT", "FastSpeech2Conformer", "Flaubert", "GPTNeoXJapanese", "GPTSw3"),
    *("M2M100", "Marian", "Mgpstr", "MyT5", "PLBart", "Perceiver", "Phobert", "ProphetNet", "Rag", "RoCBert"),
    *("Siglip", "Speech2Text", "SpeechT5", "Tapas", "Vits", "Wav2Vec2CTC", "Wav2Vec2PhonemeCTC", "XLM"),
)
"""Classes of transformers that aren't read, without Tokenizer."""
PLAIN = ("TokenizersBackend", "PreTrainedTokenizer", "PythonBackend")
"""Names of the class that follows tokenizer.json."""
OF_MODELS = {
    **dict.fromkeys(("granite", "mistral", "mixtral", "phi3", "stablelm", "olmo2", "modernbert"), "TokenizersBackend"),
    **dict.fromkeys(("gpt2", "gptj", "phi", "opt", "starcoder2"), "GPT2Tokenizer"),
    **dict.fromkeys(("qwen2", "qwen3", "qwen3_moe"), "Qwen2Tokenizer"),
    **dict.fromkeys(("gemma", "gemma2", "gemma3_text"), "GemmaTokenizer"),
    **dict.fromkeys(("gpt_neox", "olmo"), "GPTNeoXTokenizer"),
    **dict.fromkeys(("bert", "distilbert", "electra"), "BertTokenizer"),
    **dict.fromkeys(("roberta", "bart"), "RobertaTokenizer"),
    **dict.fromkeys(("t5", "mt5"), "T5Tokenizer"),
    "cohere": "CohereTokenizer",
    "xlm-roberta": "XLMRobertaTokenizer",
    "camembert": "CamembertTokenizer",
    "mbart": "MBartTokenizer",
    "marian": "MarianTokenizer",
    "whisper": "WhisperTokenizer",
}
"""The class of a model_type, if it has one."""
UNTRUSTED = ("phi3", "qwen2", "modernbert")
"""The model_types whose class is taken whatever another one is named."""


def class_of(origin: Origin, document: str) -> str:
    """The class that builds the tokenizer, of CLASSES or OTHERS; empty if it is as tokenizer.json, `document`, says."""
    named, model_type = origin.settings.get("tokenizer_class"), str(origin.ids.get("model_type", ""))
    name = str(named or origin.ids.get("tokenizer_class") or "").removesuffix("Fast")
    own, code = OF_MODELS.get(model_type, ""), origin.settings.get("auto_map")
    has_code = bool(code.get("AutoTokenizer") if isinstance(code, Mapping) else code)  # which isn't run
    is_other = bool(name and own and name != own)
    if not name:
        name = own
    elif name == "LlamaTokenizer" and not has_code and '"ByteLevel"' in document:
        name = own if is_other and model_type in UNTRUSTED else ""
    elif is_other and not has_code and (own in PLAIN or model_type in UNTRUSTED):
        name = own
    short = name.removesuffix("Tokenizer")
    name = ALIASES.get(short, name)
    return name if name in CLASSES or short in OTHERS else ""


def build(name: str, document: str, origin: Origin, post_processor: Any) -> tuple[Tokenizer, Origin]:
    """The tokenizer of a class, with the vocabulary of a tokenizer.json, and the files with the special tokens that the
    class adds. Raises ValueError if it can't be built from this file, or these settings."""
    built = CLASSES[name]
    try:
        form = json.loads(document)
        origin = replace(origin, class_name=name, defaults=_default_tokens(built, origin.settings))
        settings, model = origin.settings, form["model"]
        with without_panics(name):
            tokenizer = Tokenizer(built.model(model["vocab"], model.get("merges"), settings))
            tokenizer.normalizer, tokenizer.pre_tokenizer, tokenizer.decoder = built.parts(settings, _table(form))
            add_tokens(tokenizer, origin, _added_tokens(built, origin, form))
            sides = built.around(settings) if built.around else None
            tokenizer.post_processor = post_processor if sides is None else _template(tokenizer, *sides, settings)
    except Exception as error:  # tokenizers raises nothing narrower
        why = str(error).partition("\n")[0]
        raise ValueError(f"no {name}, as of transformers, can be built from its tokenizer.json ({why})") from None
    return tokenizer, origin


def _added_tokens(built: Built, origin: Origin, form: Mapping[str, Any]) -> dict[str, Any]:
    """The added tokens by their ids: those of the file only if settings have none."""
    numbered: dict[str, Any] = dict(origin.numbered)
    if "added_tokens_decoder" not in origin.settings:
        numbered |= {str(token["id"]): token for token in form["added_tokens"]}
    for i, token in numbered.items():
        if built.hidden is not None and built.hidden.fullmatch(content_of(token)):
            numbered[i] = {**token, "special": True}
    return numbered


def _default_tokens(built: Built, settings: Settings) -> dict[str, Any]:
    """The special tokens that a class adds to those that settings name."""
    tokens = {}
    for key, token in built.tokens.items():
        given = settings.get(key, token)
        tokens[key] = {**token, "content": given} if isinstance(token, Mapping) and isinstance(given, str) else given
    has_list = {"extra_special_tokens", "additional_special_tokens"} & {*settings}
    return tokens if has_list else {**tokens, "extra_special_tokens": [*built.extra(settings)]}


def _template(tokenizer: Tokenizer, before: Sequence[str], after: Sequence[str], settings: Settings) -> Any:
    """The post-processor that adds special tokens, the unknown one for those that the vocabulary lacks."""
    unk = tokenizer.token_to_id(content_of(settings.get("unk_token") or ""))
    ids = {text: tokenizer.token_to_id(text) for text in (*before, *after)}
    special = [(text, unk if i is None else i) for text, i in ids.items()]
    return processors.TemplateProcessing(single=[*before, "$A", *after], special_tokens=special)


def _table(form: Mapping[str, Any]) -> Any:
    """The normaliser of a file that is a table of characters; None if there is none."""
    normalizer = form.get("normalizer") or {}
    for part in normalizer.get("normalizers", [normalizer]):
        if part.get("type") == "Precompiled":
            return normalizers.Precompiled(base64.b64decode(part["precompiled_charsmap"]))
    return None


def warn_of_difference(path: object, name: str, built: Tokenizer, file: Tokenizer, followed: str) -> None:
    """Warns if a class and its tokenizer.json, of which one is followed, read or write an ordinary text otherwise."""
    for probe in PROBES:
        if _read_and_written(built, probe) != _read_and_written(file, probe):
            warnings.warn(
                f"{path} says otherwise than {name}, by which transformers builds this tokenizer: {probe!r} has other "
                f"tokens, or another text when decoded; isoform follows {followed}",
                stacklevel=4,
            )
            return


def _read_and_written(tokenizer: Tokenizer, text: str) -> object:
    try:
        with without_panics(text):
            ids = tokenizer.encode(text).ids
            return ids, tokenizer.decode(ids)
    except Exception:  # it has no token for this one
        return None
