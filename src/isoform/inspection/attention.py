"""Where a model looks: the weights of its attention as they are used, and a picture of them."""

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
    """How each token that the decoder reads, inputs (T,), asks the tokens of a source (S,): (layers, heads, T, S).

    mask: the decoder's (absent: causal); source_mask: the encoder's (absent: full). Raises ValueError for a model
    without cross-attention of its own.
    """
    if model.decoder is None or model.config.decoder is None or model.config.decoder.cross != "separate":
        raise ValueError("this model has no cross-attention to look at; it needs decoder.cross = 'separate'")
    model.eval()
    ids, asked = (torch.as_tensor(each.astype(np.int64), device=model.device).unsqueeze(0) for each in (source, inputs))
    recorder = recorder_of(["decoder.blocks.*.cross.weights"])
    model.decode(asked, mask, model.encode(ids, source_mask), auxiliary=Auxiliary(recorder=recorder))
    return torch.stack([one[0].float().cpu() for one in recorder.tensors.values()])


def draw_attention(weights: Tensor, rows: Sequence[str], columns: Sequence[str]) -> bytes:
    """Weights (layers, heads, T, S) as a PNG, a panel for each layer, the mean of its heads: what is said goes down,
    what is read across."""
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
