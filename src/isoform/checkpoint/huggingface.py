"""Hugging Face folders, read and written: config.json and safetensors to a model and back, by the tables of families/.

Shapes are checked before a tensor is read, sizes before memory is allocated; nothing is unpickled and no code that a
folder names is run.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Mapping
from contextlib import ExitStack
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from isoform.checkpoint.families.canonical import ABSENT, canonical, changes
from isoform.checkpoint.families.family import Family, NotRepresentable
from isoform.checkpoint.families.registry import FAMILIES
from isoform.checkpoint.families.unsupported import REASONS
from isoform.checkpoint.store import tensor_chunks
from isoform.checkpoint.tensors import StoredTensor, TensorSlice, build_empty, fill, renamed, slices_of, state_of
from isoform.files import make_folder, write_chunks, write_text
from isoform.model.baseline_config import Model
from isoform.model.config import ModelConfig
from isoform.model.transformer import Transformer
from isoform.reading import check_safetensors, read_json

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json", "model.ckpt", "tf_model.h5", "flax_model.msgpack")
SHARD = 5 * 10**9
"""Bytes of tensors per file; beyond that another file is started."""
WITHOUT_EFFECT = {
    "_attn_implementation", "_name_or_path", "_sliding_window_pattern", "adapters", "architectures", "auto_map",
    "bad_words_ids", "begin_suppress_tokens", "cache_implementation", "chunk_size_feed_forward",
    "classifier_proj_size", "deterministic_flash_attn", "diversity_penalty", "do_sample", "dtype", "early_stopping",
    "encoder_no_repeat_ngram_size", "encoder_stride", "exponential_decay_length_penalty", "finetuning_task",
    "gradient_checkpointing", "id2label", "initializer_cutoff_factor", "initializer_factor", "initializer_range",
    "init_std", "is_encoder_decoder", "label2id", "length_penalty", "mask_feature_length", "mask_feature_min_masks",
    "mask_feature_prob", "mask_time_length", "mask_time_min_masks", "mask_time_prob", "max_length",
    "median_filter_width", "min_length", "model_type", "no_repeat_ngram_size", "num_beam_groups", "num_beams",
    "num_labels", "num_return_sequences", "output_attentions", "output_hidden_states",
    "output_past", "output_router_logits", "output_scores", "pooler_act", "pooler_output_size", "prefix",
    "pretraining_tp", "problem_type", "reference_compile", "remove_invalid_values", "reorder_and_upcast_attn",
    "repetition_penalty", "return_dict", "return_dict_in_generate", "router_jitter_noise", "sinusoidal_pos_embds",
    "sparse_prediction", "sparse_pred_ignore_index", "summary_activation", "summary_proj_to_labels", "summary_type",
    "summary_use_proj",
    "suppress_tokens", "task_specific_params", "temperature", "tie_encoder_decoder", "tokenizer_class", "top_k",
    "top_p", "torch_dtype", "torchscript", "transformers_version", "typical_p", "use_bfloat16", "use_cache",
    "use_weighted_layer_sum", "apply_spec_augment",
}  # fmt: skip
"""Fields that no class computes its outputs with: how to train, to generate or to store a model."""
WITHOUT_EFFECT_BY_NAME = re.compile(r"_token_ids?$|(^|_)p?drop(out)?(_|$)|layerdrop$")
_REFUSED = {
    "quantization_config": "give a folder whose tensors are floating-point numbers",
    "per_layer_config": "give a folder whose layers have the same sizes",
}
"""Fields that every class reads, and what to do about them."""
WRAPPERS = ("module.", "_orig_mod.", "transformer.", "model.")
"""Prefixes that DistributedDataParallel, torch.compile and other modules put before the names of a whole model."""
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
        tensors = {_full_name(family, name): tensor for name, tensor in _unwrapped(family, tensors).items()}
        tensors = renamed(tensors, family.newer_names)
        _leave_aside(tensors, family, config, str(folder))
        _tie(tensors, family, config, where)
        absent = _absent(family, config)
        model = build_empty(read_config(family, config, set(tensors), where), tensors, where + absent)
        slices = slices_of(model, family.names_of(model.config), family.transforms)
        _check(slices, tensors, where, absent)
        return fill(model, slices, tensors, dtype)


def _open(folder: Path, stack: ExitStack) -> dict[str, StoredTensor]:
    """All tensors of a folder's files: of the single file if there are others, too, as by transformers."""
    if (folder / WEIGHTS).is_file():
        file_of, files = {}, [WEIGHTS]
        if (folder / INDEX).is_file():
            warnings.warn(f"{folder / WEIGHTS} is read, not the files that {INDEX} names", stacklevel=3)
    elif (folder / INDEX).is_file():
        file_of = read_json(folder / INDEX).get("weight_map")
        if not isinstance(file_of, dict) or not all(isinstance(f, str) for f in file_of.values()):
            raise ValueError(f"{folder / INDEX} has no weight_map from tensors to files")
        files = sorted(set(file_of.values()))
        outside = [f for f in files if Path(f).name != f or f in (".", "..")]
        if outside:
            raise ValueError(f"{folder / INDEX} points outside its folder: {outside[0]!r}; nothing was read")
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
    for name, remedy in _REFUSED.items():
        if config.get(name):
            raise ValueError(f"{where}: {name} is not supported; {remedy}")
    fields = family.fields_of(config, where)
    try:
        model_config = family.read(fields, names)
    except (ValueError, TypeError, OverflowError) as error:
        raise ValueError(str(error) if str(error).startswith(where) else f"{where}: {error}") from error
    unknown = sorted(
        name
        for name, value in fields.values.items()
        if value
        and name not in family.fields
        and name not in WITHOUT_EFFECT
        and not WITHOUT_EFFECT_BY_NAME.search(name)
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
    if str(kind) in REASONS:
        raise ValueError(f"{where}: model_type={kind!r} is not supported: {REASONS[str(kind)]}")
    model_types = ", ".join(family.model_type for family in FAMILIES)
    raise ValueError(f"{where}: model_type={kind!r} is not supported (known: {model_types})")


def _unwrapped(family: Family, tensors: dict[str, StoredTensor]) -> dict[str, StoredTensor]:
    """The tensors without the prefixes of modules around the whole model."""
    while tensors:
        prefix = next(iter(tensors)).partition(".")[0] + "."
        is_whole = prefix != family.prefix or any(name.startswith(2 * prefix) for name in tensors)
        if prefix not in (*WRAPPERS, family.prefix) or not is_whole or not all(n.startswith(prefix) for n in tensors):
            break
        tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors


def _full_name(family: Family, name: str) -> str:
    """A tensor's name in the class with a head, as it is today: LayerNorm once had gamma and beta."""
    for before, today in ((".gamma", ".weight"), (".beta", ".bias")):
        name = name.removesuffix(before) + today if name.endswith(before) else name
    if not family.prefix or name.startswith(family.prefix):
        return name
    named = [*family.all_names, *family.newer_names, *family.ties, *family.ties.values()]
    named += [*family.redundant, *family.unused]
    modules = {theirs.split(".")[1] for theirs in named if theirs.startswith(family.prefix)}
    return family.prefix + name if name.split(".")[0] in modules else name


def _leave_aside(tensors: dict[str, StoredTensor], family: Family, config: Mapping[str, Any], where: str) -> None:
    """Remove the tensors that our model has no use for, and name in a warning those that hold parameters."""
    each = family.class_there(config, {*tensors})
    used = () if each is None else each.names.values()
    unused = [
        name
        for name in tensors
        if any(fnmatchcase(name, pattern) for pattern in family.unused)
        and not any(fnmatchcase(name, pattern) for pattern in used)
    ]
    if unused:
        warnings.warn(f"{where}: {_some(sorted(unused))} left aside, unused in this model", stacklevel=2)
    for name in [*unused, *(n for n in tensors if any(fnmatchcase(n, pattern) for pattern in family.redundant))]:
        del tensors[name]


def _tie(tensors: dict[str, StoredTensor], family: Family, config: dict, where: str) -> None:
    """Bring tied tensors under the names that the family reads, each once; one that differs stays, with a warning."""
    is_tied = family.always_tied or bool(family.ties and family.fields_of(config, where).get("tie_word_embeddings"))
    differing = []
    for source in dict.fromkeys(family.ties.values()) if is_tied else ():
        copies = [copy for copy, other in family.ties.items() if other == source]
        table = next((tensors[name] for name in (source, *copies) if name in tensors), None)
        if table is not None:
            differing += [copy for copy in copies if copy in tensors and not _are_equal(tensors[copy], table)]
            tensors |= {name: table for name in (source, *copies) if name not in differing}
    if differing:
        warnings.warn(
            f"{where} ties {', '.join(differing)} to {family.ties[differing[0]]}, but the files hold other values "
            f"there; they are taken as they are, as by transformers",
            stacklevel=2,
        )
    for copy, source in family.ties.items():
        read = family.read_name(source)
        if is_tied and copy != read and tensors.get(copy) is tensors.get(read):
            tensors.pop(copy, None)
    for source in {*family.ties.values()} - {*family.all_names}:
        tensors.pop(source, None)


def _are_equal(first: StoredTensor, second: StoredTensor) -> bool:
    return first.shape == second.shape and bool((first.read() == second.read()).all())


def _absent(family: Family, config: dict) -> str:
    """The sizes that a config.json lacks, in brackets, to be named where what it describes doesn't fit."""
    fields = family.fields_of(config, CONFIG)
    sizes = {name: size for name, size in family.fields.items() if type(size) is int and name not in fields.values}
    named = ", ".join(f"{name!r}: {size} by default" for name, size in sizes.items())
    return f" (lacks {named})" if named else ""


def _check(
    slices: Mapping[str, list[TensorSlice]],
    tensors: Mapping[str, StoredTensor],
    where: str,
    absent: str,
) -> None:
    """Raises ValueError naming the tensors that are missing, unexpected or of another shape."""
    shapes = {part.name: part.shape for parts in slices.values() for part in parts}
    missing = sorted(shapes.keys() - tensors.keys())
    if missing and missing == [part.name for part in slices.get("head.weight", ())]:
        raise ValueError(
            f"{where}: this is a base model without a head: {missing[0]} is missing, and tie_word_embeddings is false"
        )
    for stack in ("encoder", "decoder"):
        parts = [part.name for ours, parts in slices.items() if ours.startswith(f"{stack}.blocks.") for part in parts]
        if parts and not tensors.keys() & {*parts}:
            raise ValueError(f"{where} describes a model with {stack}, but the files hold no tensor of its blocks")
    if missing:
        raise ValueError(f"{where}: {_some(missing)} missing that its fields require")
    extra = sorted(tensors.keys() - shapes.keys())
    if extra:
        raise ValueError(
            f"{tensors[extra[0]].where}: {_some(extra)} there, but the fields of {CONFIG} don't describe them"
        )
    for name, shape in shapes.items():
        tensor = tensors[name]
        if tensor.shape != shape:
            raise ValueError(
                f"{tensor.where}: the tensor {tensor.name!r} has shape {list(tensor.shape)}, but the fields of "
                f"{CONFIG}{absent} require {list(shape)}"
            )


def _some(names: list[str]) -> str:
    if len(names) == 1:
        return f"the tensor {names[0]} is"
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"the tensors {', '.join(names[:3])}{more} are"


def family_of(config: ModelConfig, model_type: str | None = None) -> tuple[Family, dict]:
    """The family that a model belongs to, and its config.json. Raises ValueError naming the fields that prevent it.

    model_type: the one that is tried first, of several that fit.

    A family fits if reading the config that it wrote returns the same model; it reads what the class of transformers
    reads, and nothing else.
    """
    differing, refused = dict[str, list[str]](), dict[str, list[str]]()
    try:
        target = canonical(config)
    except NotRepresentable as error:
        raise ValueError(f"no class of transformers can represent this model: none has {error}") from None
    with torch.device("meta"):
        model = Transformer(config)
    for family in sorted(FAMILIES, key=lambda family: family.model_type != model_type):
        start = {"architectures": [family.architecture], "model_type": family.model_type, **dict.fromkeys(IDS)}
        try:
            written = {**start, **family.write(config), "dtype": "float32"}
            slices = slices_of(model, family.names_of(config), family.transforms)
            names = {part.name for parts in slices.values() for part in parts}
            back = canonical(family.read(family.fields_of(written, family.model_type), names))
        except ValueError as error:
            refused[family.model_type] = [f"no {error}" if str(error) not in ("encoder", "decoder") else str(error)]
            continue
        unnamed = [ours for ours, parts in slices.items() if not parts]
        reason = [*dict.fromkeys(changes(config, target, back))] or [f"no {name}" for name in unnamed]
        if not reason:
            return family, written
        differing[family.model_type] = reason
    raise ValueError(f"no class of transformers can represent this model: {_reasons(differing, refused)}")


def _reasons(differing: dict[str, list[str]], refused: dict[str, list[str]]) -> str:
    """What stands in the way of the nearest families, those that lack fewest of the fields that the config sets; with
    the first obstacle of the others if none is near."""
    fewest = min(map(_distance, differing.values()), default=(0, 0))
    shown = {name: fields for name, fields in differing.items() if _distance(fields) == fewest}
    if not shown or sum(fewest) > 2:
        shown |= {name: fields for name, fields in refused.items() if fields not in (["encoder"], ["decoder"])}
    families: dict[str, list[str]] = {}
    for name, fields in shown.items():
        more = f" and {len(fields) - 4} more" if len(fields) > 5 else ""
        families.setdefault(", ".join(fields[:4] if more else fields) + more, []).append(name)
    return "; ".join(f"{', '.join(names)}: {reason}" for reason, names in families.items())


def _distance(fields: list[str]) -> tuple[int, int]:
    """How many fields stand in the way, and how many of them are such that the config leaves out."""
    return len(fields), sum(field.startswith(ABSENT) for field in fields)


def exportable(config: Model) -> str | None:
    """The class of transformers that can represent a model; None if none can."""
    if not isinstance(config, ModelConfig):
        return None
    try:
        return str(family_of(config)[1]["architectures"][0])
    except ValueError:
        return None


def write_folder(model: Transformer, folder: Path, extra: Mapping[str, Any] | None = None) -> str:
    """Write config.json and safetensors for transformers; returns the name of the class that reads them.

    extra: further fields for config.json, such as the ids of special tokens; its `model_type` is taken where it fits.
    Raises ValueError naming the fields that no family can represent.
    """
    extra = dict(extra or {})
    model_type = extra.pop("model_type", None)
    family, written = family_of(model.config, model_type)
    if written["model_type"] == model_type:  # where its files leave out how texts begin and end, ours do
        written = {key: v for key, v in written.items() if key not in ("decoder_start_token_id", "eos_token_id")}
    make_folder(folder)
    theirs: dict[str, Tensor] = {}
    slices = slices_of(model, family.names_of(model.config), family.transforms)
    for ours, tensor in state_of(model).items():
        for part in slices[ours]:
            theirs[part.name] = part.to_theirs(tensor.detach().cpu()).contiguous()
    _name_copies(theirs, family, is_tied=family.always_tied or written.get("tie_word_embeddings", True))
    _save_sharded(theirs, folder)
    text = json.dumps({**written, **extra}, indent=2)
    write_text(folder / CONFIG, text + "\n")
    return written["architectures"][0]


def _name_copies(tensors: dict[str, Tensor], family: Family, *, is_tied: bool) -> None:
    """Of tied tensors the source alone; untied, all that the class has."""
    for source in dict.fromkeys(family.ties.values()):
        read = family.read_name(source)
        if read in tensors and read != source:
            tensors[source] = tensors.pop(read) if is_tied else tensors[read].clone()
    for copy, source in family.ties.items():
        if not is_tied and copy not in tensors:
            tensors[copy] = tensors[source].clone()


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
