"""Hugging Face folders, in and out: config.json and safetensors to a model and back, by the tables of families/.

Shapes are checked before a tensor is read, sizes before memory is taken; nothing is unpickled and no code named by a
folder is run.
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
from safetensors.torch import save_file
from torch import Tensor

from isoform.checkpoint.families.canonical import canonical
from isoform.checkpoint.families.family import Family, NotRepresentable
from isoform.checkpoint.families.fields import Fields
from isoform.checkpoint.families.registry import FAMILIES
from isoform.checkpoint.tensors import Place, StoredTensor, build_empty, fill, slices_of, state_of
from isoform.config import differences, to_dict
from isoform.model.baseline_config import Model
from isoform.model.config import ModelConfig
from isoform.model.transformer import Transformer

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json", "model.ckpt", "tf_model.h5", "flax_model.msgpack")
SHARD = 5 * 10**9
"""Bytes of tensors from which a further file is begun."""
SILENT = {
    "_attn_implementation", "_name_or_path", "architectures", "auto_map", "decoder_vocab_size", "dense_act_fn",
    "deterministic_flash_attn", "dtype", "encoder_stride", "id2label", "is_decoder", "is_encoder_decoder",
    "is_gated_act", "label2id", "layer_types", "max_window_layers", "median_filter_width", "model_type",
    "num_hidden_layers", "num_labels", "pooler_act", "pooler_output_size", "pretraining_tp", "problem_type",
    "return_dict", "sliding_window", "task_specific_params", "torch_dtype", "transformers_version", "use_cache",
}  # fmt: skip
"""Fields that say nothing about the function, or nothing that other fields don't say."""
SILENT_WORDS = (
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


def read_json(path: Path) -> dict:
    """A JSON object. Raises ValueError naming the file for anything else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path} can't be read: {error.strerror}") from error
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON ({error}); copy it again") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds a {type(value).__name__} where an object is expected")
    return value


def read_folder(folder: Path, *, dtype: torch.dtype | None = torch.float32) -> Transformer:
    """The model of a folder, in evaluation mode, in this dtype (None: as stored).

    Raises ValueError naming file, field or tensor for what can't be read or expressed.
    """
    if not (folder / CONFIG).is_file():
        raise ValueError(f"{folder} has no {CONFIG}, so it is no Hugging Face folder")
    with ExitStack() as stack:
        tensors = _open(folder, stack)
        config, where = read_json(folder / CONFIG), str(folder / CONFIG)
        family = _family_of(config, where)
        tensors = {_full_name(family, name): tensor for name, tensor in tensors.items()}
        model = build_empty(read_config(family, config, set(tensors), where), tensors, where)
        places = slices_of(model, family.names, family.transforms)
        _check(places, tensors, family, where)
        return fill(model, places, tensors, dtype)


def _open(folder: Path, stack: ExitStack) -> dict[str, StoredTensor]:
    """All tensors of a folder's files."""
    if (folder / INDEX).is_file():
        named = read_json(folder / INDEX).get("weight_map")
        if not isinstance(named, dict) or not all(isinstance(f, str) for f in named.values()):
            raise ValueError(f"{folder / INDEX} has no weight_map from tensors to files")
        files = sorted(set(named.values()))
        outside = [f for f in files if Path(f).name != f or f in (".", "..")]
        if outside:
            raise ValueError(f"{folder / INDEX} points outside its folder: {outside[0]!r}; nothing was read")
    elif (folder / WEIGHTS).is_file():
        named, files = {}, [WEIGHTS]
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
        try:
            handle = stack.enter_context(safe_open(path, framework="pt"))
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path} is damaged or no safetensors file ({error}); copy it again") from error
        for name in handle.keys():  # noqa: SIM118 (no mapping)
            if name in tensors:
                raise ValueError(f"{path}: the tensor {name!r} is in {tensors[name].where} too")
            shape = tuple(handle.get_slice(name).get_shape())
            tensors[name] = StoredTensor(name, str(path), shape, partial(_tensor, handle, name, path))
    lost = [n for n, file in named.items() if n not in tensors or tensors[n].where != str(folder / file)]
    if lost:
        raise ValueError(f"{folder / INDEX} says that {named[lost[0]]} has the tensor {lost[0]!r}, but it has not")
    return tensors


def _tensor(handle: safe_open, name: str, path: Path) -> Tensor:
    try:
        return handle.get_tensor(name)
    except SafetensorError as error:
        raise ValueError(f"{path}: the tensor {name!r} can't be read ({error}); copy it again") from error


def read_config(family: Family, config: dict, names: set[str], where: str) -> ModelConfig:
    """The model config of a config.json; warns of fields that nothing is known about."""
    fields = Fields(config, where)
    if config.get("quantization_config"):
        raise ValueError(
            f"{where}: quantization_config is not supported; give a folder whose tensors are floating numbers"
        )
    try:
        read = family.read(fields, names)
    except (TypeError, OverflowError) as error:
        raise ValueError(f"{where}: {error}") from error
    left = sorted(
        name
        for name, value in config.items()
        if name not in fields.taken | SILENT and not any(word in name for word in SILENT_WORDS) and value
    )
    if left:
        warnings.warn(
            f"{where}: nothing is known about the fields {', '.join(left)}; they are left aside", stacklevel=2
        )
    return read


def _family_of(config: dict, where: str) -> Family:
    kind = config.get("model_type")
    if kind == "gemma3" or "vision_config" in config:
        raise ValueError(f"{where}: model_type={kind!r} is of a model with several parts; give its text part's folder")
    for family in FAMILIES:
        if family.model_type == kind:
            return family
    known = ", ".join(family.model_type for family in FAMILIES)
    raise ValueError(f"{where}: model_type={kind!r} is not supported (known: {known})")


def _full_name(family: Family, name: str) -> str:
    """A tensor's name as the class with a head has it."""
    if not family.prefix or name.startswith(family.prefix):
        return name
    beginnings = {theirs.split(".")[1] for theirs in family.names.values() if theirs.startswith(family.prefix)}
    beginnings |= {left.split(".")[1] for left in family.ignored if left.startswith(family.prefix)}
    return family.prefix + name if name.split(".")[0] in beginnings else name


def _check(places: Mapping[str, list[Place]], tensors: Mapping[str, StoredTensor], family: Family, where: str) -> None:
    """Raises ValueError naming what is missing, superfluous or of another shape."""
    wanted = {place.name: place.shape for parts in places.values() for place in parts}
    missing = sorted(wanted.keys() - tensors.keys())
    if missing:
        raise ValueError(f"{where}: {_some(missing)} missing that its fields ask for")
    extra = sorted(
        name for name in tensors.keys() - wanted.keys() if not any(fnmatchcase(name, p) for p in family.ignored)
    )
    if extra:
        raise ValueError(f"{tensors[extra[0]].where}: {_some(extra)} there that the fields of {CONFIG} don't speak of")
    for name, shape in wanted.items():
        tensor = tensors[name]
        if tensor.shape != shape:
            raise ValueError(
                f"{tensor.where}: the tensor {tensor.name!r} has shape {list(tensor.shape)}, but the fields of "
                f"{CONFIG} ask for {list(shape)}"
            )


def _some(names: list[str]) -> str:
    if len(names) == 1:
        return f"the tensor {names[0]} is"
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"the tensors {', '.join(names[:3])}{more} are"


def family_of(config: ModelConfig) -> tuple[Family, dict]:
    """The family that a model belongs to, and its config.json. Raises ValueError naming the fields that prevent it.

    A family fits if reading what it wrote gives the same model again.
    """
    misses, wordless = dict[str, list[str]](), dict[str, list[str]]()
    try:
        target = canonical(config)
    except NotRepresentable as error:
        raise ValueError(f"no class of transformers has words for this model: none for {error}") from None
    with torch.device("meta"):
        model = Transformer(config)
    for family in FAMILIES:
        start = {"architectures": [family.architecture], "model_type": family.model_type, **dict.fromkeys(IDS)}
        try:
            written = {**start, **family.write(config), "dtype": "float32"}
        except NotRepresentable as error:
            wordless[family.model_type] = [str(error)]
            continue
        places = slices_of(model, family.names, family.transforms)
        names = {place.name for parts in places.values() for place in parts}
        homeless = [ours for ours, parts in places.items() if not parts]
        back = canonical(family.read(Fields(written, family.model_type), names))
        changed = [path for path, _, _ in differences(to_dict(target), to_dict(back))]
        if not changed and not homeless:
            return family, written
        misses[family.model_type] = changed or homeless
    by_reason: dict[str, list[str]] = {}
    for name, fields in [*sorted(misses.items(), key=lambda item: len(item[1])), *wordless.items()]:
        by_reason.setdefault(", ".join(fields), []).append(name)
    said = "; ".join(
        f"{', '.join(names)}: none for {reason}"
        for reason, names in by_reason.items()
        if reason not in ("encoder", "decoder")
    )
    raise ValueError(f"no class of transformers has words for this model: {said}")


def exportable(config: Model) -> str | None:
    """The class of transformers that a model can be written for; None if there is none."""
    if not isinstance(config, ModelConfig):
        return None
    try:
        return str(family_of(config)[1]["architectures"][0])
    except ValueError:
        return None


def write_folder(model: Transformer, folder: Path, extra: Mapping[str, object] | None = None) -> str:
    """Write config.json and safetensors that transformers reads; gives the class that does.

    extra: further fields for config.json, such as the ids of special tokens. Raises ValueError naming the fields that
    no family has words for.
    """
    family, written = family_of(model.config)
    folder.mkdir(parents=True, exist_ok=True)
    theirs: dict[str, Tensor] = {}
    places = slices_of(model, family.names, family.transforms)
    for ours, tensor in state_of(model).items():
        for place in places[ours]:
            theirs[place.name] = place.to_theirs(tensor.detach().cpu()).contiguous()
    _save_sharded(theirs, folder)
    text = json.dumps({**written, **(extra or {})}, indent=2)
    (folder / CONFIG).write_text(text + "\n", encoding="utf-8")
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
        save_file(shards[0], folder / WEIGHTS, metadata={"format": "pt"})
        return
    files = [f"model-{i:05}-of-{len(shards):05}.safetensors" for i in range(1, len(shards) + 1)]
    for shard, file in zip(shards, files, strict=True):
        save_file(shard, folder / file, metadata={"format": "pt"})
    index = {
        "metadata": {"total_size": sum(t.nbytes for t in tensors.values())},
        "weight_map": {name: file for shard, file in zip(shards, files, strict=True) for name in shard},
    }
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
