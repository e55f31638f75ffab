"""The peer: a plain Hugging Face training loop of the well-known small CPU recipe.

GPT-2 of 4 layers, width 128, 4 heads, context 64, batch 12, 2,000 steps of AdamW with warm-up and cosine; no
dropout, no compilation. Prints one JSON object.

    python benchmarks/peer_training.py input.txt [--steps 2000] [--learning-rate 1e-3] [--seed 0]
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import numpy as np
import torch
from transformers import GPT2Config, GPT2LMHeadModel

CONTEXT, BATCH = 64, 12


def build_model(vocab_size: int) -> GPT2LMHeadModel:
    """The recipe's model as transformers builds it."""
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=vocab_size,
            n_positions=CONTEXT,
            n_embd=128,
            n_layer=4,
            n_head=4,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            use_cache=False,
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("path", type=Path)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    text = options.path.read_text(encoding="utf-8")
    alphabet = sorted(set(text))
    ids = torch.tensor(np.searchsorted(np.array(alphabet), np.array(list(text))))
    cut = int(0.9 * len(ids))
    train, validation = ids[:cut], ids[cut:]
    torch.manual_seed(options.seed)
    model = build_model(len(alphabet))
    decayed = [p for p in model.parameters() if p.dim() >= 2]
    not_decayed = [p for p in model.parameters() if p.dim() < 2]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": not_decayed, "weight_decay": 0.0}],
        lr=options.learning_rate,
        betas=(0.9, 0.99),
    )
    start = time.perf_counter()
    for step in range(options.steps):
        warm = min(1.0, (step + 1) / 100)
        factor = warm * (0.1 + 0.45 * (1 + math.cos(math.pi * min(1.0, step / 2000))))
        for group in optimizer.param_groups:
            group["lr"] = options.learning_rate * factor
        starts = torch.randint(len(train) - CONTEXT - 1, (BATCH,))
        rows = torch.stack([train[s : s + CONTEXT + 1] for s in starts.tolist()])
        logits = model(input_ids=rows[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    seconds = time.perf_counter() - start
    print(
        json.dumps(
            {
                "seed": options.seed,
                "steps": options.steps,
                "learning_rate": options.learning_rate,
                "train_seconds": seconds,
                "tokens_per_second": options.steps * BATCH * CONTEXT / seconds,
                "validation_loss": validation_loss(model, validation),
            }
        )
    )


@torch.inference_mode()
def validation_loss(model: GPT2LMHeadModel, ids: torch.Tensor) -> float:
    """Mean nats in non-overlapping windows of the context, each target once."""
    model.eval()
    total = torch.nn.functional.cross_entropy
    nats = 0.0
    for start in range(0, len(ids) - 1, CONTEXT * 64):
        chunk = ids[start : start + CONTEXT * 64 + 1]
        whole = (len(chunk) - 1) // CONTEXT * CONTEXT
        for inputs, targets in (
            (chunk[:whole].view(-1, CONTEXT), chunk[1 : whole + 1].view(-1, CONTEXT)),
            (chunk[whole:-1].unsqueeze(0), chunk[whole + 1 :].unsqueeze(0)),
        ):
            if targets.numel():
                logits = model(input_ids=inputs).logits
                nats += total(logits.flatten(0, 1), targets.flatten(), reduction="sum").item()
    return nats / (len(ids) - 1)


if __name__ == "__main__":
    main()
