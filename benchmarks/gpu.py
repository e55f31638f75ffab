"""GPT-2 124M on a CUDA device: tokens/s and utilisation of the measured peak, compared with a plain Hugging Face loop.

    python benchmarks/gpu.py [--rounds 5] [--steps 20] [--batch 16]

Both train in bfloat16 autocast with fused AdamW on random tokens; ours compiles its blocks, as it does by default on
CUDA. `--device cpu --layers 2 --width 64 --context 64` tries the script without a GPU.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace

import torch
from harness import in_turn, ratios, save_results, summary
from transformers import GPT2Config, GPT2LMHeadModel

from isoform.machine import Machine, choose_machine, measured_peaks
from isoform.model.config import ModelConfig
from isoform.model.cost import Shape, training_flops
from isoform.model.decoders import GPT2
from isoform.model.transformer import Transformer
from isoform.objectives.losses import weighted_cross_entropy
from isoform.training.config import AdamW
from isoform.training.optimizer import build_optimizers


def shaped(layers: int, width: int, context: int) -> ModelConfig:
    """GPT-2 without dropout, of this shape."""
    assert GPT2.decoder is not None
    block = GPT2.decoder.blocks[0]
    block = replace(block, mixer=replace(block.attention, num_heads=width // 64 or 1, dropout=0.0))
    decoder = replace(GPT2.decoder, num_layers=layers, blocks=(block,))
    return replace(GPT2, model_dim=width, context_length=context, dropout=0.0, decoder=decoder)


def stepper(
    machine: Machine, optimizer: torch.optim.Optimizer, loss: Callable[[], torch.Tensor], steps: int
) -> Callable[[], None]:
    """A function that runs `steps` training steps."""

    def work() -> None:
        for _ in range(steps):
            with torch.autocast(machine.device.type, torch.bfloat16):
                value = loss()
            value.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        machine.synchronize()

    return work


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--context", type=int, default=1024)
    options = parser.parse_args()
    machine = choose_machine(options.device, "bfloat16")
    config = shaped(options.layers, options.width, options.context)
    shape = (options.batch, options.context)
    ids = torch.randint(config.vocab_size, (options.batch, options.context + 1), device=machine.device)
    weights = torch.ones(shape, device=machine.device)

    ours = Transformer(config).to(machine.device)
    ours.compile_blocks()
    (our_optimizer,) = build_optimizers(AdamW(learning_rate=6e-4), ours)

    def our_loss() -> torch.Tensor:
        return weighted_cross_entropy(ours(ids[:, :-1]), ids[:, 1:], weights).total / weights.numel()

    theirs = GPT2LMHeadModel(
        GPT2Config(
            n_layer=options.layers,
            n_embd=options.width,
            n_head=options.width // 64 or 1,
            n_positions=options.context,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            use_cache=False,
        )
    ).to(machine.device)
    their_optimizer = torch.optim.AdamW(theirs.parameters(), lr=6e-4, fused=True)

    def their_loss() -> torch.Tensor:
        logits = theirs(input_ids=ids[:, :-1]).logits
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten())

    works = {
        "isoform": stepper(machine, our_optimizer, our_loss, options.steps),
        "transformers": stepper(machine, their_optimizer, their_loss, options.steps),
    }
    seconds = in_turn(works, rounds=options.rounds)
    tokens, peak = options.steps * weights.numel(), measured_peaks(machine).matmul
    flops = options.steps * training_flops(config, Shape(*shape))
    save_results(
        f"gpu-{machine.device.type}",
        {
            "shape": {"layers": options.layers, "width": options.width, "rows": shape[0], "context": shape[1]},
            "tokens_per_second": {name: summary([tokens / s for s in times]) for name, times in seconds.items()},
            "utilisation": {name: summary([flops / s / peak for s in times]) for name, times in seconds.items()},
            "measured_peak_flops": peak,
            "times_transformers": ratios(seconds, "isoform", "transformers"),
        },
        device=options.device,
    )


if __name__ == "__main__":
    main()
