"""Small models for tests, with parameters drawn wide enough that a mistake shows."""

from dataclasses import replace

import torch
from torch import nn

from isoform.mask import FixedSparse, Strided, Window
from isoform.model.config import BlockConfig, Lookup, ModelConfig, StackConfig, Vocabulary
from isoform.model.norm import ZeroCenteredRMSNorm
from isoform.model.parts import (
    LSTM,
    ALiBi,
    Attention,
    Buckets,
    CausalConvolution,
    Dense,
    Depth,
    Experts,
    Gated,
    LayerNorm,
    Learned,
    LinearRecurrence,
    RMSNorm,
    Rotary,
    Shaw,
    Sinusoidal,
    TokenChoice,
)
from isoform.model.transformer import Transformer

VOCAB = 13


def config(*, block: BlockConfig | None = None, num_layers: int = 2, **fields) -> ModelConfig:
    """A decoder of width 16 and context 12; the fields of a stack go to it, the rest to the model."""
    of_stack = ("position", "final_norm", "input_norm", "first_norm", "loops", "exits")
    stack = {name: fields.pop(name) for name in of_stack if name in fields}
    decoder = StackConfig(num_layers=num_layers, blocks=(block or BlockConfig(),), **stack)
    return ModelConfig(**{"model_dim": 16, "context_length": 12, "vocab_size": VOCAB, "decoder": decoder, **fields})


def pair(decoder: ModelConfig) -> ModelConfig:
    """The same as an encoder-decoder."""
    assert decoder.decoder is not None
    encoder = replace(decoder.decoder, exits=())
    return replace(decoder, encoder=encoder, decoder=replace(decoder.decoder, cross="separate"))


def attention(**fields) -> BlockConfig:
    """A block with this attention."""
    return BlockConfig(mixer=Attention(**fields))


FORMS: dict[str, ModelConfig] = {
    "plain": config(),
    "gpt2": config(
        block=BlockConfig(mixer=Attention(bias=True), feedforward=Dense(activation="gelu_tanh", bias=True)),
        position=Learned(),
        head=Vocabulary(tied=True),
    ),
    "sinusoidal": config(position=Sinusoidal(), stem=Lookup(scale=True)),
    "no position": config(position=None),
    "grouped": config(block=attention(num_heads=4, num_kv_heads=2)),
    "multi-query": config(block=attention(num_heads=4, num_kv_heads=1, qk_norm=RMSNorm(scale=False))),
    "wide heads": config(block=attention(num_heads=2, head_dim=12)),
    "gated": config(block=BlockConfig(feedforward=Gated(), norm=RMSNorm())),
    "glu": config(block=BlockConfig(feedforward=Gated(activation="sigmoid"))),
    "bilinear": config(block=BlockConfig(feedforward=Gated(activation="linear"))),
    "relu2": config(block=BlockConfig(feedforward=Dense(activation="relu2"), norm=RMSNorm(scale=False))),
    "post": config(block=BlockConfig(norm_placement="post"), final_norm=False),
    "reordered": config(block=BlockConfig(norm_placement="reordered", norm=RMSNorm())),
    "sandwich": config(block=BlockConfig(norm_placement="sandwich")),
    "shortcuts": config(block=BlockConfig(mixer=Attention(value_shortcut=True), x0_shortcut=True), num_layers=3),
    "previous token": config(stem=Lookup(previous=True, norm=RMSNorm(scale=False))),
    "n-grams": config(stem=Lookup(previous=True, ngrams=(2, 4), ngram_rows=200)),
    "capped scores": config(block=attention(softcap=2.0, num_kv_heads=2)),
    "scaled branches": replace(config(block=BlockConfig(residual_scale=0.3)), stem=Lookup(factor=3.0)),
    "soft cap": config(head=Vocabulary(softcap=4.0, bias=True)),
    "shaw": config(position=Shaw(distance=3)),
    "buckets": config(position=Buckets(num_buckets=6, max_distance=10)),
    "alibi": config(position=ALiBi(), block=attention(num_heads=4, num_kv_heads=2)),
    "part rotary": config(position=Rotary(fraction=0.5)),
    "own rotary": config(block=attention(position=Rotary(base=7.0)), position=Rotary(base=90.0)),
    "biases": config(block=attention(bias=True, key_bias=False, output_bias=False), head=Vocabulary(scale=0.5)),
    "gained heads": config(block=attention(qk_norm=RMSNorm(zero_centered=True), scale=0.3)),
    "gained projection": config(block=attention(qk_norm=LayerNorm(), qk_norm_over="projection", num_kv_heads=2)),
    "parallel": config(block=BlockConfig(parallel="own_norms")),
    "parallel, one norm": config(block=BlockConfig(parallel="one_norm")),
    "input norm": config(input_norm=LayerNorm(bias=False), first_norm=False),
    "looped": config(loops=2),
    "strided": config(block=attention(pattern=Strided(3))),
    "fixed": config(block=attention(pattern=FixedSparse(4))),
    "experts": config(block=BlockConfig(feedforward=Experts(num_experts=4, router=TokenChoice(balance_loss=0.1)))),
    "shared experts": config(
        block=BlockConfig(
            feedforward=Experts(
                num_experts=4, expert=Dense(), num_shared=1, router=TokenChoice(score="sigmoid", bias_rate=0.01)
            )
        )
    ),
    "routed depth": config(num_layers=3, block=BlockConfig(depth=Depth(share=0.5))),
    "routed windows": config(
        num_layers=3, block=BlockConfig(mixer=Attention(pattern=Window(3)), depth=Depth(share=0.5))
    ),
    "exits": config(num_layers=3, exits=(1, 2)),
    "lstm": config(block=BlockConfig(mixer=LSTM(), feedforward=None), position=None),
    "convolutions": config(
        num_layers=3,
        block=BlockConfig(mixer=CausalConvolution(kernel_size=5), norm=RMSNorm()),
        position=None,
    ),
    "recurrence": config(block=BlockConfig(mixer=LinearRecurrence(state_dim=24), feedforward=Gated())),
    "recurrence and attention": replace(
        config(),
        decoder=StackConfig(num_layers=4, blocks=(*[BlockConfig(mixer=LinearRecurrence())] * 3, BlockConfig())),
    ),
    "attention alone": config(block=BlockConfig(feedforward=None)),
    "alternating": replace(
        config(),
        decoder=StackConfig(num_layers=3, blocks=(attention(pattern=Window(before=2)), attention(num_heads=4))),
    ),
}


def reads_forward(model: ModelConfig) -> bool:
    """Whether a block goes through documents from their start: such forms are excused from every mask but a causal one,
    from joint attention and from encoders."""
    return any(not isinstance(block.mixer, Attention) for stack in model.stacks for block in stack.blocks)


def build(model: ModelConfig, seed: int = 0) -> Transformer:
    """The model with every parameter from N(0, 0.2^2), norm gains around 1, in evaluation mode."""
    torch.manual_seed(seed)
    built = Transformer(model)
    with torch.no_grad():
        for module in built.modules():
            for parameter in module.parameters(recurse=False):
                parameter.normal_(0, 0.2)
                is_gain = isinstance(module, (nn.LayerNorm, nn.RMSNorm)) and parameter is module.weight
                if is_gain and not isinstance(module, ZeroCenteredRMSNorm):
                    parameter.add_(1)
    return built.eval()
