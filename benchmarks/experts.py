"""Eight experts of which two are active, and the dense feed-forward with the same FLOPs, interleaved.

    python benchmarks/experts.py [--rounds 15]

Width 256, 2,048 tokens in 8 rows; each expert is half as wide as the dense feed-forward. Seconds are of forward and
backward together, of the feed-forward alone and of a whole block with causal attention; one token is forward alone.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace

import torch
from harness import in_turn, ratios, save_results, summary
from torch import nn

from isoform.batch import plain_tokens
from isoform.machine import choose_machine
from isoform.mask import Causal
from isoform.model.config import BlockConfig, ModelConfig, StackConfig
from isoform.model.experts import Auxiliary
from isoform.model.parts import Dense, Experts, FeedForward, Gated, TokenChoice
from isoform.model.transformer import Transformer

DIM, ROWS, LENGTH, TOKENS_PER_CALL = 256, 8, 256, 50
ROUTER = TokenChoice(num_active=2, balance_loss=0.01, z_loss=0.001)
KINDS: dict[str, tuple[Dense | Gated, int]] = {"gated": (Gated(), 688), "dense": (Dense(), 1024)}


def built(feedforward: FeedForward, dtype: torch.dtype) -> Transformer:
    """A decoder of one block."""
    torch.manual_seed(0)
    stack = StackConfig(num_layers=1, blocks=(BlockConfig(feedforward=feedforward),), final_norm=False)
    config = ModelConfig(model_dim=DIM, context_length=LENGTH, vocab_size=8, decoder=stack)
    model = Transformer(config)
    model.set_matmul_dtype(dtype)
    return model


def steps(model: Transformer, *, is_whole: bool) -> Callable[[], None]:
    """Forward and backward of the block, or of its feed-forward alone."""
    assert model.decoder is not None
    decoder, coordinates = model.decoder, plain_tokens(torch.zeros(ROWS, LENGTH, dtype=torch.long)).coordinates
    stream, feedforward = torch.randn(ROWS, LENGTH, DIM), decoder.blocks[0].feedforward
    has_experts = isinstance(model.config.stacks[0].blocks[0].feedforward, Experts)

    def work() -> None:
        x, auxiliary = stream.detach().requires_grad_(), Auxiliary()
        model.zero_grad(set_to_none=True)
        if is_whole:
            out = decoder(x, coordinates, Causal(), auxiliary=auxiliary)
        else:
            out = feedforward(x, None, auxiliary) if has_experts else feedforward(x)
        losses = list(auxiliary.losses.values())
        torch.autograd.backward([out, *losses], [stream, *map(torch.ones_like, losses)])

    return work


def tokens(feedforward: nn.Module) -> Callable[[], None]:
    """One token at a time through a feed-forward."""
    token = torch.randn(1, 1, DIM)

    @torch.inference_mode()
    def work() -> None:
        for _ in range(TOKENS_PER_CALL):
            feedforward(token)

    return work


def saved_bytes(work: Callable[[], None]) -> int:
    """The bytes that autograd saves between forward and backward, without parameters."""
    storages: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if not isinstance(tensor, nn.Parameter):
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        work()
    return sum(storages.values())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    choose_machine("cpu")  # sets how freed memory is reused and subnormals are flushed, as in training
    results: dict[str, object] = {}
    for dtype in (torch.float32, torch.bfloat16):
        for kind, (expert, width) in KINDS.items():
            half = Experts(num_experts=8, expert=replace(expert, feedforward_dim=width // 2), router=ROUTER)
            models = {
                "dense": built(replace(expert, feedforward_dim=width), dtype),
                "experts": built(half, dtype),
            }
            of_expert: dict[str, object] = {}
            for part, is_whole in (("feedforward", False), ("block", True)):
                works = {name: steps(model, is_whole=is_whole) for name, model in models.items()}
                seconds = in_turn(works, rounds=options.rounds, warm_up=3)
                of_expert[part] = {
                    **{f"{name}_milliseconds": summary([1e3 * s for s in seconds[name]]) for name in works},
                    "times_dense": ratios(seconds, "dense", "experts"),
                    "kept_mib": {name: round(saved_bytes(work) / 2**20, 1) for name, work in works.items()},
                }
            alone = {name: tokens(model.decoder.blocks[0].feedforward.eval()) for name, model in models.items()}
            seconds = in_turn(alone, rounds=options.rounds, warm_up=3)
            of_expert["one_token_microseconds"] = {
                name: summary([1e6 * s / TOKENS_PER_CALL for s in seconds[name]]) for name in alone
            }
            results[f"{kind}, {str(dtype).removeprefix('torch.')}"] = of_expert
    save_results("experts", {"experts": 8, "active": 2, "width": DIM, "tokens": ROWS * LENGTH, **results})


if __name__ == "__main__":
    main()
