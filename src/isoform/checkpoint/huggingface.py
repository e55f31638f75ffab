"""Hugging Face folders, read and written: config.json and safetensors to a model and back, by the tables of families/.

Shapes are checked before a tensor is read, sizes before memory is allocated; nothing is unpickled and no code that a
folder names is run.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from contextlib import ExitStack
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from isoform.checkpoint.families.canonical import canonical
from isoform.checkpoint.families.family import Family, NotRepresentable
from isoform.checkpoint.families.fields import Fields
from isoform.checkpoint.families.registry import FAMILIES
from isoform.checkpoint.store import tensor_chunks
from isoform.checkpoint.tensors import StoredTensor, TensorSlice, build_empty, fill, slices_of, state_of
from isoform.config import differences, to_dict
from isoform.files import make_folder, write_chunks, write_text
from isoform.model.baseline_config import Model
from isoform.model.config import ModelConfig
from isoform.model.transformer import Transformer
from isoform.reading import check_safetensors, read_json

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json", "model.ckpt", "tf_model.h5", "flax_model.msgpack")
SHARD = 5 * 10**9
"""Bytes of tensors per file; beyond that another file is started."""
IGNORED_FIELDS = {
    "_attn_implementation", "_name_or_path", "architectures", "auto_map", "decoder_vocab_size", "dense_act_fn",
    "deterministic_flash_attn", "dtype", "encoder_stride", "id2label", "is_decoder", "is_encoder_decoder",
    "is_gated_act", "label2id", "layer_types", "max_window_layers", "median_filter_width", "model_type",
    "num_hidden_layers", "num_labels", "pooler_act", "pooler_output_size", "pretraining_tp", "problem_type",
    "return_dict", "sliding_window", "task_specific_params", "torch_dtype", "transformers_version", "use_cache",
}  # fmt: skip
"""Fields that don't affect the computed function, or repeat other fields."""
IGNORED_WORDS = (
    "token",
    "drop",
    "init",
    "summary",
    "output_",
    "suppress",
    "mask_",
    "classifier_",
    "sparse_pred",
    "beam",
)
IDS = ("bos_token_id", "eos_token_id", "pad_token_id", "cls_token_id", "sep_token_id")


def is_folder(path: Path) -> bool:
    """Whether this looks like a Hugging Face folder: a config.json that is not isoform's."""
    return (path / CONFIG).is_file() and read_json(path / CONFIG).get("model_type") != "isoform"


def read_folder(folder: Path, *, dtype: torch.dtype | None = torch.float32) -> Transformer:
    """The model of a folder, in evaluation mode, in this dtype (None: as stored).

    Raises ValueError naming the file, field or tensor that can't be read or represented.
    """
    if not (folder / CONFIG).is_file():
        raise ValueError(f"{folder} has no {CONFIG}, so it is no Hugging Face folder")
    with ExitStack() as stack:
        tensors = _open(folder, stack)
        config, where = read_json(folder / CONFIG), str(folder / CONFIG)
        family = _family_of(config, where)
        tensors = {_full_name(family, name): tensor for name, tensor in tensors.items()}
        model = build_empty(read_config(family, config, set(tensors), where), tensors, where)
        slices = slices_of(model, family.names, family.transforms)
        _check(slices, tensors, family, where)
        return fill(model, slices, tensors, dtype)


def _open(folder: Path, stack: ExitStack) -> dict[str, StoredTensor]:
    """All tensors of a folder's files."""
    if (folder / INDEX).is_file():
        file_of = read_json(folder / INDEX).get("weight_map")
        if not isinstance(file_of, dict) or not all(isinstance(f, str) for f in file_of.values()):
            raise ValueError(f"{folder / INDEX} has no weight_map from tensors to files")
        files = sorted(set(file_of.values()))
        outside = [f for f in files if Path(f).name != f or f in (".", "..")]
        if outside:
            raise ValueError(f"{folder / INDEX} points outside its folder: {outside[0]!r}; nothing was read")
    elif (folder / WEIGHTS).is_file():
        file_of, files = {}, [WEIGHTS]
    else:
        pickles = [name for name in PICKLES if (folder / name).exists()]
        if pickles:
            raise ValueError(
                f"{folder / pickles[0]} is a pickle, which may run code when it is read; isoform reads safetensors. "
                f"Save the model again with safe_serialization=True"
            )
        raise ValueError(f"{folder} has neither {WEIGHTS} nor {INDEX}; there are no weights to read")
    tensors: dict[str, StoredTensor] = {}
    for file in files:
        path = folder / file
        if not path.is_file():
            raise ValueError(f"{folder / INDEX} names {file}, which is not there; copy it too")
        check_safetensors(path)
        try:
            handle = stack.enter_context(safe_open(path, framework="pt"))
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path} is damaged or no safetensors file ({error}); copy it again") from error
        for name in handle.keys():  # noqa: SIM118 (no mapping)
            if name in tensors:
                raise ValueError(f"{path}: the tensor {name!r} is in {tensors[name].where} too")
            shape = tuple(handle.get_slice(name).get_shape())
            tensors[name] = StoredTensor(name, str(path), shape, partial(_tensor, handle, name, path))
    missing = [n for n, file in file_of.items() if n not in tensors or tensors[n].where != str(folder / file)]
    if missing:
        raise ValueError(
            f"{folder / INDEX} lists the tensor {missing[0]!r} in {file_of[missing[0]]}, but it is not there"
        )
    return tensors


def _tensor(handle: safe_open, name: str, path: Path) -> Tensor:
    try:
        return handle.get_tensor(name)
    except SafetensorError as error:
        raise ValueError(f"{path}: the tensor {name!r} can't be read ({error}); copy it again") from error


def read_config(family: Family, config: dict, names: set[str], where: str) -> ModelConfig:
    """The model config of a config.json; warns about unknown fields."""
    fields = Fields(config, where)
    if config.get("quantization_config"):
        raise ValueError(
            f"{where}: quantization_config is not supported; give a folder whose tensors are floating-point numbers"
        )
    try:
        model_config = family.read(fields, names)
    except (TypeError, OverflowError) as error:
        raise ValueError(f"{where}: {error}") from error
    unknown = sorted(
        name
        for name, value in config.items()
        if name not in fields.read | IGNORED_FIELDS and not any(word in name for word in IGNORED_WORDS) and value
    )
    if unknown:
        warnings.warn(f"{where}: the fields {', '.join(unknown)} are unknown; they are ignored", stacklevel=2)
    return model_config


def _family_of(config: dict, where: str) -> Family:
    kind = config.get("model_type")
    if kind == "gemma3" or "vision_config" in config:
        raise ValueError(
            f"{where}: model_type={kind!r} is a model of several modalities; give the folder of its text model"
        )
    for family in FAMILIES:
        if family.model_type == kind:
            return family
    model_types = ", ".join(family.model_type for family in FAMILIES)
    raise ValueError(f"{where}: model_type={kind!r} is not supported (known: {model_types})")


def _full_name(family: Family, name: str) -> str:
    """A tensor's name in the class with a head."""
    if not family.prefix or name.startswith(family.prefix):
        return name
    modules = {theirs.split(".")[1] for theirs in family.names.values() if theirs.startswith(family.prefix)}
    modules |= {theirs.split(".")[1] for theirs in family.ignored if theirs.startswith(family.prefix)}
    return family.prefix + name if name.split(".")[0] in modules else name


def _check(
    slices: Mapping[str, list[TensorSlice]], tensors: Mapping[str, StoredTensor], family: Family, where: str
) -> None:
    """Raises ValueError naming the tensors that are missing, unexpected or of another shape."""
    shapes = {part.name: part.shape for parts in slices.values() for part in parts}
    missing = sorted(shapes.keys() - tensors.keys())
    if missing:
        raise ValueError(f"{where}: {_some(missing)} missing that its fields require")
    extra = sorted(
        name for name in tensors.keys() - shapes.keys() if not any(fnmatchcase(name, p) for p in family.ignored)
    )
    if extra:
        raise ValueError(
            f"{tensors[extra[0]].where}: {_some(extra)} there, but the fields of {CONFIG} don't describe them"
        )
    for name, shape in shapes.items():
        tensor = tensors[name]
        if tensor.shape != shape:
            raise ValueError(
                f"{tensor.where}: the tensor {tensor.name!r} has shape {list(tensor.shape)}, but the fields of "
                f"{CONFIG} require {list(shape)}"
            )


def _some(names: list[str]) -> str:
    if len(names) == 1:
        return f"the tensor {names[0]} is"
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"the tensors {', '.join(names[:3])}{more} are"


def family_of(config: ModelConfig) -> tuple[Family, dict]:
    """The family that a model belongs to, and its config.json. Raises ValueError naming the fields that prevent it.

    A family fits if reading the config that it wrote returns the same model.
    """
    differing, refused = dict[str, list[str]](), dict[str, list[str]]()
    try:
        target = canonical(config)
    except NotRepresentable as error:
        raise ValueError(f"no class of transformers can represent this model: none has {error}") from None
    with torch.device("meta"):
        model = Transformer(config)
    for family in FAMILIES:
        start = {"architectures": [family.architecture], "model_type": family.model_type, **dict.fromkeys(IDS)}
        try:
            written = {**start, **family.write(config), "dtype": "float32"}
        except NotRepresentable as error:
            refused[family.model_type] = [str(error)]
            continue
        slices = slices_of(model, family.names, family.transforms)
        names = {part.name for parts in slices.values() for part in parts}
        unnamed = [ours for ours, parts in slices.items() if not parts]
        back = canonical(family.read(Fields(written, family.model_type), names))
        changed = [path for path, _, _ in differences(to_dict(target), to_dict(back))]
        if not changed and not unnamed:
            return family, written
        differing[family.model_type] = changed or unnamed
    by_reason: dict[str, list[str]] = {}
    for name, fields in [*sorted(differing.items(), key=lambda item: len(item[1])), *refused.items()]:
        by_reason.setdefault(", ".join(fields), []).append(name)
    reasons = "; ".join(
        f"{', '.join(names)}: no {reason}"
        for reason, names in by_reason.items()
        if reason not in ("encoder", "decoder")
    )
    raise ValueError(f"no class of transformers can represent this model: {reasons}")


def exportable(config: Model) -> str | None:
    """The class of transformers that can represent a model; None if none can."""
    if not isinstance(config, ModelConfig):
        return None
    try:
        return str(family_of(config)[1]["architectures"][0])
    except ValueError:
        return None


def write_folder(model: Transformer, folder: Path, extra: Mapping[str, object] | None = None) -> str:
    """Write config.json and safetensors for transformers; returns the name of the class that reads them.

    extra: further fields for config.json, such as the ids of special tokens. Raises ValueError naming the fields that
    no family can represent.
    """
    family, written = family_of(model.config)
    make_folder(folder)
    theirs: dict[str, Tensor] = {}
    slices = slices_of(model, family.names, family.transforms)
    for ours, tensor in state_of(model).items():
        for part in slices[ours]:
            theirs[part.name] = part.to_theirs(tensor.detach().cpu()).contiguous()
    _save_sharded(theirs, folder)
    text = json.dumps({**written, **(extra or {})}, indent=2)
    write_text(folder / CONFIG, text + "\n")
    return written["architectures"][0]


def _save_sharded(tensors: dict[str, Tensor], folder: Path) -> None:
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        if shards[-1] and size + tensor.nbytes > SHARD:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor.nbytes
    if len(shards) == 1:
        write_chunks(folder / WEIGHTS, tensor_chunks("model", shards[0], {"format": "pt"}))
        return
    files = [f"model-{i:05}-of-{len(shards):05}.safetensors" for i in range(1, len(shards) + 1)]
    for shard, file in zip(shards, files, strict=True):
        write_chunks(folder / file, tensor_chunks("model", shard, {"format": "pt"}))
    index = {
        "metadata": {"total_size": sum(t.nbytes for t in tensors.values())},
        "weight_map": {name: file for shard, file in zip(shards, files, strict=True) for name in shard},
    }
    write_text(folder / INDEX, json.dumps(index, indent=2) + "\n")
