"""Cross-attention weights of a model, and a figure of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from isoform.figures import new_panels, to_png
from isoform.mask import Mask
from isoform.model.auxiliary import Auxiliary
from isoform.model.recording import recorder_of
from isoform.model.transformer import Transformer


@torch.inference_mode()
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
    model.eval()
    source_ids, input_ids = (
        torch.as_tensor(each.astype(np.int64), device=model.device).unsqueeze(0) for each in (source, inputs)
    )
    recorder = recorder_of(["decoder.blocks.*.cross.weights"])
    model.decode(input_ids, mask, model.encode(source_ids, source_mask), auxiliary=Auxiliary(recorder=recorder))
    return torch.stack([weights[0].float().cpu() for weights in recorder.tensors.values()])


def draw_attention(weights: Tensor, rows: Sequence[str], columns: Sequence[str]) -> bytes:
    """A PNG of weights (layers, heads, T, S), averaged over heads, with a panel per layer: rows are output tokens,
    columns source tokens."""
    layers = weights.mean(1).numpy()
    side = 0.32 * max(len(columns), 5) + 0.5
    figure, panels = new_panels(len(layers), len(layers) * side + 0.9, 0.32 * len(rows) + 1.3)
    for number, (axes, layer) in enumerate(zip(panels, layers, strict=True)):
        axes.imshow(layer, cmap="Blues", vmin=0, vmax=1, aspect="auto")
        axes.set_title(f"layer {number + 1}", fontsize=10)
        axes.set_xticks(range(len(columns)), columns, rotation=60, ha="right", fontsize=9)
        axes.set_yticks(range(len(rows)), rows if number == 0 else [""] * len(rows), fontsize=9)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
    return to_png(figure)
