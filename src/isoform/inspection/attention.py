"""Attention weights of a model: of a text to itself, of an output to its source; and a figure of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from isoform.batch import Batch, Encoding, Example, Tokens, collate
from isoform.codecs.codec import Codec
from isoform.config import kind_of
from isoform.figures import FAINT, INK, literal, to_png
from isoform.inspection.rows import token_names
from isoform.mask import Mask
from isoform.model.auxiliary import Auxiliary
from isoform.model.recording import recorder_of
from isoform.model.transformer import Transformer
from isoform.objectives.views import View

MOST_TOKENS = 128
"""Tokens in a figure; more can't be told apart."""
MOST_PANELS = 256
"""Beyond it the heads of a layer are averaged."""
LABELLED = 40
"""Tokens up to which they are written beside the panels, where that leaves the figure smaller than `LARGEST`."""
LARGEST = 24.0
"""Inches of the panels in a row or a column."""
TOKEN = 0.15
"""Inches of a token that is written."""
KINDS = {"encoder": "encoder.blocks.*.mixer", "decoder": "decoder.blocks.*.mixer", "cross": "decoder.blocks.*.cross"}
"""Whose attention: the encoder's and the decoder's tokens' to those of their own stack, the decoder's to the source."""


@torch.inference_mode()
def attention_weights(
    model: Transformer,
    inputs: Tokens | Tensor,
    mask: Mask | None = None,
    source: Tokens | Tensor | None = None,
    source_mask: Mask | None = None,
    kinds: Sequence[str] = tuple(KINDS),
) -> dict[str, dict[int, Tensor]]:
    """Attention weights of these `KINDS` in one row, as far as the model has them: by kind and layer (from 0), (heads,
    queries, keys).

    inputs: (1, T) of the decoder, or of a lone encoder; source: (1, S) of the encoder before a decoder. With joint
    attention the keys of the decoder are the source's tokens, then its own. Raises ValueError for a model without any.
    """
    model.eval()
    recorder = recorder_of([f"{KINDS[kind]}.weights" for kind in kinds])
    model.hidden(inputs, mask, source, source_mask, Auxiliary(recorder=recorder))
    by_kind: dict[str, dict[int, Tensor]] = {}
    for name, weights in recorder.tensors.items():
        stack, _, layer, part, _ = name.split(".")
        by_kind.setdefault("cross" if part == "cross" else stack, {})[int(layer)] = weights[0].float().cpu()
    if not by_kind:
        mixers = ", ".join({kind_of(type(block.mixer)): 0 for stack in model.config.stacks for block in stack.blocks})
        raise ValueError(f"this model has no attention to draw: its mixers are {mixers}; name another one")
    return by_kind


def row_of(ids: np.ndarray, prefix: int = 0, source: np.ndarray | None = None) -> Batch:
    """A row of ids (T,), of which the first `prefix` are given, and a source (S,)."""
    nothing = np.zeros(len(ids), np.int64)
    behind = None if source is None else Encoding(source)
    example = Example(Encoding(ids, prefix), nothing, nothing.astype(np.float32), behind)
    return collate([[example]], len(ids), None if source is None else len(source))


def first_tokens(tokens: Tokens, most: int = MOST_TOKENS) -> Tokens:
    """The first tokens of a row, without padding."""
    shape, old = tokens.ids.shape, tokens.coordinates
    end = min(most, int((old.document.expand(shape) >= 0).sum()))

    def cut(tensor: Tensor) -> Tensor:
        return tensor.expand(*shape, *tensor.shape[2:])[:, :end]

    coordinates = replace(old.map(cut), start=old.start, is_ordered=old.is_ordered)
    optional = (None if t is None else cut(t) for t in (tokens.features, tokens.token_types))
    return Tokens(tokens.ids[:, :end], coordinates, None, *optional)


def cross_attention(
    model: Transformer,
    source: np.ndarray,
    inputs: np.ndarray,
    mask: Mask | None = None,
    source_mask: Mask | None = None,
) -> Tensor:
    """Attention weights of the decoder's tokens, inputs (T,), over the tokens of a source (S,): (layers, heads, T, S).

    mask: the decoder's (default: causal); source_mask: the encoder's (default: full). Raises ValueError for a model
    without separate cross-attention.
    """
    if model.decoder is None or model.config.decoder is None or model.config.decoder.cross != "separate":
        raise ValueError("this model has no cross-attention to inspect; it needs decoder.cross = 'separate'")
    ids, source_ids = (torch.as_tensor(each.astype(np.int64), device=model.device)[None] for each in (inputs, source))
    return torch.stack([*attention_weights(model, ids, mask, source_ids, source_mask, ["cross"])["cross"].values()])


@dataclass(frozen=True, eq=False)
class Map:
    """Attention of one kind, to be drawn."""

    title: str
    layers: Mapping[int, Tensor]
    """By layer (from 0), (heads, queries, keys)."""
    queries: Sequence[str]
    keys: Sequence[str]
    names: tuple[str, str] = ("attending token", "attended token")


TITLES = {
    "encoder": "attention of the encoder",
    "decoder": "attention of the decoder",
    "cross": "attention to the source",
}


def maps_of(
    model: Transformer,
    batch: Batch,
    view: View,
    codec: Codec,
    *,
    outputs: Sequence[str] = (),
    kinds: Sequence[str] = tuple(KINDS),
) -> list[Map]:
    """The attention in a row's first tokens: of the encoder, of the decoder, of the decoder to the encoder.

    outputs: what follows each token of the decoder, by which the rows of the last are named.
    """
    inputs = first_tokens(batch.inputs).to(model.device)
    source = None if batch.source is None else first_tokens(batch.source).to(model.device)
    weights = attention_weights(model, inputs, view.inputs_mask, source, view.source_mask, kinds)
    own = token_names(codec, inputs)
    behind = [] if source is None else token_names(codec, source)
    maps = []
    for kind, layers in weights.items():
        queries = behind if kind == "encoder" and source is not None else own
        keys, names = queries, ("attending token", "attended token")
        if kind == "cross":
            queries, keys, names = [*outputs][: len(own)] or own, behind, ("token of the output", "token of the source")
        elif kind == "decoder" and next(iter(layers.values())).shape[-1] == len(behind) + len(own):
            keys = [*behind, *own]  # joint attention
        maps.append(Map(TITLES[kind], layers, queries, keys, names))
    return maps


def draw_attention(maps: Sequence[Map]) -> bytes:
    """A PNG of attention maps one below the other: for each a row of panels per layer, a panel per head, with the
    tokens beside them where they can be read, and a scale of the weights."""
    from matplotlib.figure import Figure

    maps = [_with_mean_heads(each) for each in maps]
    sizes = [_size(each) for each in maps]
    figure = Figure(figsize=(max(w for w, _ in sizes), sum(h for _, h in sizes)), layout="constrained")
    parts = figure.subfigures(len(maps), 1, squeeze=False, height_ratios=[height for _, height in sizes])
    for part, each in zip(parts[:, 0], maps, strict=True):
        _draw_map(part, each)
    return to_png(figure)


def _with_mean_heads(each: Map) -> Map:
    """The map, with the mean of each layer's heads if there would be too many panels."""
    if sum(map(len, each.layers.values())) <= MOST_PANELS:
        return each
    means = {layer: weights.mean(0, keepdim=True) for layer, weights in each.layers.items()}
    return Map(f"{each.title}, mean of the heads", means, each.queries, each.keys, each.names)


def _is_labelled(tokens: Sequence[str], panels: int) -> bool:
    return len(tokens) <= LABELLED and panels * TOKEN * len(tokens) <= LARGEST


def _side(tokens: Sequence[str], panels: int) -> float:
    """Inches of each panel in a row or a column of them."""
    if _is_labelled(tokens, panels):
        return max(1.3, TOKEN * len(tokens))
    return min(2.2, max(0.8, LARGEST / panels))


def _margin(tokens: Sequence[str], panels: int) -> float:
    """Inches for the tokens beside the panels."""
    return 0.08 * min(14, max(map(len, tokens), default=0)) if _is_labelled(tokens, panels) else 0.0


def _size(each: Map) -> tuple[float, float]:
    """Width and height of a map, in inches."""
    rows, columns = _shape(each)
    return (
        max(4.5, columns * _side(each.keys, columns) + 1.6 + _margin(each.queries, rows)),
        rows * (_side(each.queries, rows) + 0.25) + 0.9 + _margin(each.keys, columns),
    )


def _shape(each: Map) -> tuple[int, int]:
    """Layers, and the most heads of one."""
    return len(each.layers), max(map(len, each.layers.values()))


def _draw_map(figure, each: Map) -> None:
    rows, columns = _shape(each)
    panels = figure.subplots(rows, columns, squeeze=False)
    top = max(float(weights.max()) for weights in each.layers.values())
    image = None
    for row, (layer, weights) in enumerate(each.layers.items()):
        for column, axes in enumerate(panels[row]):
            if column >= len(weights):
                axes.set_axis_off()
                continue
            shown = weights[column]
            image = axes.imshow(shown.numpy(), cmap="Blues", vmin=0, vmax=top, aspect="auto")
            head = f"head {column + 1}" if columns > 1 else ""
            axes.set_title(f"layer {layer + 1}{', ' if head else ''}{head}", fontsize=8, color=INK)
            axes.tick_params(length=0, labelsize=7, labelcolor=INK)
            axes.spines[:].set_color(FAINT)
            _set_tokens(axes.yaxis, each.queries, len(shown), rows, is_outer=column == 0)
            _set_tokens(axes.xaxis, each.keys, shown.shape[1], columns, is_outer=row == rows - 1, rotation=90)
    figure.suptitle(each.title, fontsize=10, color=INK)
    figure.supylabel(each.names[0], fontsize=9, color=INK)
    figure.supxlabel(each.names[1], fontsize=9, color=INK)
    width, height = _size(each)
    room = {"fraction": 0.3 / width, "pad": 0.01, "shrink": min(1.0, 4 / height), "aspect": 25, "anchor": (0, 1)}
    scale = figure.colorbar(image, ax=panels.ravel().tolist(), **room)
    scale.set_label("attention weight", fontsize=8, color=INK)
    scale.ax.tick_params(labelsize=7, labelcolor=INK, color=FAINT)


def _set_tokens(axis, tokens: Sequence[str], count: int, panels: int, *, is_outer: bool, rotation: int = 0) -> None:
    """The tokens along an axis if they can be read, and none is left out of a block; else their numbers. Between panels
    nothing."""
    if not is_outer:
        axis.set_ticks([])
    elif len(tokens) == count and _is_labelled(tokens, panels):
        axis.set_ticks(range(count), [literal(token, 14) for token in tokens], rotation=rotation)
