"""The accuracy of `isoform estimate`: parameters and FLOPs against the built model, memory against a real run.

python benchmarks/estimates.py input.txt
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace

import torch
from harness import isoform, save_results
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from isoform.model.config import Lookup, ModelConfig
from isoform.model.cost import Shape, num_parameters, training_flops
from isoform.model.parts import Experts
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


def is_counted(config: ModelConfig) -> bool:
    """Whether all stems look up tokens, and no feed-forward is of experts, whose shapes depend on numbers."""
    blocks = [block for stack in config.stacks for block in stack.blocks]
    has_experts = any(isinstance(block.feedforward, Experts) for block in blocks)
    return isinstance(config.stem, Lookup) and isinstance(config.encoder_stem, Lookup | None) and not has_experts


def counted(name: str) -> dict[str, object]:
    """A preset's parameters and FLOPs by arithmetic, and as torch counts them on the built model, without numbers."""
    config = replace(PRESETS[name].model, vocab_size=PRESETS[name].model.vocab_size or 65)
    length, has_source = min(256, config.context_length), config.encoder is not None and config.decoder is not None
    with FakeTensorMode(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model, tokens = Transformer(config), torch.zeros(2, length, dtype=torch.long)
        model(tokens, source=tokens if has_source else None).sum().backward()
    return {
        "num_parameters": num_parameters(config),
        "built_parameters": sum(p.numel() for p in model.parameters()),
        "flops": training_flops(config, Shape(2, length, length if has_source else 0)),
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
    names = [name for name, preset in PRESETS.items() if is_counted(preset.model)]
    save_results("estimates", {"presets": {name: counted(name) for name in names}, "memory": measured})


if __name__ == "__main__":
    main()
