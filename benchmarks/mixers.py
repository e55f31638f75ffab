"""Tokens per second of each mixer, forward and backward, by length of the row: attention and recurrent mixers.

python benchmarks/mixers.py [--rounds 5]

Four blocks of width 256 with gated feed-forwards, 8,192 tokens at once in rows of one length, float32; the mixers are
interleaved.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from harness import in_turn, ratios, save_results, summary

from isoform.model.config import BlockConfig, ModelConfig, StackConfig
from isoform.model.parts import LSTM, Attention, CausalConvolution, Gated, LinearRecurrence, Mixer, RMSNorm
from isoform.model.transformer import Transformer

LENGTHS = (512, 2048, 8192)
TOKENS, VOCAB = 8192, 256
RECURRENCE, ATTENTION = LinearRecurrence(), Attention(num_heads=4)
MIXERS: dict[str, tuple[Mixer, ...]] = {
    "attention": (ATTENTION,),
    "linear_recurrence": (RECURRENCE,),
    "3 linear_recurrence : 1 attention": (RECURRENCE, RECURRENCE, RECURRENCE, ATTENTION),
    "causal_convolution": (CausalConvolution(),),
    "lstm": (LSTM(),),
}


def work(mixers: tuple[Mixer, ...], length: int) -> Callable[[], float]:
    """A function that runs one forward and backward pass and returns its seconds."""
    torch.manual_seed(0)
    blocks = tuple(BlockConfig(mixer=mixer, feedforward=Gated(), norm=RMSNorm(scale=False)) for mixer in mixers)
    decoder = StackConfig(num_layers=4, blocks=blocks)
    model = Transformer(ModelConfig(model_dim=256, context_length=length, vocab_size=VOCAB, decoder=decoder))
    text = torch.randint(VOCAB, (TOKENS // length, length))

    def run() -> float:
        model.zero_grad()
        start = time.perf_counter()
        torch.nn.functional.cross_entropy(model(text).flatten(0, 1), text.flatten()).backward()
        return time.perf_counter() - start

    return run


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    rounds, values = parser.parse_args().rounds, dict[str, object]()
    for length in LENGTHS:
        seconds = in_turn({name: work(mixers, length) for name, mixers in MIXERS.items()}, rounds=rounds)
        values[str(length)] = {
            name: {
                "tokens_per_second": summary([TOKENS / s for s in times]),
                "times_attention": ratios(seconds, name, "attention"),
            }
            for name, times in seconds.items()
        }
    save_results("mixers", {"tokens": TOKENS, "lengths": values})


if __name__ == "__main__":
    main()
