"""Greedy decoding of one row: isoform and transformers' generate on the same weights, interleaved.

python benchmarks/decoding.py [--rounds 5] [--tokens 200]
"""

from __future__ import annotations

import argparse
from dataclasses import replace

import numpy as np
import torch
from harness import in_turn, ratios, save_results, summary

from isoform.generation.config import Sampling
from isoform.generation.constraints import Constraints
from isoform.generation.decode import Prompt, decode_loop
from isoform.generation.sampling import Sampler
from isoform.model.config import ModelConfig
from isoform.model.cost import num_parameters
from isoform.model.decoders import GPT2
from isoform.model.transformer import Transformer

from peers import gpt2_twin  # isort: skip

SIZES = {"0.8M": (4, 128, 4), "10.7M": (6, 384, 6)}


def sized(num_layers: int, dim: int, heads: int) -> ModelConfig:
    """GPT-2 of this size over 65 tokens and a context of 256."""
    assert GPT2.decoder is not None
    block = GPT2.decoder.blocks[0]
    block = replace(block, mixer=replace(block.attention, num_heads=heads, dropout=0.0))
    decoder = replace(GPT2.decoder, num_layers=num_layers, blocks=(block,))
    return replace(GPT2, model_dim=dim, context_length=256, vocab_size=65, dropout=0.0, decoder=decoder)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=200)
    options = parser.parse_args()
    prompt = np.arange(16) % 65
    results = {}
    for name, size in SIZES.items():
        torch.manual_seed(0)
        model = Transformer(sized(*size)).eval()
        twin, ids = gpt2_twin(model), torch.from_numpy(prompt)[None]
        sampling = Sampling(max_tokens=options.tokens, temperature=0)
        outputs: dict[str, list[int]] = {}

        def ours(model=model, sampling=sampling, outputs=outputs) -> None:
            steps = decode_loop(model, [Prompt(prompt)], Sampler(sampling, [0], Constraints()))
            outputs["isoform"] = [token for step, _ in steps for _, token in step.chosen]

        def ours_rounded(model=model, ours=ours, outputs=outputs) -> None:
            model.set_matmul_dtype(torch.bfloat16)
            ours()
            model.set_matmul_dtype(torch.float32)
            outputs["bfloat16"] = outputs["isoform"]

        def theirs(twin=twin, ids=ids, outputs=outputs) -> None:
            mask = torch.ones_like(ids)
            out = twin.generate(
                ids, attention_mask=mask, do_sample=False, max_new_tokens=options.tokens, pad_token_id=0
            )
            outputs["transformers"] = out[0, 16:].tolist()

        seconds = in_turn({"bfloat16": ours_rounded, "isoform": ours, "transformers": theirs}, rounds=options.rounds)
        results[name] = {
            "num_parameters": num_parameters(model.config),
            "tokens_per_second": {who: summary([options.tokens / s for s in times]) for who, times in seconds.items()},
            "times_transformers": {who: ratios(seconds, who, "transformers") for who in ("isoform", "bfloat16")},
            "equal_outputs": {who: outputs[who] == outputs["transformers"] for who in ("isoform", "bfloat16")},
        }
    save_results("decoding", results)


if __name__ == "__main__":
    main()
