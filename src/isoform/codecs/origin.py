"""The files of another library's folder that say how texts are read and written, kept as they came."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from isoform.reading import TOKENIZER, decode, parse_json, read_bytes

TOKENIZER_FILE = "tokenizer.json"
SETTINGS, GENERATION, TEMPLATE = "tokenizer_config.json", "generation_config.json", "chat_template.jinja"
PREPROCESSING = "preprocessor_config.json"
PLAIN = "PreTrainedTokenizerFast"
"""The tokenizer_class that is as tokenizer.json says."""
TEMPLATES = "additional_chat_templates"
"""The folder of further chat templates, files whose names end in .jinja."""
FILES = (
    *(TOKENIZER_FILE, SETTINGS, GENERATION, TEMPLATE, "chat_template.json", "special_tokens_map.json"),
    *("added_tokens.json", "vocab.json", "merges.txt", "vocab.txt", "tokenizer.model", "spiece.model"),
    *("sentencepiece.bpe.model", "source.spm", "target.spm", "normalizer.json", PREPROCESSING),
)
"""The files that go along with a model."""
OF_MODEL = (GENERATION, PREPROCESSING)
"""Those of them that don't belong to the tokenizer."""
NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
"""The special tokens that tokenizer_config.json names."""

STARTS = {"t5": None, "mt5": 0, "bart": 2, "mbart": None, "marian": 58100, "whisper": 50257}
"""The model_types of pairs of stacks, with what begins a target if config.json doesn't say it."""


@dataclass(frozen=True)
class SpecialIds:
    """The ids around the texts of a model, and whether texts may hold special tokens."""

    end: int
    """Ends a document."""
    before: tuple[int, ...] = ()
    """Precede every text."""
    after: tuple[int, ...] = ()
    """Follow every text; if there are none, `end` does where a text is complete."""
    decoder_start: int | None = None
    """The first input of the decoder of a pair of stacks, for a target; None: the last token of the source."""
    are_read: bool = False
    """Whether the name of a special token inside a text is read as that token."""

    def __post_init__(self) -> None:
        for name in ("before", "after"):
            object.__setattr__(self, name, tuple(getattr(self, name)))  # lists, as JSON has them


@dataclass(frozen=True)
class Origin:
    """Files by their paths, and the fields of config.json about special tokens; empty for isoform's own codecs."""

    files: Mapping[str, bytes] = field(default_factory=dict)
    ids: Mapping[str, Any] = field(default_factory=dict)
    class_name: str = ""
    """The class of transformers that builds the tokenizer; empty: it is as tokenizer.json says."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """The special tokens of that class."""
    is_foreign: bool = False
    """Whether the model is another library's, too, and generates as its files say, not as it was trained here."""

    @cached_property
    def settings(self) -> Mapping[str, Any]:
        """tokenizer_config.json, completed by special_tokens_map.json; empty if absent."""
        settings = self._document(SETTINGS)
        if "added_tokens_decoder" not in settings:
            settings = {**settings, **self._document("special_tokens_map.json")}
        return {**settings, **self.defaults}

    @cached_property
    def generation(self) -> Mapping[str, Any]:
        """generation_config.json; without it the fields of config.json."""
        return self._document(GENERATION) if GENERATION in self.files else self.ids

    @property
    def decoder_start(self) -> int | None:
        """The first input of the decoder of a pair of stacks, for a target; None for other models.

        Raises ValueError for no id.
        """
        model_type = self.ids.get("model_type")
        if model_type not in STARTS:
            return None
        start = self.ids.get("decoder_start_token_id", STARTS[model_type])
        if start is None and model_type in ("marian", "whisper"):
            raise ValueError("config.json: decoder_start_token_id is null, which their class refuses; give an id")
        return self.generation_start if start is None else _as_start(start)

    @property
    def generation_start(self) -> int:
        """The first input of the decoder of a pair of stacks, for a text that is generated. Raises ValueError if the
        files name none."""
        start = self.generation.get("decoder_start_token_id")
        start = self.generation.get("bos_token_id") if start is None else start
        if start is None:
            name = GENERATION if GENERATION in self.files else "config.json"
            raise ValueError(f"{name}: decoder_start_token_id or bos_token_id has to be defined for a pair of stacks")
        return _as_start(start)

    @property
    def names(self) -> dict[str, str]:
        """The names of special tokens, such as eos_token."""
        return {name: content_of(self.settings[name]) for name in NAMES if self.settings.get(name)}

    @property
    def named(self) -> list[object]:
        """All special tokens by their names, each a string or a table: those of NAMES, a model's own, and others."""
        others = self.settings.get("extra_special_tokens") or self.settings.get("additional_special_tokens") or []
        own = {key: token for key, token in self.settings.items() if key.endswith("_token") and key not in NAMES}
        own |= others if isinstance(others, Mapping) else {}
        values = [*map(self.settings.get, NAMES), *own.values()]
        named = [token for token in values if isinstance(token, str | Mapping) and token]
        named = [{**token, "special": True} if isinstance(token, Mapping) else token for token in named]
        return [*named, *(others if isinstance(others, list) else [])]

    @property
    def numbered(self) -> dict[str, object]:
        """Added tokens by their ids: of tokenizer_config.json, or of the older added_tokens.json."""
        if "added_tokens_decoder" in self._document(SETTINGS):
            return self.settings["added_tokens_decoder"] or {}
        special = {*map(content_of, self.named)}
        return {
            str(number): {"content": name, "normalized": name not in special, "special": name in special}
            for name, number in self._document("added_tokens.json").items()
        }

    @property
    def preprocessing(self) -> Mapping[str, Any]:
        """preprocessor_config.json, how images and sounds become features; empty if absent."""
        return self._document(PREPROCESSING)

    def template(self, *, has_tools: bool = False) -> str:
        """The chat template, of several that which is named default, or tool_use for a conversation with tools; empty
        if there is none. Raises ValueError for one that is no text."""
        named = self.settings.get("chat_template")
        if isinstance(named, list):
            named = {each.get("name"): each.get("template") for each in named if isinstance(each, Mapping)}
        templates = dict(named) if isinstance(named, Mapping) else {"default": named}
        if TEMPLATE in self.files:
            templates["default"] = decode(self.files[TEMPLATE], TEMPLATE)
        if (path := f"{TEMPLATES}/tool_use.jinja") in self.files:
            templates["tool_use"] = decode(self.files[path], path)
        chosen = templates.get("tool_use") if has_tools and templates.get("tool_use") else templates.get("default")
        if chosen is not None and not isinstance(chosen, str):
            raise ValueError(f"{SETTINGS}: the chat_template is a {type(chosen).__name__}, not a text; copy it again")
        return chosen or ""

    def of_texts(self) -> Origin:
        """The same without what belongs to a model: how it generates, and the fields of its config.json."""
        files = {name: data for name, data in self.files.items() if name not in OF_MODEL}
        return replace(self, files=files, ids={})

    def without_vocabulary(self) -> Origin:
        """The same for a vocabulary that has changed: settings without the files that hold the vocabulary, or the class
        that would build it."""
        names = (SETTINGS, GENERATION, TEMPLATE, "chat_template.json", "special_tokens_map.json")
        files = {name: data for name, data in self.files.items() if name in names or "/" in name}
        return replace(self, files=files, class_name="", defaults={}) if not self.class_name else self.plain(files)

    def plain(self, files: Mapping[str, bytes]) -> Origin:
        """The same with these files, and with settings by which transformers follows tokenizer.json."""
        settings = {**self._document(SETTINGS), "tokenizer_class": PLAIN}
        settings_file = (json.dumps(settings, indent=2) + "\n").encode()
        return replace(self, files={**files, SETTINGS: settings_file}, class_name="", defaults={})

    def _document(self, name: str) -> dict[str, Any]:
        if name not in self.files:
            return {}
        return parse_json(self.files[name], name)


def read_origin(folder: Path, ids: Mapping[str, Any] | None = None) -> Origin:
    """The files of a folder. ids: the fields of its config.json about special tokens.

    Raises ValueError naming a file that is too large or can't be read.
    """
    inside = folder / TEMPLATES
    for path in [inside] if inside.is_symlink() else sorted(inside.glob("*.jinja")):
        if path.is_symlink():
            warnings.warn(f"{path} is a link and is left aside; put a copy of what it names in its place", stacklevel=2)
    names = [name for name in (*FILES, *templates_in(folder)) if (folder / name).is_file()]
    return Origin({name: read_bytes(folder / name, TOKENIZER) for name in names}, dict(ids or {}))


def _as_start(start: object) -> int:
    start = start[0] if isinstance(start, list) and start else start  # one for each text of a batch
    if not isinstance(start, int):
        raise ValueError(f"decoder_start_token_id={start!r} is no id; correct it")
    return start


def templates_in(folder: Path) -> list[str]:
    """The further chat templates of a folder, by their paths in it; none through links."""
    if (folder / TEMPLATES).is_symlink():
        return []
    paths = sorted((folder / TEMPLATES).glob("*.jinja"))
    return [f"{TEMPLATES}/{path.name}" for path in paths if path.is_file() and not path.is_symlink()]


def own_settings(end: str) -> bytes:
    """The tokenizer_config.json of a tokenizer of isoform's own, whose texts end with the special token `end`."""
    names = {"bos_token": end, "eos_token": end}
    settings = {"tokenizer_class": PLAIN, **names, "model_input_names": ["input_ids"]}
    return (json.dumps(settings, indent=2) + "\n").encode()


def content_of(token: object) -> str:
    """The text of a special token, which is a string or a table."""
    return str(token.get("content", "")) if isinstance(token, Mapping) else str(token)
