"""The peer: a plain Hugging Face training loop of the well-known small CPU recipe.

GPT-2 of 4 layers, width 128, 4 heads, context 64, batch 12, 2,000 steps of fused AdamW with warm-up and cosine, no
dropout; in float32, or under autocast to bfloat16, and optionally compiled, which is done before the clock starts.
Prints one JSON object.

    python benchmarks/peer_training.py input.txt [--form "bfloat16 compiled"] [--learning-rate 1e-3] [--seed 0]
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel

FORMS = ("float32", "float32 compiled", "bfloat16", "bfloat16 compiled")
"""How a plain loop can be made to run: bfloat16 is torch's autocast, compiled is torch.compile."""
CONTEXT, BATCH, STEPS = 64, 12, 2000


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


def build_optimizer(model: PreTrainedModel, *, beta2: float, rate: float = 1e-3) -> torch.optim.Optimizer:
    """AdamW as torch has it fastest, which decays matrices alone."""
    decayed = [p for p in model.parameters() if p.dim() >= 2]
    rest = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=rate, betas=(0.9, beta2), fused=True)


def backward(loss: Callable[..., torch.Tensor], form: str, *, has_one_shape: bool = True) -> Callable[..., None]:
    """A function that adds the gradients of a loss of its arguments, in one of FORMS.

    Arguments whose shapes vary are compiled for, once, rather than anew for each shape.
    """
    compiled = torch.compile(loss, dynamic=not has_one_shape) if "compiled" in form else loss

    def run(*arguments: object) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled="bfloat16" in form):
            value = compiled(*arguments)
        value.backward()

    return run


def update(model: PreTrainedModel, optimizer: torch.optim.Optimizer) -> None:
    """Clip the gradients and take a step."""
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def random_rows(ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs and targets of a batch."""
    starts = torch.randint(len(ids) - CONTEXT - 1, (BATCH,))
    rows = torch.stack([ids[s : s + CONTEXT + 1] for s in starts.tolist()])
    return rows[:, :-1], rows[:, 1:]


def mean_loss(model: PreTrainedModel, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The mean loss of a causal model."""
    return torch.nn.functional.cross_entropy(model(input_ids=inputs).logits.flatten(0, 1), targets.flatten())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("path", type=Path)
    parser.add_argument("--form", choices=FORMS, default="float32")
    parser.add_argument("--steps", type=int, default=STEPS)
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
    optimizer = build_optimizer(model, beta2=0.99, rate=options.learning_rate)
    step_backward = backward(partial(mean_loss, model), options.form)
    step_backward(*random_rows(train))
    optimizer.zero_grad(set_to_none=True)
    start = time.perf_counter()
    for step in range(options.steps):
        warm = min(1.0, (step + 1) / 100)
        factor = warm * (0.1 + 0.45 * (1 + math.cos(math.pi * min(1.0, step / STEPS))))
        for group in optimizer.param_groups:
            group["lr"] = options.learning_rate * factor
        step_backward(*random_rows(train))
        update(model, optimizer)
    seconds = time.perf_counter() - start
    print(
        json.dumps(
            {
                "seed": options.seed,
                "steps": options.steps,
                "form": options.form,
                "learning_rate": options.learning_rate,
                "num_parameters": model.num_parameters(),
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
