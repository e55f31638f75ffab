"""What a training step keeps between its forward and its backward pass, by arithmetic on the config."""

from __future__ import annotations

from typing import assert_never

from isoform.model.baseline_config import Model, NGramMlp, as_transformer
from isoform.model.config import (
    BlockConfig,
    MaskedVocabulary,
    ModelConfig,
    Pooled,
    StackConfig,
    Vocabulary,
)
from isoform.model.cost import Shape, experts_per_token, num_mixers, widths
from isoform.model.parts import (
    LSTM,
    Activation,
    Attention,
    CausalConvolution,
    Dense,
    Experts,
    FeedForward,
    Gated,
    LinearRecurrence,
    Mixer,
    RMSNorm,
    Rotary,
)
from isoform.outside import External

_BY_INPUT: frozenset[Activation] = frozenset({"gelu", "silu"})
"""Activations whose backward pass reads what entered them; that of the others reads what left at most."""
_BY_SLOPE: frozenset[Activation] = frozenset({"gelu_tanh", "relu2"})
"""Those whose kernel keeps a tensor of its own (kernels.py)."""


def activation_numbers(config: Model, shape: Shape) -> int:
    """Numbers stored between the forward and the backward pass, logits included."""
    rows, length, source = shape.num_rows, shape.length, shape.source_length
    d, config = config.model_dim, as_transformer(config)
    if not isinstance(config, ModelConfig):
        return rows * length * _ngram_activations(config)
    is_encoder_decoder = config.form == "encoder_decoder"
    match config.head:
        case Vocabulary(softcap=softcap):
            head = (4 if softcap else 3) * config.vocab_size
        case MaskedVocabulary():
            head = 3 * config.vocab_size + 3 * d
        case Pooled(num_outputs=outputs):
            head = 3 * outputs + d
        case _:
            assert_never(config.head)
    stored = rows * length * (3 * d + head)
    for stack in config.stacks:
        stack_length = source if is_encoder_decoder and stack is config.encoder else length
        for block in config.layers(stack) * stack.loops:
            stored += rows * stack_length * _block_activations(config, stack, block)
            if stack.cross == "joint":
                keys = 2 * widths(config, block.attention)[1]
                stored += rows * (stack_length + 2 * source) * keys  # joined, and those of the memory
            elif num_mixers(stack, block) == 2:
                query, kv = widths(config, block.attention)
                stored += rows * (stack_length * (2 * d + 2 * query) + source * 2 * kv)
        if stack.cross == "separate" and stack.memory_layers == "layerwise":
            stored += rows * source * d * (stack.num_layers * stack.loops - 1)  # the outputs below the last, normed
    return round(stored)


def _block_activations(config: ModelConfig, stack: StackConfig, block: BlockConfig) -> float:
    d, mixer = config.model_dim, block.mixer
    branches = 1 if block.feedforward is None else 2
    keeps_input = not isinstance(block.norm, RMSNorm) or block.norm.scale or isinstance(block.mixer, Attention)
    stored = (
        (1 + keeps_input) * d * branches
        + _mixer_activations(config, stack, mixer)
        + _inner_activations(config, block.feedforward)
    )
    if block.x0_shortcut:
        stored += d
    if config.dropout:
        stored += d * branches
    return stored if block.depth is None else stored * block.depth.share


def _mixer_activations(config: ModelConfig, stack: StackConfig, mixer: Mixer) -> int:
    """Numbers stored per token between what enters a mixer and what leaves it."""
    d = config.model_dim
    match mixer:
        case Attention():
            query, kv = widths(config, mixer)
            turned = isinstance(mixer.position or stack.position, Rotary) or mixer.qk_norm is not None
            stored = query + 2 * kv + query + (query + kv if turned else 0)  # normalised and turned copies
            return stored + (kv if mixer.value_shortcut else 0)
        case LSTM():  # the 15 of each feature that oneDNN keeps, and out; other kernels keep half
            return 16 * d
        case CausalConvolution(kernel_size=size):  # the tokens under the kernel side by side
            return size * d
        case LinearRecurrence():  # the product, a, c, h, and the gate before and after
            return 9 * config.state_dim(mixer)
        case External():  # unknown: as of attention without its matrices' inputs
            return 4 * d
        case _:
            assert_never(mixer)


def _inner_activations(config: ModelConfig, feedforward: FeedForward | None) -> float:
    match feedforward:
        case None:
            return 0
        case Dense(activation=activation):
            return (1 + (activation in _BY_INPUT | _BY_SLOPE)) * config.feedforward_dim(feedforward)
        case Gated(activation=activation):  # gate and up, as one product; the active gate; what enters down
            stored = 3 + (activation != "linear") + (activation in _BY_SLOPE)
            return stored * config.feedforward_dim(feedforward)
        case Experts():
            per_expert = _inner_activations(config, feedforward.expert) + 2 * config.model_dim
            return per_expert * (experts_per_token(feedforward) + feedforward.num_shared)
        case _:
            assert_never(feedforward)


def _ngram_activations(config: NGramMlp) -> int:
    """Numbers stored per token: the embeddings of the bag, and each feed-forward."""
    d, n = config.model_dim, config.num_layers
    head = (4 if config.head.softcap else 3) * config.vocab_size
    return 3 * d + d + (d + 2 * config.inner_dim) * n + (d * n if config.dropout else 0) + head
