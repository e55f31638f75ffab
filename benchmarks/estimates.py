"""The accuracy of `isoform estimate`: parameters and FLOPs against the built model, memory against a real run.

python benchmarks/estimates.py input.txt
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace

import torch
from harness import isoform, save_results
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from isoform.model.cost import Shape, num_parameters, training_flops
from isoform.model.presets import PRESETS
from isoform.model.transformer import Transformer

MEMORY = {
    "small": [],
    "wide": ["--model.model_dim", "512", "--training.global_batch_tokens", "8192"],
    "deep": ["--model.decoder.num_layers", "12", "--training.global_batch_tokens", "16384"],
    "adamw": ["--training.optimizer.kind", "adamw", "--model.model_dim", "768"],
    "micro-batches": [
        "--model.model_dim", "512", "--training.global_batch_tokens", "16384", "--training.micro_batch_size", "16",
    ],
}  # fmt: skip


def counted(name: str) -> dict[str, object]:
    """A preset's parameters and FLOPs by arithmetic, and as torch counts them on the built model."""
    config = replace(PRESETS[name].model, vocab_size=PRESETS[name].model.vocab_size or 65)
    model, length = Transformer(config), min(256, config.context_length)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(torch.zeros(2, length, dtype=torch.long)).sum().backward()
    return {
        "num_parameters": num_parameters(config),
        "built_parameters": sum(p.numel() for p in model.parameters()),
        "flops": training_flops(config, Shape(2, length)),
        "counted_flops": counter.get_total_flops(),
    }


def memory(path: str, flags: list[str], folder: str) -> dict[str, object]:
    """Bytes estimated, and the peak of a process that trains three steps."""
    recipe = ["tinyshakespeare", "--data.path", path, *flags]
    estimate = isoform("estimate", *recipe)["memory"]
    run = isoform("train", *recipe, "--training.steps", "3", "--out", folder)
    estimated = sum(estimate.values())
    return {
        "estimated_bytes": estimated,
        "measured_bytes": run["peak_memory_bytes"],
        "error": estimated / run["peak_memory_bytes"] - 1,
        "lines": estimate,
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("path")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measured = {n: memory(options.path, flags, f"{folder}/{n}") for n, flags in MEMORY.items()}
    save_results("estimates", {"presets": {name: counted(name) for name in PRESETS}, "memory": measured})


if __name__ == "__main__":
    main()
