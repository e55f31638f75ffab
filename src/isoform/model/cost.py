"""What a model costs, by arithmetic on its config: parameters, FLOPs, bytes of caches. Nothing is built or run.

A product of (m, k) by (k, n) counts 2 m k n; attention is counted in full, masked or not, as the kernels
that skip are a property of the machine; training is three times the forward pass (each product has two in
its backward pass). To a recurrence a token costs the same wherever it stands, so packed rows are counted as if they
were whole. Tested against the built model and torch's FLOP counter.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import assert_never

from isoform.mask import Window
from isoform.model.baseline_config import Model, NGramMlp, as_transformer
from isoform.model.config import (
    BlockConfig,
    Convolution,
    Linear,
    Lookup,
    MaskedVocabulary,
    ModelConfig,
    Pooled,
    StackConfig,
    Stem,
    Vocabulary,
)
from isoform.model.parts import (
    LSTM,
    ALiBi,
    Attention,
    Buckets,
    CausalConvolution,
    Dense,
    Experts,
    FeedForward,
    Gated,
    Grid,
    LayerNorm,
    Learned,
    LinearRecurrence,
    Mixer,
    Norm,
    RMSNorm,
    Rotary,
    Shaw,
    Sinusoidal,
    TokenChoice,
)
from isoform.outside import External, num_numbers


@dataclass(frozen=True)
class Shape:
    """What goes through a model at once: rows of `length` tokens, and `source_length` into the encoder.

    scored: how many of the positions the head scores.
    """

    num_rows: int
    length: int
    source_length: int = 0
    scored: float = 1.0


def num_parameters(config: Model) -> int:
    """Parameters of the whole model, tied tables counted once."""
    config = as_transformer(config)
    if not isinstance(config, ModelConfig):
        stem, head = _stem_parameters(config, config.stem), _vocabulary_parameters(config, config.head)
        return stem + head + num_matrix_parameters(config) + config.bag * config.model_dim
    stems = [config.stem] if config.encoder_stem is None else [config.stem, config.encoder_stem]
    outside = sum(_stem_parameters(config, stem) for stem in stems) + _head_parameters(config)
    return outside + sum(_stack_parameters(config, stack, active=False) for stack in config.own_stacks)


def num_active_parameters(config: Model) -> int:
    """Parameters that one token goes through: of experts only those that it is sent to."""
    config = as_transformer(config)
    if not isinstance(config, ModelConfig):
        return num_parameters(config)
    idle = sum(
        _stack_parameters(config, stack, active=False) - _stack_parameters(config, stack, active=True)
        for stack in config.own_stacks
    )
    return num_parameters(config) - idle


def num_matrix_parameters(config: Model) -> int:
    """Parameters of the blocks' matrices alone."""
    config = as_transformer(config)
    if not isinstance(config, ModelConfig):
        return config.num_layers * 2 * config.model_dim * config.inner_dim
    total = 0
    for stack in config.own_stacks:
        for block in config.layers(stack):
            total += num_mixers(stack, block) * _mixer_matrices(config, block.mixer)
            total += _feedforward_matrices(config, block.feedforward, active=False)
    return total


def num_mixers(stack: StackConfig, block: BlockConfig) -> int:
    """Of a block: two where its attention is there once more, for the encoder."""
    return 2 if stack.cross == "separate" and isinstance(block.mixer, Attention) else 1


def forward_flops(config: Model, shape: Shape) -> int:
    """FLOPs of one forward pass over rows of this shape, stems and head included."""
    rows, length, source = shape.num_rows, shape.length, shape.source_length
    config = as_transformer(config)
    if not isinstance(config, ModelConfig):
        return 2 * rows * length * (num_matrix_parameters(config) + config.model_dim * config.vocab_size)
    is_encoder_decoder = config.form == "encoder_decoder"
    flops = rows * length * (_stem_flops(config, config.stem) + shape.scored * _head_flops(config))
    if config.encoder is not None:
        flops += _stack_flops(config, config.encoder, rows, source if is_encoder_decoder else length, 0)
        if is_encoder_decoder and config.encoder_stem is not None:
            flops += rows * source * _stem_flops(config, config.encoder_stem)
        elif is_encoder_decoder:
            flops += rows * source * _stem_flops(config, config.stem)
    if config.decoder is not None:
        flops += _stack_flops(config, config.decoder, rows, length, source)
    return round(flops)


def training_flops(config: Model, shape: Shape) -> int:
    """FLOPs of a forward and a backward pass; the optimizer's are not counted."""
    return 3 * (forward_flops(config, shape) + _ahead_flops(config, shape))


def _ahead_flops(config: Model, shape: Shape) -> int:
    """FLOPs of the heads for tokens after the next one, which only training uses."""
    config = as_transformer(config)
    if not isinstance(config, ModelConfig) or config.decoder is None or not config.decoder.ahead:
        return 0
    last = replace(config.decoder, num_layers=1, loops=1, exits=(), blocks=(config.layers(config.decoder)[-1],))
    block = _stack_flops(config, last, shape.num_rows, shape.length, shape.source_length)
    return round(config.decoder.ahead * (block + shape.num_rows * shape.length * _head_flops(config)))


def key_value_bytes(config: ModelConfig, stack: StackConfig, *, bytes_per_number: int = 4) -> int:
    """Bytes of the keys and values of one token in all layers of a stack that have some, each of its loops counted."""
    return sum(_stored(config, block.mixer) for block in config.layers(stack) * stack.loops) * bytes_per_number


def _stored(config: ModelConfig, mixer: Mixer) -> int:
    """Numbers that a layer's cache keeps of each token: keys and values, or what a mixer of the user's own read."""
    if isinstance(mixer, External):
        return 2 * config.model_dim
    return 2 * widths(config, mixer)[1] if isinstance(mixer, Attention) else 0


def cache_bytes(config: ModelConfig, *, bytes_per_number: int = 4) -> int:
    """Bytes of the key/value cache per token of one row of the decoder, as long as no window is full; a recurrence's
    state doesn't grow."""
    return 0 if config.decoder is None else key_value_bytes(config, config.decoder, bytes_per_number=bytes_per_number)


def full_cache_bytes(config: ModelConfig, *, bytes_per_number: int = 4) -> int:
    """Bytes of the cache of one row that fills the decoder's context; windowed layers keep their window, recurrences
    their state."""
    keys = sum(numbers * stored for numbers, stored in _key_values(config))
    return (keys + _state_numbers(config)) * bytes_per_number


def _key_values(config: ModelConfig) -> list[tuple[int, int]]:
    """Of each layer of the decoder: numbers per token, and tokens that it keeps at most."""
    if config.decoder is None:
        return []
    length = config.length(config.decoder)
    mixers = [block.mixer for block in _decoder_layers(config)]
    return [(_stored(config, mixer), min(_reach(mixer, length), length)) for mixer in mixers]


def _reach(mixer: Mixer, length: int) -> int:
    """The most tokens that a query looks at."""
    pattern = mixer.pattern if isinstance(mixer, Attention) else None
    return pattern.before + 1 if isinstance(pattern, Window) else length


def _state_numbers(config: ModelConfig) -> int:
    """Numbers that the decoder's recurrences keep of a row."""
    return sum(_state(config, block.mixer) for block in _decoder_layers(config)) if config.decoder is not None else 0


def _state(config: ModelConfig, mixer: Mixer) -> int:
    match mixer:
        case Attention() | External():
            return 0
        case LSTM():
            return 2 * config.model_dim
        case CausalConvolution(kernel_size=size, dilation=dilation):
            return (size - 1) * dilation * config.model_dim
        case LinearRecurrence():
            return config.state_dim(mixer)
        case _:
            assert_never(mixer)


def decode_flops(config: ModelConfig, past: int) -> int:
    """FLOPs of one more token after `past` tokens of one row; windowed layers look at their window."""
    assert config.decoder is not None, "only a decoder decodes"
    flops, length = float(_head_flops(config)), config.length(config.decoder)
    for block in _decoder_layers(config):
        flops += 2 * _mixer_matrices(config, block.mixer)
        flops += 2 * _feedforward_matrices(config, block.feedforward, active=True)
        if isinstance(block.mixer, Attention):
            query = widths(config, block.mixer)[0]
            flops += 4 * min(past, _reach(block.mixer, length)) * query
            if config.decoder.cross == "separate":
                flops += 4 * config.model_dim * query
    return round(flops)


def decode_bytes(config: ModelConfig, past: int, *, bytes_per_number: int = 4) -> int:
    """Bytes read for one more token of one row: the parameters it goes through, and what the cache holds."""
    is_tied = not isinstance(config.head, Pooled) and config.head.tied
    tables = 0 if is_tied else config.vocab_size * config.model_dim
    cache = sum(numbers * min(past, stored) for numbers, stored in _key_values(config)) + _state_numbers(config)
    return (num_active_parameters(config) - tables + cache) * bytes_per_number


def _decoder_layers(config: ModelConfig) -> list[BlockConfig]:
    assert config.decoder is not None
    return config.layers(config.decoder) * config.decoder.loops


def _norm(norm: Norm | None, dim: int) -> int:
    match norm:
        case None:
            return 0
        case LayerNorm(bias=bias, scale=scale):
            return dim * (bias + scale)
        case RMSNorm(scale=scale):
            return dim if scale else 0
        case _:
            assert_never(norm)


def _stem_parameters(config: ModelConfig | NGramMlp, stem: Stem) -> int:
    d, v = config.model_dim, config.vocab_size
    match stem:
        case Lookup():
            looking_back = (v + 1) * stem.previous + sum(min((v + 1) ** n, stem.ngram_rows) for n in stem.ngrams)
            return (v + looking_back + stem.num_token_types) * d + _norm(stem.norm, d)
        case Linear():
            return (stem.num_features + stem.bias + stem.num_ids) * d
        case Convolution():
            return (stem.width * (stem.num_features + d) + 2) * d
        case _:
            assert_never(stem)


def _stem_flops(config: ModelConfig, stem: Stem) -> int:
    """FLOPs per token."""
    d = config.model_dim
    match stem:
        case Lookup():
            return 0
        case Linear():
            return 2 * stem.num_features * d
        case Convolution():
            return 2 * stem.width * d * (stem.stride * stem.num_features + d)
        case _:
            assert_never(stem)


def _head_parameters(config: ModelConfig) -> int:
    d, v, head = config.model_dim, config.vocab_size, config.head
    match head:
        case Vocabulary():
            return _vocabulary_parameters(config, head)
        case MaskedVocabulary():
            return (0 if head.tied else v * d) + v * head.bias + d * (d + head.dense_bias) + _norm(head.norm, d)
        case Pooled():
            outputs = 0 if head.embed else head.num_outputs
            dense = d * (d + head.dense_bias) + _norm(head.norm, d) if head.dense else 0
            return outputs * (d + head.bias) + dense
        case _:
            assert_never(head)


def _vocabulary_parameters(config: ModelConfig | NGramMlp, head: Vocabulary) -> int:
    return (0 if head.tied else config.vocab_size * config.model_dim) + config.vocab_size * head.bias


def _head_flops(config: ModelConfig) -> int:
    """FLOPs per token."""
    d, head = config.model_dim, config.head
    match head:
        case Vocabulary():
            return 2 * d * config.vocab_size
        case MaskedVocabulary():
            return 2 * d * (config.vocab_size + d)
        case Pooled():
            return 2 * d * ((0 if head.embed else head.num_outputs) + (d if head.dense else 0))
        case _:
            assert_never(head)


def _stack_parameters(config: ModelConfig, stack: StackConfig, *, active: bool) -> int:
    d, blocks = config.model_dim, config.layers(stack)
    attentions = [block.mixer for block in blocks if isinstance(block.mixer, Attention)]
    match stack.position:
        case Learned():
            table = config.length(stack) * d
        case Grid(rows=rows, columns=columns):
            table = (rows + columns) * d
        case Buckets(num_buckets=buckets):
            table = buckets * attentions[0].num_heads if attentions else 0
        case None | Sinusoidal() | Rotary() | Shaw() | ALiBi():
            table = 0
        case _:
            assert_never(stack.position)
    norms = _norm(stack.input_norm, d) + (_norm(blocks[0].norm, d) if stack.final_norm else 0)
    if not stack.first_norm:
        norms -= (2 if blocks[0].norm_placement == "sandwich" else 1) * _norm(blocks[0].norm, d)
    blocks = [*blocks, *blocks[-1:] * stack.ahead]
    return table + norms + sum(_block_parameters(config, stack, block, active=active) for block in blocks)


def _block_parameters(config: ModelConfig, stack: StackConfig, block: BlockConfig, *, active: bool) -> int:
    d, mixer, feedforward = config.model_dim, block.mixer, block.feedforward
    mixers, norms = num_mixers(stack, block), 2 if block.norm_placement == "sandwich" else 1
    numbers = mixers * (_mixer_matrices(config, mixer) + _mixer_vectors(config, mixer))
    if feedforward is not None:
        numbers += _feedforward_matrices(config, feedforward, active=active)
    if isinstance(feedforward, Dense | Gated) and feedforward.bias:
        f = config.feedforward_dim(feedforward)
        numbers += d + (2 * f if isinstance(feedforward, Gated) else f)
    if isinstance(mixer, Attention):
        if isinstance(stack.position, Shaw) and mixer.position is None:
            numbers += (1 + stack.position.values) * (2 * stack.position.distance + 1) * config.head_dim(mixer)
        numbers += 2 if mixer.value_shortcut else 0
    branches = mixers + (feedforward is not None and block.parallel != "one_norm")
    mixes = 2 if block.x0_shortcut else 0
    return numbers + branches * norms * _norm(block.norm, d) + mixes + _depth_parameters(config, block)


def _depth_parameters(config: ModelConfig, block: BlockConfig) -> int:
    """Of the router, and of the predictor with its bias."""
    return 0 if block.depth is None else config.model_dim * (1 + block.depth.predictor) + block.depth.predictor


def widths(config: ModelConfig, attention: Attention) -> tuple[int, int]:
    """Of all queries and of all keys together."""
    head_dim = config.head_dim(attention)
    return attention.num_heads * head_dim, (attention.num_kv_heads or attention.num_heads) * head_dim


def _mixer_matrices(config: ModelConfig, mixer: Mixer) -> int:
    d = config.model_dim
    match mixer:
        case Attention():
            query, kv = widths(config, mixer)
            return d * (2 * query + 2 * kv)
        case LSTM():
            return 8 * d * d
        case CausalConvolution(kernel_size=size):
            return size * d * d
        case LinearRecurrence():
            return 4 * d * config.state_dim(mixer)
        case External():  # counted in the module; FLOPs as if each number were used once for a token
            return num_numbers(mixer, d)[0]
        case _:
            assert_never(mixer)


def _mixer_vectors(config: ModelConfig, mixer: Mixer) -> int:
    match mixer:
        case Attention():
            return _attention_vectors(config, mixer)
        case LSTM():  # two biases for each of four gates
            return 8 * config.model_dim
        case CausalConvolution():
            return 0
        case LinearRecurrence():
            return config.state_dim(mixer)
        case External():
            return num_numbers(mixer, config.model_dim)[1]
        case _:
            assert_never(mixer)


def _attention_vectors(config: ModelConfig, attention: Attention) -> int:
    query, kv = widths(config, attention)
    bias = (query + (1 + attention.key_bias) * kv) * attention.bias
    has_output_bias = attention.bias if attention.output_bias is None else attention.output_bias
    norm, is_whole, head_dim = attention.qk_norm, attention.qk_norm_over == "projection", config.head_dim(attention)
    norms = _norm(norm, query) + _norm(norm, kv) if is_whole else 2 * _norm(norm, head_dim)
    return bias + has_output_bias * config.model_dim + norms


def experts_per_token(experts: Experts) -> float:
    router = experts.router
    return router.num_active if isinstance(router, TokenChoice) else router.capacity_factor


def _feedforward_matrices(config: ModelConfig, feedforward: FeedForward | None, *, active: bool) -> int:
    d = config.model_dim
    match feedforward:
        case None:
            return 0
        case Dense():
            return 2 * d * config.feedforward_dim(feedforward)
        case Gated():
            return 3 * d * config.feedforward_dim(feedforward)
        case Experts():
            count = experts_per_token(feedforward) if active else feedforward.num_experts
            expert = _feedforward_matrices(config, feedforward.expert, active=active)
            return round((count + feedforward.num_shared) * expert) + feedforward.num_experts * d
        case _:
            assert_never(feedforward)


def _stack_flops(config: ModelConfig, stack: StackConfig, rows: int, length: int, source: int) -> float:
    flops = 0.0
    for block in config.layers(stack) * stack.loops:
        block_length = length if block.depth is None else length * block.depth.share
        matrices = _feedforward_matrices(config, block.feedforward, active=True)
        flops += 2 * rows * block_length * (_mixer_matrices(config, block.mixer) + matrices)
        flops += 2 * rows * length * _depth_parameters(config, block)
        if isinstance(block.mixer, Attention):
            flops += _attention_flops(config, stack, block.mixer, rows, block_length, source)
    return flops


def _attention_flops(
    config: ModelConfig, stack: StackConfig, attention: Attention, rows: int, length: float, source: int
) -> float:
    """Of what isn't done to each token by itself: pairs, and an encoder's output."""
    d, (query, kv) = config.model_dim, widths(config, attention)
    per_pair = 2 * query
    flops = 2 * rows * length * length * per_pair
    if isinstance(stack.position, Shaw) and attention.position is None:
        flops += 2 * rows * length * query * (1 + stack.position.values) * (2 * stack.position.distance + 1)
    if stack.cross != "none":
        flops += 2 * rows * length * source * per_pair
    if stack.cross == "separate":
        flops += 2 * rows * length * 2 * d * query
    if stack.cross == "separate" or (stack.cross == "joint" and stack.memory_layers == "last"):
        flops += 2 * rows * source * 2 * d * kv
    return flops
