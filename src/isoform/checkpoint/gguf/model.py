"""The model and the tokenizer of a GGUF file: all metadata and shapes are checked before tensors are read."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from isoform.checkpoint.gguf.architectures import Architecture, architecture_of, read_config
from isoform.checkpoint.gguf.format import Header, TensorInfo, check_format, read_header, read_numbers
from isoform.checkpoint.gguf.tokenizer import Vocabulary, read_vocabulary
from isoform.checkpoint.tensors import StoredTensor, TensorSlice, build_empty, fill, slices_of
from isoform.codecs.origin import SETTINGS, TOKENIZER_FILE
from isoform.model.config import ModelConfig
from isoform.model.transformer import Transformer


@dataclass(frozen=True, eq=False)
class GGUFModel:
    """The contents of a file: the model in float32, in evaluation mode, and its tokenizer, if it is read."""

    model: Transformer
    vocabulary: Vocabulary | None

    @property
    def files(self) -> dict[str, bytes]:
        """The tokenizer as files of a folder, by name."""
        if self.vocabulary is None:
            return {}
        documents = {TOKENIZER_FILE: self.vocabulary.tokenizer, SETTINGS: self.vocabulary.settings}
        return {name: json.dumps(document, ensure_ascii=False).encode() for name, document in documents.items()}

    @property
    def special_ids(self) -> dict[str, Any]:
        """The fields of a config.json about special tokens."""
        return {} if self.vocabulary is None else self.vocabulary.ids


def read_gguf(path: str | Path) -> GGUFModel:
    """The model in a file.

    Raises ValueError naming the file and the key or tensor that is damaged or unknown, and if the library `gguf` is
    missing.
    """
    header = read_header(path)
    architecture = architecture_of(header)
    config = read_config(header, architecture)
    tensors = {
        name: StoredTensor(name, str(path), info.shape, partial(_read, header, info, architecture, config))
        for name, info in header.tensors.items()
    }
    model = build_empty(config, tensors, str(path))
    slices = slices_of(model, architecture.names)
    _check_tensors(header, architecture, slices)
    vocabulary = read_vocabulary(header, config.vocab_size)
    return GGUFModel(fill(model, slices, tensors), vocabulary)


def _read(header: Header, info: TensorInfo, architecture: Architecture, config: ModelConfig) -> Tensor:
    return architecture.restore(info.name, read_numbers(header, info), config)


def _check_tensors(header: Header, architecture: Architecture, slices: Mapping[str, list[TensorSlice]]) -> None:
    """Raises ValueError for tensors that are missing or unknown, or have a wrong shape or an unknown format."""
    shapes = {part.name: part.shape for parts in slices.values() for part in parts}
    missing = [name for name in shapes if name not in header.tensors]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise ValueError(f"{header.path} has no tensor {missing[0]!r}{more}; it is incomplete, get it again")
    for name in header.tensors:
        if name not in shapes and name not in architecture.ignored:
            patterns = ", ".join(dict.fromkeys(re.sub(r"\.\d+\.", ".#.", name) for name in shapes))
            raise ValueError(
                f"{header.path}: the tensor {name!r} is not known in {architecture.family.model_type} (known: "
                f"{patterns})"
            )
    for name, shape in shapes.items():
        if header.tensors[name].shape != shape:
            raise ValueError(
                f"{header.path}: the tensor {name!r} has shape {list(header.tensors[name].shape)}, but the metadata "
                f"ask for {list(shape)}; the file is damaged, get it again"
            )
    for info in header.tensors.values():
        check_format(header, info)
