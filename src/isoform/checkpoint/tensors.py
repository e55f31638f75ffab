"""Tensors under other libraries' names: which slice of ours each of theirs is, and the model that they make.

A table of names maps ours to theirs; `#` is the index of a block, `*` weight or bias, `@` the index of an expert,
and `[a|b]` are tensors that are concatenated along the rows in ours.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import assert_never

import torch
from torch import Tensor

from isoform.model.component import groups_of, row_dim, rows_of_parts
from isoform.model.config import ModelConfig, Pooled
from isoform.model.cost import num_parameters
from isoform.model.network import Network
from isoform.model.parts import Rotary
from isoform.model.transformer import Transformer


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file: its name there, the file, its shape, and the function that reads it."""

    name: str
    where: str
    shape: tuple[int, ...]
    read: Callable[[], Tensor]


@dataclass(frozen=True)
class Transposed:
    """Theirs is the transpose of ours."""


@dataclass(frozen=True)
class UnusedRows:
    """Theirs begins with `count` unused rows."""

    count: int


@dataclass(frozen=True)
class Reshaped:
    """Theirs has the same values in another shape, which `shape` returns; `order`: of theirs, the dimensions in the
    order in which ours has them one after the other."""

    shape: Callable[[ModelConfig], tuple[int, ...]]
    order: tuple[int, ...] = ()


@dataclass(frozen=True)
class Grouped:
    """Theirs is a fused matrix with its rows in the order of ours, group by group."""


@dataclass(frozen=True)
class Interleaved:
    """Of their queries and keys, the features that turn together are neighbours; in ours they are half of the turned
    features apart."""


MOST_EXPERTS = 10_000


def renamed(tensors: Mapping[str, StoredTensor], names: Mapping[str, str]) -> dict[str, StoredTensor]:
    """The tensors under other names of theirs: `names` maps patterns of those in the file to patterns of those wanted.

    What the file stacks over experts, and over the tensors in brackets along the rows, is cut; a tensor whose shape
    isn't that of such a stack keeps its name.
    """
    whole = lru_cache(maxsize=1)(lambda tensor: tensor.read())
    cut: dict[str, StoredTensor] = {}
    for name, tensor in tensors.items():
        number, pattern = re.search(r"\.(\d+)\.", name), re.sub(r"\.\d+\.", ".#.", name)
        front, _, leaf = pattern.rpartition(".")
        wanted = names.get(pattern) or names.get(f"{front}.*", name)
        wanted = wanted.replace("#", number[1] if number else "").replace("*", leaf)
        if "@" not in wanted or len(tensor.shape) != 3 or tensor.shape[0] > MOST_EXPERTS:
            cut[name if "@" in wanted else wanted] = tensor
            continue
        bracket = re.search(r"\[(.*)\]", wanted)
        parts = [wanted] if bracket is None else [wanted.replace(bracket[0], part) for part in bracket[1].split("|")]
        experts, rows = tensor.shape[0], tensor.shape[1] // len(parts)
        for expert, (i, part) in itertools.product(range(experts), enumerate(parts)):
            read = partial(_cut, whole, tensor, expert, slice(i * rows, (i + 1) * rows))
            cut[part.replace("@", str(expert))] = replace(tensor, shape=(rows, *tensor.shape[2:]), read=read)
    return cut


def _cut(whole: Callable[[StoredTensor], Tensor], tensor: StoredTensor, expert: int, rows: slice) -> Tensor:
    return whole(tensor)[expert, rows]


Transform = Transposed | UnusedRows | Reshaped | Grouped | Interleaved
"""How a tensor of theirs differs from ours."""


@dataclass(frozen=True)
class TensorSlice:
    """A tensor of theirs as a slice of one of ours: its name and shape in their file, `index` in ours (empty: all)."""

    name: str
    shape: tuple[int, ...]
    index: tuple[int | slice | Tensor, ...] = ()
    transform: Transform | None = None

    def to_ours(self, theirs: Tensor) -> Tensor:
        """Their tensor in our layout, except for the shape if it is reshaped."""
        match self.transform:
            case Reshaped(order=order) if order:
                return theirs.permute(order)
            case None | Reshaped() | Grouped() | Interleaved():
                return theirs
            case Transposed():
                return theirs.T
            case UnusedRows(count):
                return theirs[count:]
            case _:
                assert_never(self.transform)

    def to_theirs(self, ours: Tensor) -> Tensor:
        """Their tensor, cut from ours."""
        part = ours[self.index]
        match self.transform:
            case Reshaped(order=order) if order:
                inverse = [order.index(i) for i in range(len(order))]
                return part.reshape([self.shape[i] for i in order]).permute(inverse)
            case None | Reshaped() | Grouped() | Interleaved():
                return part.reshape(self.shape)
            case Transposed():
                return part.T
            case UnusedRows(count):
                return torch.cat([part.new_zeros(count, *part.shape[1:]), part])
            case _:
                assert_never(self.transform)


def state_of(model: Network) -> dict[str, Tensor]:
    """The model's tensors by name, a tied table once."""
    state = dict(model.state_dict())
    if is_tied(model):
        del state["head.weight"]
    return state


def is_tied(model: Network) -> bool:
    """Whether the head uses the stem's table."""
    head = model.config.head
    return not isinstance(head, Pooled) and head.tied


def build_empty(config: ModelConfig, tensors: Mapping[str, StoredTensor], where: str) -> Transformer:
    """The model on the meta device, without memory. Raises ValueError if the files hold too few numbers for it."""
    size, available = num_parameters(config), sum(math.prod(tensor.shape) for tensor in tensors.values())
    if size > 2 * available + 10**6:
        raise ValueError(
            f"{where} describes {size:,} parameters, but the files hold {available:,} numbers; they differ"
        )
    with torch.device("meta"):
        return Transformer(config)


def slices_of(
    model: Transformer, names: Mapping[str, str], transforms: Mapping[str, Transform] | None = None
) -> dict[str, list[TensorSlice]]:
    """Their tensors that make up each of ours; an empty list for one that the table has no name for."""
    transforms, groups, config = transforms or {}, groups_of(model), model.config
    return {
        ours: list(_slices(names, transforms, ours, tensor, groups.get(ours, ()), config))
        for ours, tensor in state_of(model).items()
    }


def _slices(
    names: Mapping[str, str],
    transforms: Mapping[str, Transform],
    ours: str,
    tensor: Tensor,
    group: tuple[int, ...],
    config: ModelConfig,
) -> Iterator[TensorSlice]:
    shape = tuple(tensor.shape)
    number, pattern = re.search(r"\.(\d+)\.", ours), re.sub(r"\.\d+\.", ".#.", ours)
    front, leaf = pattern.rsplit(".", 1)
    theirs = names.get(pattern) or names.get(f"{front}.*")
    if theirs is None:
        return
    theirs = theirs.replace("#", number[1] if number else "").replace("*", leaf)
    transform = transforms.get(pattern)
    match transform:
        case None:
            yield from _parts(theirs, tensor, group)
        case Grouped():
            yield TensorSlice(theirs, shape, transform=transform)
        case Interleaved():
            query, key, *rest = _parts(theirs, tensor, group)
            order = _interleaved(config)
            for part in (query, key):
                (rows,) = part.index
                assert isinstance(rows, Tensor)
                yield TensorSlice(part.name, part.shape, (rows.view(-1, len(order))[:, order].flatten(),), transform)
            yield from rest
        case Transposed():
            index = (torch.cat(rows_of_parts(tensor, group)),) if group else ()
            yield TensorSlice(theirs, shape[::-1], index, transform)
        case UnusedRows(count):
            yield TensorSlice(theirs, (shape[0] + count, *shape[1:]), transform=transform)
        case Reshaped():
            yield TensorSlice(theirs, transform.shape(config), transform=transform)
        case _:
            assert_never(transform)


def _interleaved(config: ModelConfig) -> Tensor:
    """For each feature of a head of theirs, that of ours."""
    (stack,) = config.stacks
    attention, position = stack.blocks[0].attention, stack.position
    turned = config.rotated_dim(attention, position) if isinstance(position, Rotary) else 0
    pairs = torch.arange(turned).view(2, -1).T.flatten()
    return torch.cat([pairs, torch.arange(turned, config.head_dim(attention))])


def _parts(theirs: str, ours: Tensor, group: tuple[int, ...]) -> Iterator[TensorSlice]:
    """The slices of one tensor of ours; theirs may be concatenated along the rows, with experts stacked as in ours."""
    bracket, shape = re.search(r"\[(.*)\]", theirs), tuple(ours.shape)
    names = [theirs] if bracket is None else [theirs.replace(bracket[0], part) for part in bracket[1].split("|")]
    rows: list[Tensor] | list[slice] = rows_of_parts(ours, group) if group else [slice(None)]
    if group and len(names) == 1:
        rows = [torch.cat(rows_of_parts(ours, group))]
    above, total, inputs = shape[: row_dim(ours)], shape[row_dim(ours)], shape[row_dim(ours) + 1 :]
    for name, part in zip(names, rows, strict=True):
        count = len(part) if isinstance(part, Tensor) else total
        if "@" in name:
            for expert in range(shape[0]):
                yield TensorSlice(name.replace("@", str(expert)), (count, *inputs), (expert, part))
        else:
            yield TensorSlice(name, (*above, count, *inputs), (*[slice(None)] * len(above), part))


def fill(
    model: Transformer,
    slices: Mapping[str, list[TensorSlice]],
    tensors: Mapping[str, StoredTensor],
    dtype: torch.dtype | None = torch.float32,
) -> Transformer:
    """The empty model with their values in this dtype (None: as stored), in evaluation mode.

    Raises ValueError naming the tensor for values that are not finite, or not floating-point.
    """
    state = {ours: _assemble(slices[ours], target.shape, tensors, dtype) for ours, target in state_of(model).items()}
    shared = {"head.weight": state["stem.embedding.weight"]} if is_tied(model) else {}
    model.load_state_dict({**state, **shared}, assign=True)
    if is_tied(model):
        model.tie()
    return model.requires_grad_(True).eval()


def _assemble(
    slices: list[TensorSlice], shape: torch.Size, tensors: Mapping[str, StoredTensor], dtype: torch.dtype | None
) -> Tensor:
    """One of our tensors from theirs, read one by one."""
    whole: Tensor | None = None
    for slice_ in slices:
        part = slice_.to_ours(_read(tensors[slice_.name], dtype))
        whole = torch.empty(shape, dtype=part.dtype) if whole is None else whole
        whole[slice_.index] = part.reshape(shape) if isinstance(slice_.transform, Reshaped) else part
    assert whole is not None
    return whole


def _read(source: StoredTensor, dtype: torch.dtype | None) -> Tensor:
    tensor, what = source.read(), f"{source.where}: the tensor {source.name!r}"
    if not tensor.is_floating_point():
        raise ValueError(f"{what} holds {tensor.dtype}, not floating-point numbers")
    tensor = tensor if dtype is None else tensor.to(dtype)
    if not bool(tensor.isfinite().all()):
        raise ValueError(f"{what} has NaN or infinite values")
    return tensor
