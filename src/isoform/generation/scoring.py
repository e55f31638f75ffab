"""A model's prediction for each token of a text."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from isoform.model.transformer import Transformer


@dataclass(frozen=True)
class TokenScore:
    """The model's prediction for one token: its probability (None for the first, which nothing precedes), its rank (1:
    the most probable), the entropy in bits, and the most probable tokens with their probabilities."""

    token: int
    probability: float | None
    rank: int | None
    entropy: float | None
    alternatives: list[tuple[int, float]]


@torch.inference_mode()
def score_tokens(model: Transformer, ids: np.ndarray, *, num_alternatives: int = 5) -> list[TokenScore]:
    """The model's prediction for each token of a text (T,), given the preceding ones.

    Texts longer than the context are read in windows that overlap by half, so that each token after the first half
    context is predicted from at least half a context.
    """
    model.eval()
    device, limit = model.device, model.config.context_length
    text = torch.as_tensor(np.asarray(ids, np.int64), device=device)
    steps = [TokenScore(int(text[0]), None, None, None, [])]
    begin = 0
    while len(steps) < len(text):
        window = text[begin : begin + limit]
        log_probabilities = model(window.unsqueeze(0))[0].float().log_softmax(-1)
        for index in range(len(steps) - 1 - begin, min(len(window), len(text) - begin - 1)):
            row, token = log_probabilities[index], int(text[begin + index + 1])
            top = row.topk(min(num_alternatives, len(row)))
            steps.append(
                TokenScore(
                    token,
                    float(row[token].exp()),
                    int((row > row[token]).sum()) + 1,
                    float(-(row.exp() * row).nan_to_num().sum() / np.log(2)),
                    list(zip(top.indices.tolist(), top.values.exp().tolist(), strict=True)),
                )
            )
        begin += max(1, limit // 2)
    return steps
