"""Training speed of one model with one optimizer: ours and a plain Hugging Face loop, interleaved.

    python benchmarks/training.py [--rounds 5] [--steps 60]

The classic recipe: GPT-2 of 4 layers, width 128, 4 heads, context 64, batch 12, fused AdamW, clipping. Both sides make
their batches from the same ids, and run in each of FORMS; compilation happens before the clock starts.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from harness import beside_the_best, in_turn, save_results, training_steps
from peer_training import BATCH, CONTEXT, FORMS, backward, build_model, build_optimizer, mean_loss, random_rows, update

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


def our_steps(ids: np.ndarray, steps: int, form: str) -> Callable[[], float]:
    """A function that runs `steps` complete steps of our trainer."""
    machine = choose_machine("cpu", form.split()[0])
    torch.manual_seed(0)
    model = Transformer(classic())
    model.set_matmul_dtype(machine.dtype)
    if "compiled" in form:
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


def their_steps(ids: np.ndarray, steps: int, form: str) -> Callable[[], float]:
    """The plain loop."""
    torch.manual_seed(0)
    model, text = build_model(VOCAB), torch.from_numpy(ids.astype(np.int64))
    optimizer, add_gradients = build_optimizer(model, beta2=0.99), backward(partial(mean_loss, model), form)

    def work() -> float:
        start = time.perf_counter()
        for _ in range(steps):
            add_gradients(*random_rows(text))
            update(model, optimizer)
        return time.perf_counter() - start

    return work


SIDES = {"transformers": their_steps, "isoform": our_steps}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=60)
    options = parser.parse_args()
    choose_machine("cpu")  # before any thread starts, as a process that trains does, so that all flush subnormals
    ids = np.random.default_rng(0).integers(0, VOCAB, 200_000).astype(np.uint16)
    works = {f"{who} {form}": steps(ids, options.steps, form) for form in FORMS for who, steps in SIDES.items()}
    seconds = in_turn(works, rounds=options.rounds)
    default = str(choose_machine("cpu").dtype).removeprefix("torch.")
    save_results("training", {"default": default, **beside_the_best(seconds, options.steps * BATCH * CONTEXT)})


if __name__ == "__main__":
    main()
