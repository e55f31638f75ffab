"""Training speed of one model with one optimizer: ours and a plain Hugging Face loop, interleaved.

    python benchmarks/training.py [--rounds 5] [--steps 60]

The classic recipe: GPT-2 of 4 layers, width 128, 4 heads, context 64, batch 12, AdamW, clipping. Both sides make
their batches from the same ids and start from equal weights.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from harness import in_turn, ratios, save_results, summary, training_steps
from peer_training import BATCH, CONTEXT, build_model

from isoform.batch import GlobalBatch
from isoform.data.loader import StreamLoader
from isoform.machine import choose_machine
from isoform.model.config import ModelConfig
from isoform.model.decoders import GPT2
from isoform.model.transformer import Transformer
from isoform.objectives.losses import weighted_cross_entropy
from isoform.training.config import AdamW
from isoform.training.optimizer import build_optimizers

VOCAB = 65


def classic() -> ModelConfig:
    """The classic recipe's model."""
    assert GPT2.decoder is not None
    block = GPT2.decoder.blocks[0]
    block = replace(block, mixer=replace(block.attention, num_heads=4, dropout=0.0))
    decoder = replace(GPT2.decoder, num_layers=4, blocks=(block,))
    return replace(GPT2, model_dim=128, context_length=CONTEXT, vocab_size=VOCAB, dropout=0.0, decoder=decoder)


def our_steps(ids: np.ndarray, steps: int, dtype: str, *, compile: bool = False) -> Callable[[], float]:
    """A function that runs `steps` complete steps of our trainer."""
    machine = choose_machine("cpu", dtype)
    torch.manual_seed(0)
    model = Transformer(classic())
    model.set_matmul_dtype(machine.dtype)
    if compile:
        model.compile_blocks()
    optimizers = build_optimizers(AdamW(beta2=0.99), model, machine.dtype)
    loader = StreamLoader(ids, CONTEXT, 0)
    return training_steps(
        model,
        optimizers,
        machine,
        lambda step: GlobalBatch([loader.rows(step * BATCH, BATCH)], BATCH * CONTEXT),
        lambda b: weighted_cross_entropy(model(b.inputs), b.targets, b.loss_weights),
        steps,
    )


def their_steps(ids: np.ndarray, steps: int) -> Callable[[], float]:
    """The plain loop."""
    torch.manual_seed(0)
    model, text = build_model(VOCAB), torch.from_numpy(ids.astype(np.int64))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.99), weight_decay=0.1)

    def work() -> float:
        start = time.perf_counter()
        for _ in range(steps):
            starts = torch.randint(len(text) - CONTEXT - 1, (BATCH,))
            rows = torch.stack([text[s : s + CONTEXT + 1] for s in starts.tolist()])
            logits = model(input_ids=rows[:, :-1]).logits
            torch.nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten()).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return time.perf_counter() - start

    return work


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=60)
    options = parser.parse_args()
    choose_machine("cpu")  # before any thread starts, as a process that trains does, so that all flush subnormals
    ids = np.random.default_rng(0).integers(0, VOCAB, 200_000).astype(np.uint16)
    works = {
        "peer": their_steps(ids, options.steps),
        "float32": our_steps(ids, options.steps, "float32"),
        "float32 compiled": our_steps(ids, options.steps, "float32", compile=True),
        "auto": our_steps(ids, options.steps, "auto"),
        "auto compiled": our_steps(ids, options.steps, "auto", compile=True),
    }
    seconds = in_turn(works, rounds=options.rounds)
    tokens = options.steps * BATCH * CONTEXT
    save_results(
        "training",
        {
            "tokens_per_second": {name: summary([tokens / s for s in times]) for name, times in seconds.items()},
            "times_the_peer": {name: ratios(seconds, name, "peer") for name in works if name != "peer"},
            "auto_format": str(choose_machine("cpu").dtype),
        },
    )


if __name__ == "__main__":
    main()
