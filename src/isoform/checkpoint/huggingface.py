"""Hugging Face folders, in and out: config.json and safetensors to a model and back, by the tables of families.py.

Shapes are checked before a tensor is read, sizes before memory is taken; nothing is unpickled and no code named by a
folder is run.
"""

from __future__ import annotations

import json
import math
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from isoform.checkpoint.families import FAMILIES, Family, Fields, Unfit, canonical, known_types
from isoform.config import differences, to_dict
from isoform.model.baseline_config import Model
from isoform.model.config import Attention, BlockConfig, ModelConfig
from isoform.model.cost import num_parameters
from isoform.model.network import Network
from isoform.model.transformer import Transformer

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json", "model.ckpt", "tf_model.h5", "flax_model.msgpack")
SHARD = 5 * 10**9
"""Bytes of tensors from which a further file is begun."""
SILENT = {
    *("architectures", "auto_map", "dense_act_fn", "dtype", "encoder_stride", "id2label", "is_decoder", "is_gated_act"),
    *("is_encoder_decoder", "label2id", "layer_types", "max_window_layers", "median_filter_width", "model_type"),
    *("num_hidden_layers", "num_labels", "pooler_act", "pooler_output_size", "pretraining_tp", "problem_type"),
    *("return_dict", "task_specific_params", "torch_dtype", "transformers_version", "use_cache"),
    *("_name_or_path", "decoder_vocab_size", "sliding_window", "_attn_implementation", "deterministic_flash_attn"),
}
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


class Tensors:
    """Named tensors that lie somewhere: shapes without reading them, and reading one."""

    def __init__(
        self, shapes: Mapping[str, tuple[int, ...]], read: Mapping[str, Callable[[], Tensor]], where: Mapping[str, str]
    ) -> None:
        self.shapes, self._read, self._where = dict(shapes), read, where

    def where(self, name: str) -> str:
        """The file that a tensor is in."""
        return self._where[name]

    def read(self, name: str) -> Tensor:
        """One tensor. Raises ValueError for a damaged file."""
        try:
            return self._read[name]()
        except SafetensorError as error:
            raise ValueError(
                f"{self.where(name)}: the tensor {name!r} can't be read ({error}); copy it again"
            ) from error


@dataclass(frozen=True)
class Place:
    """Where a tensor of theirs lies in one of ours: `index` there, its shape in their file, how it is turned."""

    name: str
    index: tuple[int | slice, ...]
    shape: tuple[int, ...]
    form: str = ""


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
        return build(read_json(folder / CONFIG), tensors, str(folder / CONFIG), dtype=dtype)


def _open(folder: Path, stack: ExitStack) -> Tensors:
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
    shapes: dict[str, tuple[int, ...]] = {}
    readers: dict[str, Callable[[], Tensor]] = {}
    where: dict[str, str] = {}
    for file in files:
        path = folder / file
        if not path.is_file():
            raise ValueError(f"{folder / INDEX} names {file}, which is not there; copy it too")
        try:
            handle = stack.enter_context(safe_open(path, framework="pt"))
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path} is damaged or no safetensors file ({error}); copy it again") from error
        for name in handle.keys():  # noqa: SIM118 (no mapping)
            if name in shapes:
                raise ValueError(f"{path}: the tensor {name!r} is in {where[name]} too")
            shapes[name] = tuple(handle.get_slice(name).get_shape())
            readers[name], where[name] = partial(handle.get_tensor, name), str(path)
    lost = [name for name, file in named.items() if where.get(name) != str(folder / file)]
    if lost:
        raise ValueError(f"{folder / INDEX} says that {named[lost[0]]} has the tensor {lost[0]!r}, but it has not")
    return Tensors(shapes, readers, where)


def from_tensors(config: dict, tensors: Mapping[str, Tensor], where: str) -> Transformer:
    """A model from a config and tensors in memory, such as a GGUF file gives. Raises as read_folder does."""
    shapes = {name: tuple(t.shape) for name, t in tensors.items()}
    readers = {name: partial(_itself, t) for name, t in tensors.items()}
    return build(config, Tensors(shapes, readers, dict.fromkeys(tensors, where)), where)


def _itself(tensor: Tensor) -> Tensor:
    return tensor


def build(config: dict, tensors: Tensors, where: str, *, dtype: torch.dtype | None = torch.float32) -> Transformer:
    """The model of a config.json and its tensors."""
    family = _family_of(config, where)
    names = {_full(family, name): name for name in tensors.shapes}
    model_config = read_config(family, config, set(names), where)
    stated, there = num_parameters(model_config), sum(math.prod(shape) for shape in tensors.shapes.values())
    if stated > 2 * there + 10**6:
        raise ValueError(f"{where} describes {stated:,} parameters, but the files hold {there:,} numbers; they differ")
    with torch.device("meta"):
        model = Transformer(model_config)
    places = {name: list(_places(family, name, t, model_config)) for name, t in state_of(model).items()}
    _check(places, names, tensors, family, where)
    state = {}
    for ours, target in state_of(model).items():
        state[ours] = _assembled(places[ours], target.shape, names, tensors, dtype)
    shared = {"head.weight": state["stem.embedding.weight"]} if is_tied(model) else {}
    model.load_state_dict({**state, **shared}, assign=True)
    if is_tied(model):
        model.tie()
    return model.requires_grad_(True).eval()


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
    raise ValueError(f"{where}: model_type={kind!r} is not supported (known: {known_types()})")


def _full(family: Family, name: str) -> str:
    """A tensor's name as the class with a head has it."""
    if not family.prefix or name.startswith(family.prefix):
        return name
    beginnings = {theirs.split(".")[1] for theirs in family.names.values() if theirs.startswith(family.prefix)}
    beginnings |= {left.split(".")[1] for left in family.left if left.startswith(family.prefix)}
    return family.prefix + name if name.split(".")[0] in beginnings else name


def state_of(model: Network) -> dict[str, Tensor]:
    """The model's tensors by name, a tied table once."""
    state = dict(model.state_dict())
    if is_tied(model):
        del state["head.weight"]
    return state


def is_tied(model: Network) -> bool:
    """Whether the head uses the stem's table."""
    return getattr(model.config.head, "tied", False)


def _places(family: Family, ours: str, tensor: Tensor, config: ModelConfig) -> Iterator[Place]:
    """Where the parts of one of our tensors lie in their files; nothing for one that they have no name for."""
    shape = tuple(tensor.shape)
    for pattern, theirs in family.names.items():
        match = re.fullmatch(_regex(pattern), ours)
        if match is None:
            continue
        for key, value in match.groupdict().items():
            theirs = theirs.replace("#" if key == "layer" else "*", value)
        form = family.form.get(pattern, family.form.get(re.sub(r"\.\d+\.", ".#.", ours), ""))
        if callable(form):
            yield Place(theirs, (), form(config), "reshaped")
            return
        if form == "transposed":
            yield Place(theirs, (), shape[::-1], form)
            return
        if form == "two unused rows":
            yield Place(theirs, (), (shape[0] + 2, *shape[1:]), form)
            return
        parts = re.search(r"\[(.*)\]", theirs)
        names = [theirs] if parts is None else [theirs.replace(parts[0], part) for part in parts[1].split("|")]
        is_stacked = "@" in theirs
        rows = _rows(ours, shape[1 if is_stacked else 0], len(names), config)
        for expert in range(shape[0]) if is_stacked else (None,):
            begin = 0
            for name, count in zip(names, rows, strict=True):
                here = slice(begin, begin + count)
                if expert is None:
                    yield Place(name, (here,), (count, *shape[1:]))
                else:
                    yield Place(name.replace("@", str(expert)), (expert, here), (count, *shape[2:]))
                begin += count
        return


def _regex(pattern: str) -> str:
    return re.escape(pattern).replace(r"\#", r"(?P<layer>\d+)").replace(r"\*", r"(?P<leaf>weight|bias)")


def _rows(ours: str, total: int, num_parts: int, config: ModelConfig) -> list[int]:
    """How many rows of ours each part has."""
    if num_parts == 1:
        return [total]
    if ".mixer." not in ours and ".cross." not in ours:
        return [total // num_parts] * num_parts
    stack = config.encoder if ours.startswith("encoder.") else config.decoder
    assert stack is not None
    block: BlockConfig = config.layers(stack)[int(ours.split(".")[2])]
    attention: Attention = block.attention
    kv = (attention.num_kv_heads or attention.num_heads) * config.head_dim(block.attention)
    return [total - kv * (num_parts - 1), *[kv] * (num_parts - 1)] if ".mixer." in ours else [kv] * num_parts


def _check(
    places: Mapping[str, list[Place]], names: Mapping[str, str], tensors: Tensors, family: Family, where: str
) -> None:
    """Raises ValueError naming what is missing, superfluous or of another shape."""
    wanted = {place.name: place.shape for parts in places.values() for place in parts}
    missing = sorted(wanted.keys() - names.keys())
    if missing:
        raise ValueError(f"{where}: {_some(missing, 'tensor', 'tensors')} missing that its fields ask for")
    extra = sorted(name for name in names.keys() - wanted.keys() if not any(fnmatchcase(name, p) for p in family.left))
    if extra:
        file = tensors.where(names[extra[0]])
        raise ValueError(
            f"{file}: {_some(extra, 'tensor', 'tensors')} there that the fields of {CONFIG} don't speak of"
        )
    for name, shape in wanted.items():
        if (there := tensors.shapes[names[name]]) != shape:
            raise ValueError(
                f"{tensors.where(names[name])}: the tensor {names[name]!r} has shape {list(there)}, but the fields of "
                f"{CONFIG} ask for {list(shape)}"
            )


def _some(names: list[str], one: str, many: str) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"the {one if len(names) == 1 else many} {', '.join(names[:3])}{more} {'is' if len(names) == 1 else 'are'}"


def _assembled(
    places: list[Place], shape: torch.Size, names: Mapping[str, str], tensors: Tensors, dtype: torch.dtype | None
) -> Tensor:
    """One of our tensors from theirs. Raises ValueError for numbers that are not finite, or not floating."""
    whole: Tensor | None = None
    for place in places:
        name = names[place.name]
        part = tensors.read(name)
        if not part.is_floating_point():
            raise ValueError(f"{tensors.where(name)}: the tensor {name!r} holds {part.dtype}, not floating numbers")
        part = part if dtype is None else part.to(dtype)
        if not bool(part.isfinite().all()):
            raise ValueError(f"{tensors.where(name)}: the tensor {name!r} has NaN or infinite numbers in it")
        part = {"transposed": lambda t: t.T, "two unused rows": lambda t: t[2:]}.get(place.form, lambda t: t)(part)
        if len(places) == 1:
            return part.reshape(shape).contiguous().clone()
        whole = torch.empty(shape, dtype=part.dtype) if whole is None else whole
        whole[place.index] = part
    assert whole is not None
    return whole


def family_of(config: ModelConfig) -> tuple[Family, dict]:
    """The family that a model belongs to, and its config.json. Raises ValueError naming the fields that prevent it.

    A family fits if reading what it wrote gives the same model again.
    """
    misses, wordless = dict[str, list[str]](), dict[str, list[str]]()
    try:
        target = canonical(config)
    except Unfit as error:
        raise ValueError(f"no class of transformers has words for this model: none for {error}") from None
    with torch.device("meta"):
        state = state_of(Transformer(config))
    for family in FAMILIES:
        start = {"architectures": [family.architecture], "model_type": family.model_type, **dict.fromkeys(IDS)}
        try:
            written = {**start, **family.write(config), "dtype": "float32"}
        except Unfit as error:
            wordless[family.model_type] = [str(error)]
            continue
        names, homeless = set(), []
        for ours, tensor in state.items():
            places = list(_places(family, ours, tensor, config))
            names |= {place.name for place in places}
            homeless += [] if places else [ours]
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

    extra: further fields for config.json, such as the ids of special pieces. Raises ValueError naming the fields that
    no family has words for.
    """
    family, written = family_of(model.config)
    folder.mkdir(parents=True, exist_ok=True)
    theirs: dict[str, Tensor] = {}
    for ours, tensor in state_of(model).items():
        if ".ahead." in ours:
            continue  # what only training asks for
        for place in _places(family, ours, tensor, model.config):
            part = tensor.detach().cpu()[place.index]
            if place.form == "transposed":
                part = part.T
            elif place.form == "two unused rows":
                part = torch.cat([part.new_zeros(2, *part.shape[1:]), part])
            theirs[place.name] = part.reshape(place.shape).contiguous()
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
