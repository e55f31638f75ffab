"""Small models for tests, with parameters drawn wide enough that a mistake shows."""

from dataclasses import replace

import torch
from torch import nn

from isoform.mask import Window
from isoform.model.config import (
    AttentionConfig,
    BlockConfig,
    Dense,
    Gated,
    Learned,
    Lookup,
    ModelConfig,
    RMSNorm,
    Sinusoidal,
    StackConfig,
    Vocabulary,
)
from isoform.model.transformer import Transformer

VOCAB = 13


def config(*, block: BlockConfig | None = None, num_layers: int = 2, **fields) -> ModelConfig:
    """A decoder of width 16 and context 12; `position`, `final_norm` go to its stack, the rest to the model."""
    stack = {name: fields.pop(name) for name in ("position", "final_norm") if name in fields}
    decoder = StackConfig(num_layers=num_layers, blocks=(block or BlockConfig(),), **stack)
    return ModelConfig(**{"model_dim": 16, "context_length": 12, "vocab_size": VOCAB, "decoder": decoder, **fields})


def pair(decoder: ModelConfig) -> ModelConfig:
    """The same as an encoder-decoder."""
    assert decoder.decoder is not None
    return replace(decoder, encoder=decoder.decoder, decoder=replace(decoder.decoder, cross="separate"))


def attention(**fields) -> BlockConfig:
    """A block with this attention."""
    return BlockConfig(attention=AttentionConfig(**fields))


FORMS: dict[str, ModelConfig] = {
    "plain": config(),
    "gpt2": config(
        block=BlockConfig(attention=AttentionConfig(bias=True), feedforward=Dense(activation="gelu_tanh", bias=True)),
        position=Learned(),
        head=Vocabulary(tied=True),
    ),
    "sinusoidal": config(position=Sinusoidal(), stem=Lookup(scale=True)),
    "no position": config(position=None),
    "grouped": config(block=attention(num_heads=4, num_kv_heads=2)),
    "multi-query": config(block=attention(num_heads=4, num_kv_heads=1, qk_norm=True)),
    "wide heads": config(block=attention(num_heads=2, head_dim=12)),
    "gated": config(block=BlockConfig(feedforward=Gated(), norm=RMSNorm())),
    "relu2": config(block=BlockConfig(feedforward=Dense(activation="relu2"), norm=RMSNorm(scale=False))),
    "post": config(block=BlockConfig(norm_placement="post"), final_norm=False),
    "reordered": config(block=BlockConfig(norm_placement="reordered", norm=RMSNorm())),
    "sandwich": config(block=BlockConfig(norm_placement="sandwich")),
    "shortcuts": config(
        block=BlockConfig(attention=AttentionConfig(value_shortcut=True), x0_shortcut=True), num_layers=3
    ),
    "previous piece": config(stem=Lookup(previous=True, norm=RMSNorm(scale=False))),
    "n-grams": config(stem=Lookup(previous=True, ngrams=(2, 4), ngram_rows=200)),
    "soft cap": config(head=Vocabulary(softcap=4.0, bias=True)),
    "alternating": replace(
        config(),
        decoder=StackConfig(num_layers=3, blocks=(attention(pattern=Window(before=2)), attention(num_heads=4))),
    ),
}


def build(model: ModelConfig, seed: int = 0) -> Transformer:
    """The model with every parameter from N(0, 0.2^2), norm gains around 1, in evaluation mode."""
    torch.manual_seed(seed)
    built = Transformer(model)
    with torch.no_grad():
        for module in built.modules():
            for parameter in module.parameters(recurse=False):
                parameter.normal_(0, 0.2)
                if isinstance(module, (nn.LayerNorm, nn.RMSNorm)) and parameter is module.weight:
                    parameter.add_(1)
    return built.eval()
