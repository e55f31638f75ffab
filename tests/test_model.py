"""Properties every form of the model has, whatever its config says."""

from dataclasses import replace

import pytest
import torch

from isoform.batch import Encoding, Example, Tokens, collate, plain_coordinates, plain_tokens
from isoform.mask import Causal, Full, Prefix, Window, dense_mask
from isoform.model.activations import activation_numbers
from isoform.model.config import BlockConfig, Initialization, ModelConfig, StackConfig
from isoform.model.cost import Shape, forward_flops, num_parameters, training_flops
from isoform.model.decoders import GPT2, MODERN
from isoform.model.feedforward import ACTIVATIONS, build_feedforward
from isoform.model.lowering import attend, lower
from isoform.model.parts import Attention, Dense, Gated, Rotary
from isoform.model.transformer import Transformer
from models import FORMS, VOCAB, build, config, pair, reads_forward

ALL = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())


def ids(rows: int = 2, length: int = 12, seed: int = 1) -> torch.Tensor:
    return torch.randint(VOCAB, (rows, length), generator=torch.Generator().manual_seed(seed))


def input_gradients(model: Transformer, text: torch.Tensor, at: int, mask=None) -> torch.Tensor:
    """How much the logits at one place depend on each input token, by the gradient of its embedding."""
    seen = []
    hook = model.stem.embedding.register_forward_hook(lambda m, i, out: seen.append(out.requires_grad_()) or out)
    logits = model(text, mask)
    hook.remove()
    (gradient,) = torch.autograd.grad(logits[:, at].sum(), seen[0])
    return gradient.abs().sum(-1)[0]


@ALL
def test_a_decoder_is_causal(form):
    model, text = build(form), ids(1)
    for at in (0, 5, 11):
        gradient = input_gradients(model, text, at)
        assert (gradient[at + 1 :] == 0).all()
        assert (gradient[[i for i in range(at + 1) if sees(form, at, i)]] > 0).all()


def sees(form: ModelConfig, query: int, key: int) -> bool:
    """Whether every block of a form lets a query see a key directly."""
    one = plain_coordinates(1, 12).map(lambda t: t[0])
    pair = one.map(lambda t: t[query]), one.map(lambda t: t[key])
    attentions = [block.mixer for block in form.decoder.blocks if isinstance(block.mixer, Attention)]
    patterns = [attention.pattern for attention in attentions if attention.pattern]
    return all(bool(pattern.allows(*pair)) for pattern in patterns)


def test_without_the_causal_rule_a_decoder_is_an_encoder():
    decoder = build(config())
    encoder = build(replace(config(), encoder=config().decoder, decoder=None))
    state = {name.replace("decoder.", "encoder."): t for name, t in decoder.state_dict().items()}
    encoder.load_state_dict(state)
    torch.testing.assert_close(decoder(ids(), Full()), encoder(ids()), rtol=0, atol=0)
    assert (input_gradients(decoder, ids(1), 3, Full()) > 0).all()


@ALL
def test_cached_equals_uncached(form):
    model, text = build(form), ids()
    whole = model(text)
    for cuts in ([12], [1] * 12, [5, 1, 1, 5]):
        cache, at, parts = model.build_cache(2), 0, []
        for size in cuts:
            token = text[:, at : at + size]
            tokens = Tokens(token, plain_coordinates(2, size, start=at), text[:, max(0, at - 3) : at] if at else None)
            parts.append(model.logits(model.decode(tokens, cache=cache)))
            at += size
        torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-5, atol=2e-5)


def test_cached_equals_uncached_with_a_memory():
    model, text, source = build(pair(config())), ids(), ids(seed=2)[:, :7]
    whole = model(text, source=source)
    memory, cache = model.encode(source), model.build_cache(2)
    parts = [
        model.logits(model.decode(Tokens(text[:, t : t + 1], plain_coordinates(2, 1, start=t)), None, memory, cache))
        for t in range(12)
    ]
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-5, atol=2e-5)


def example(length: int, seed: int, prefix: int = 0, source: int = 0) -> Example:
    numbers = ids(1, length + 1, seed)[0].numpy()
    given = Encoding(ids(1, source, seed + 50)[0].numpy()) if source else None
    weights = (numbers[1:] >= 0).astype("float32")
    return Example(Encoding(numbers[:-1], prefix), numbers[1:], weights, given)


@ALL
@pytest.mark.parametrize("prefix", [0, 2])
def test_packed_equals_separate(form, prefix):
    model, mask = build(form), Causal() if reads_forward(form) else Prefix() | Causal()
    examples = [example(n, n, prefix) for n in (3, 5, 4)]
    packed = model(collate([examples], 12).inputs, mask)[0]
    at = 0
    for e in examples:
        alone = model(collate([[e]], len(e.inputs)).inputs, mask)[0]
        torch.testing.assert_close(packed[at : at + len(e.inputs)], alone, rtol=1e-5, atol=2e-5)
        at += len(e.inputs)


def test_packed_pairs_equal_separate_pairs():
    model = build(pair(config()))
    examples = [example(4, 1, source=6), example(5, 2, source=3)]
    batch = collate([examples], 12, 12)
    packed, at = model(batch.inputs, None, batch.source)[0], 0
    for e in examples:
        b = collate([[e]], len(e.inputs), len(e.source))
        torch.testing.assert_close(
            packed[at : at + len(e.inputs)], model(b.inputs, None, b.source)[0], rtol=1e-5, atol=2e-5
        )
        at += len(e.inputs)


@pytest.mark.parametrize("mask", [Causal(), Full(), Prefix() | Causal(), Window(2) & Causal(), Window(1, 1)], ids=str)
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_kernels_against_the_predicate(mask, kv_heads):
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, n, 9, 8, dtype=torch.float64) for n in (4, kv_heads, kv_heads))
    plain = plain_coordinates(2, 9)
    packed = collate([[example(3, 1, 2), example(4, 2, 1)], [example(9, 3, 4)]], 9).inputs.coordinates
    for coordinates in (plain, packed):
        edges = dense_mask(mask, coordinates, coordinates).unsqueeze(1)
        scores = q @ k.repeat_interleave(4 // kv_heads, 1).mT / 8**0.5
        weights = scores.masked_fill(~edges, -torch.inf).softmax(-1).nan_to_num()
        expected = weights @ v.repeat_interleave(4 // kv_heads, 1)
        torch.testing.assert_close(attend(q, k, v, lower(mask, coordinates, coordinates)), expected)


def test_a_query_without_keys_gives_zeros_and_no_gradient():
    q, k, v = (torch.randn(1, 2, 3, 4, requires_grad=True) for _ in range(3))
    allowed = torch.tensor([[[[1, 0, 0], [0, 0, 0], [0, 1, 1]]]], dtype=torch.bool)
    out = attend(q, k, v, allowed)
    out[:, :, 1].sum().backward(retain_graph=True)
    assert (out[:, :, 1] == 0).all()
    assert all((t.grad == 0).all() for t in (q, k, v))
    out.sum().backward()
    assert all(t.grad.isfinite().all() for t in (q, k, v))


def test_no_or_opens_a_door_between_documents():
    coordinates = collate([[example(3, 1, 2), example(3, 2, 2)]], 8).inputs.coordinates
    seen = dense_mask(Causal() | Full() | Prefix(), coordinates, coordinates)[0]
    assert not seen[:3, 3:].any() and not seen[3:6, :3].any() and not seen[6:].any() and not seen[:, 6:].any()


def test_rotary_scores_depend_on_distance_only():
    model = build(config(position=Rotary(base=50.0)))
    turn = model.decoder.position
    q, k = torch.randn(1, 1, 1, 4), torch.randn(1, 1, 1, 4)

    def score(i: int, j: int) -> torch.Tensor:
        at_i, at_j = (turn.rotation(plain_coordinates(1, 1, start=s)) for s in (i, j))
        return (at_i(q) * at_j(k)).sum()

    torch.testing.assert_close(score(5, 2), score(9, 6))
    assert (score(5, 2) - score(5, 3)).abs() > 1e-3


def test_without_positions_an_encoder_is_permutation_equivariant():
    model, text = build(config(position=None)), ids(1)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(model(text[:, order], Full()), model(text, Full())[:, order], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", [name for name in FORMS if name != "lstm"])  # counted in test_baselines
def test_costs_are_those_of_the_built_model(name):
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    form = FORMS[name]
    for model_config in (form,) if reads_forward(form) else (form, pair(form)):
        model, is_encoder_decoder = build(model_config).train(), model_config.encoder is not None
        assert num_parameters(model_config) == sum(p.numel() for p in model.parameters())
        text = ids(3)
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            model(text, source=ids(3, 8) if is_encoder_decoder else None).sum().backward()
        counted = training_flops(model_config, Shape(3, 12, 8))
        assert counted == pytest.approx(counter.get_total_flops(), rel=0.01)
        assert forward_flops(model_config, Shape(3, 12, 8)) * 3 == counted


def test_gpt2_has_its_published_size():
    assert num_parameters(GPT2) == 124_439_808


@pytest.mark.parametrize("preset", [GPT2, MODERN], ids=["gpt2", "modern"])
def test_initialization_gives_a_uniform_guess(preset):
    small = replace(
        preset,
        vocab_size=40,
        model_dim=64,
        context_length=16,
        decoder=replace(
            preset.decoder,
            num_layers=2,
            blocks=tuple(replace(b, mixer=replace(b.attention, num_heads=4)) for b in preset.decoder.blocks),
        ),
    )
    torch.manual_seed(0)
    text = torch.randint(40, (8, 16))
    loss = torch.nn.functional.cross_entropy(Transformer(small).eval()(text).flatten(0, 1), text.roll(-1, 1).flatten())
    assert float(loss.detach()) == pytest.approx(torch.log(torch.tensor(40.0)).item(), abs=0.1)


def test_zero_output_projections_leave_the_stream_alone():
    model = Transformer(config(initialization=Initialization(output="zero"), final_norm=False))
    text = ids()
    torch.testing.assert_close(model.decode(text), model.stem(plain_tokens(text)))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Attention(num_heads=4, num_kv_heads=3), "num_kv_heads=3"),
        (lambda: ModelConfig(model_dim=30), "not divisible by num_heads=4"),
        (lambda: ModelConfig(model_dim=12, decoder=StackConfig(blocks=(BlockConfig(),))), "multiple of 2"),
        (lambda: ModelConfig(decoder=None), "needs an encoder or a decoder"),
        (lambda: ModelConfig(decoder=StackConfig(cross="separate")), "goes with an encoder"),
        (lambda: ModelConfig(dropout=1.0), "dropout=1.0"),
        (lambda: Transformer(ModelConfig()), "vocab_size=0"),
        (lambda: build(config())(ids(1, 13)), "context_length=12"),
        (lambda: build(pair(config())).decode(ids()), "wants the encoder's memory"),
    ],
)
def test_what_cannot_be_is_refused_in_words(make, words):
    with pytest.raises(ValueError, match=words):
        make()


@pytest.mark.parametrize("preset", [GPT2, MODERN], ids=["gpt2", "modern"])
def test_activations_are_those_that_autograd_keeps(preset):
    blocks = tuple(replace(b, mixer=replace(b.attention, num_heads=4, dropout=0.0)) for b in preset.decoder.blocks)
    decoder = replace(preset.decoder, num_layers=3, blocks=blocks)
    wide = replace(preset, vocab_size=40, model_dim=128, context_length=160, dropout=0.1, decoder=decoder)
    torch.manual_seed(0)
    model, text = Transformer(wide), torch.randint(40, (8, 160))
    measured = kept_bytes(model, lambda: torch.nn.functional.cross_entropy(model(text).flatten(0, 1), text.flatten()))
    assert 4 * activation_numbers(wide, Shape(8, 160)) == pytest.approx(measured, rel=0.1)


@pytest.mark.parametrize("kind", [Dense, Gated])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_what_is_kept_of_a_feedforward_depends_on_its_activation(kind, activation):
    d, length = 32, 40

    def numbers(feedforward) -> int:
        block = BlockConfig(feedforward=feedforward)
        wide = config(block=block, model_dim=d, context_length=length, num_layers=1)
        return activation_numbers(wide, Shape(2, length))

    feedforward = kind(feedforward_dim=3 * d, activation=activation)
    module, x = build_feedforward(feedforward, d, 3 * d), torch.randn(2, length, d, requires_grad=True)
    measured = kept_bytes(module, lambda: module(x)) - x.nbytes
    assert 4 * (numbers(feedforward) - numbers(None) - 2 * 2 * length * d) == measured


def kept_bytes(module, forward) -> int:
    """What autograd keeps of a forward pass beside parameters, each storage once."""
    own, kept = {p.untyped_storage().data_ptr() for p in module.parameters()}, {}

    def keep(t: torch.Tensor) -> torch.Tensor:
        kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        assert forward().requires_grad
    return sum(size for address, size in kept.items() if address not in own)


def test_blocks_with_the_same_rotary_scheme_share_its_tables():
    block = BlockConfig(mixer=Attention(position=Rotary(base=7.0)))
    first, second = build(config(block=block, position=Rotary())).decoder.blocks
    assert first.position is second.position
