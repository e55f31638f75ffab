"""Named architectures, as values. Sizes are fields like all others; a recipe changes what it likes."""

from __future__ import annotations

from isoform.model.config import (
    AttentionConfig,
    BlockConfig,
    Dense,
    Initialization,
    LayerNorm,
    Learned,
    Lookup,
    ModelConfig,
    RMSNorm,
    Rotary,
    StackConfig,
    Vocabulary,
)

GPT2 = ModelConfig(
    model_dim=768,
    context_length=1024,
    vocab_size=50257,
    decoder=StackConfig(
        num_layers=12,
        position=Learned(),
        blocks=(
            BlockConfig(
                attention=AttentionConfig(num_heads=12, bias=True, dropout=0.1),
                feedforward=Dense(activation="gelu_tanh", bias=True),
                norm=LayerNorm(epsilon=1e-5),
            ),
        ),
    ),
    head=Vocabulary(tied=True),
    dropout=0.1,
    initialization=Initialization(output="scaled"),
)
"""GPT-2, 124 million parameters (Radford et al. 2019)."""

MODERN = ModelConfig(
    model_dim=256,
    context_length=256,
    decoder=StackConfig(
        num_layers=6,
        position=Rotary(),
        blocks=(
            BlockConfig(
                attention=AttentionConfig(num_heads=4, qk_norm=True, value_shortcut=True),
                feedforward=Dense(activation="relu2"),
                norm=RMSNorm(scale=False),
                x0_shortcut=True,
            ),
        ),
    ),
    stem=Lookup(ngrams=(2, 3, 4), norm=RMSNorm(scale=False)),
    head=Vocabulary(softcap=15.0),
    initialization=Initialization(embedding=0.3, matrix=None, output="zero", head="zero"),
)
"""What learns fastest at laptop sizes, of the choices offered here; docs/log.md has the measurements."""

PRESETS: dict[str, ModelConfig] = {"gpt2": GPT2, "modern": MODERN}
