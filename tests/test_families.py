"""Every family of transformers' models: equal logits, also cached and padded, equal gradients, and round trips."""

import logging
from dataclasses import fields, is_dataclass, replace
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy

from families import LENGTH, VOCAB, all_peers, make
from isoform.batch import Tokens, plain_coordinates
from isoform.checkpoint.families.canonical import canonical
from isoform.checkpoint.huggingface import family_of, read_folder, write_folder
from isoform.checkpoint.tensors import state_of
from isoform.mask import Coordinates, Window
from isoform.model.config import Lookup, ModelConfig, Pooled
from isoform.model.parts import LayerNorm, LinearExtension, RMSNorm, Rotary
from isoform.model.transformer import Transformer

logging.getLogger("transformers").setLevel(logging.ERROR)
PEERS = all_peers()
ALL = pytest.mark.parametrize("name", PEERS)
DECODERS = [name for name, peer in PEERS.items() if peer.form == "decoder"]
LIMIT = 5e-5  # of logits whose standard deviation is about 1, in float32
GATED = {"vocab_size": VOCAB, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
GATED |= {"num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 40}
UNUSED = {
    **dict.fromkeys(("bart", "mbart", "opt"), "embed_positions"),
    **dict.fromkeys(("roberta", "xlm-roberta", "camembert"), "position_embeddings"),
}
"""Tables that begin with two unused rows."""
CACHE: dict[str, tuple] = {}


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("families")


def both(name: str, root: Path):
    """Their model and ours, read from what they saved."""
    if name not in CACHE:
        theirs = make(PEERS[name], root / name)
        CACHE[name] = theirs, read_folder(root / name)
    return CACHE[name]


def ids(seed: int, length: int = LENGTH) -> torch.Tensor:
    return torch.randint(3, VOCAB, (2, length), generator=torch.Generator().manual_seed(seed))


def inputs(name: str):
    """The same inputs for both: keywords for theirs, arguments and keywords for ours."""
    form, generator = PEERS[name].form, torch.Generator().manual_seed(5)
    if form == "patches":
        picture = torch.randn(2, 3, 16, 16, generator=generator)
        patches = picture.unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 4, 5, 1).reshape(2, 16, -1)
        features = torch.cat([torch.zeros(2, 1, patches.shape[-1]), patches], 1)
        return {"pixel_values": picture}, (featured(features, 0),), {}
    if form == "frames":
        frames = torch.randn(2, 10, 40, generator=generator)
        arguments = {"input_features": frames, "decoder_input_ids": ids(1)}
        return arguments, (ids(1),), {"source": featured(frames.mT.reshape(2, 20, 20))}
    if form == "pair":
        return {"input_ids": ids(2, 25), "decoder_input_ids": ids(1)}, (ids(1),), {"source": ids(2, 25)}
    return {"input_ids": ids(1)}, (ids(1),), {}


def featured(features: torch.Tensor, first: int = -1) -> Tokens:
    kinds = torch.full(features.shape[:2], -1)
    kinds[:, 0] = first
    return Tokens(kinds, plain_coordinates(*features.shape[:2]), features=features)


def our_logits(model: Transformer, name: str, **more) -> torch.Tensor:
    _, arguments, keywords = inputs(name)
    logits = model(*arguments, **keywords, **more)
    return logits[:, 0] if PEERS[name].form == "patches" else logits


@pytest.mark.parametrize("activation", ["sigmoid", "linear"])
@torch.no_grad()
def test_gates_without_a_rectifier_go_in_and_out(activation, tmp_path):
    peer = replace(PEERS["llama3"], config=type(PEERS["llama3"].config)(**GATED, hidden_act=activation))
    theirs, ours = make(peer, tmp_path / "in"), read_folder(tmp_path / "in")
    torch.testing.assert_close(ours(ids(1)), theirs(ids(1)).logits, rtol=0, atol=LIMIT)
    write_folder(ours, tmp_path / "out")
    again = peer.model.from_pretrained(tmp_path / "out")
    assert torch.equal(again(ids(1)).logits, theirs(ids(1)).logits)


@ALL
def test_logits_are_equal(name, root):
    theirs, ours = both(name, root)
    with torch.no_grad():
        expected, got = theirs(**inputs(name)[0]).logits, our_logits(ours, name)
    assert expected.std() >= 1
    assert (got - expected).abs().max() < LIMIT


@pytest.mark.parametrize("name", [n for n in PEERS if PEERS[n].form != "encoder" and n != "vit"])
@torch.no_grad()
def test_cached_logits_are_equal(name, root):
    theirs, ours = both(name, root)
    expected, (_, (text,), keywords) = theirs(**inputs(name)[0]).logits, inputs(name)
    memory = ours.encode(keywords["source"]) if keywords else None
    cache, start = ours.build_cache(2), 0
    for size in (5, 1, 9, *[1] * 15):
        tokens = Tokens(text[:, start : start + size], plain_coordinates(2, size, start=start))
        got = ours.logits(ours.decode(tokens, memory=memory, cache=cache))
        assert (got - expected[:, start : start + size]).abs().max() < LIMIT
        start += size
    assert start == LENGTH


@pytest.mark.parametrize("name", [n for n in PEERS if PEERS[n].form in ("decoder", "encoder", "pair")])
@torch.no_grad()
def test_padding_makes_no_difference(name, root):
    """Decoders padded at the left, as prompts are; encoders at the right."""
    theirs, ours = both(name, root)
    form, is_real = PEERS[name].form, torch.ones(2, LENGTH, dtype=torch.long)
    if form == "decoder":
        is_real[1, :8] = 0
        index = (is_real.cumsum(1) - 1).clamp(min=0)
        expected = theirs(input_ids=ids(1), attention_mask=is_real, position_ids=index).logits
    else:
        is_real[1, 22:] = 0
        index = torch.arange(LENGTH).expand(2, -1)
    tokens = Tokens(ids(1), Coordinates(is_real - 1, index))
    if form == "pair":
        expected = theirs(input_ids=ids(1), attention_mask=is_real, decoder_input_ids=ids(2)).logits
        got, is_real = ours(ids(2), source=tokens), torch.ones_like(is_real)
    else:
        expected = theirs(input_ids=ids(1), attention_mask=is_real).logits if form == "encoder" else expected
        got = ours(tokens)
    assert ((got - expected)[is_real.bool()]).abs().max() < LIMIT


@pytest.mark.parametrize("name", ["gpt2", "gemma3", "mixtral", "bart"])
def test_gradients_are_equal(name, root):
    theirs, ours = both(name, root)
    for model, logits in ((theirs, theirs(**inputs(name)[0]).logits), (ours, our_logits(ours, name))):
        model.zero_grad()
        cross_entropy(logits.flatten(0, 1), ids(9).flatten()).backward()
    gradients = Transformer(ours.config)
    gradients.load_state_dict({n: p.grad for n, p in ours.named_parameters()} | _shared(ours), strict=False)
    write_folder(gradients, root / "gradients" / name)
    back = PEERS[name].model.from_pretrained(root / "gradients" / name).state_dict()
    compared = 0
    for n, p in theirs.named_parameters():
        if p.grad is not None and "embed_positions" not in n:
            torch.testing.assert_close(back[n], p.grad, rtol=2e-4, atol=2e-5)
            compared += 1
    assert compared > 20


def _shared(model: Transformer) -> dict:
    return {"head.weight": model.stem.embedding.weight.grad} if model.config.head.tied else {}


@ALL
def test_round_trips_are_bitwise(name, root):
    theirs, ours = both(name, root)
    folder = root / "written" / name
    kind = theirs.config.model_type
    assert write_folder(ours, folder, {"model_type": kind}) == type(theirs).__name__
    back = read_folder(folder)
    assert family_of(back.config, kind)[0].model_type == kind
    assert canonical(back.config) == canonical(ours.config)
    for n, tensor in state_of(ours).items():
        assert torch.equal(tensor, state_of(back)[n]), n
    again = PEERS[name].model.from_pretrained(folder).eval()
    for n, tensor in again.state_dict().items():
        before = theirs.state_dict()[n]
        unused = UNUSED.get(kind, "none")
        rows = 2 if unused in n else 0
        assert torch.equal(tensor[rows:], before[rows:]), n
    with torch.no_grad():
        assert torch.equal(again(**inputs(name)[0]).logits, theirs(**inputs(name)[0]).logits)
    again.save_pretrained(root / "saved" / name)
    for n, tensor in state_of(read_folder(root / "saved" / name)).items():
        assert torch.equal(tensor, state_of(ours)[n]), n


# That the tests above can fail: with the same weights and one field altered, logits differ.

HARMLESS = {
    "dropout", "initialization", "exits", "exit_loss", "ahead", "ahead_loss", "x0_shortcut", "balance_loss", "z_loss",
    "context_length",
    "key_bias",  # softmax forgets what all keys have in common
    "tied",  # with the same numbers in both tables
    "ngram_rows",  # without n-grams
}  # fmt: skip


def alterations(value, where: str = "", harmless=frozenset(HARMLESS)):
    """Copies of a config tree, each with one leaf changed, beside the path of the leaf."""
    for field in fields(value):
        path, old = f"{where}.{field.name}".lstrip("."), getattr(value, field.name)
        is_idle = field.name == "qk_norm_over" and value.qk_norm is None
        is_idle |= isinstance(value, Pooled) and field.name in ("activation", "dense_bias") and not value.dense
        is_idle |= isinstance(value, Lookup) and field.name in ("scale", "factor") and value.norm is not None
        if field.name in harmless or is_idle:
            continue
        if isinstance(old, tuple):
            for i, item in enumerate(old if old and is_dataclass(old[0]) else ()):
                for changed, leaf in alterations(item, f"{path}.{i}", harmless):
                    whole = (*old[:i], changed, *old[i + 1 :])
                    yield replace_at(value, field.name, whole, is_refused=changed is None), leaf
        elif is_dataclass(old):
            for changed, leaf in alterations(old, path, harmless):
                yield replace_at(value, field.name, changed, is_refused=changed is None), leaf
            if isinstance(old, LayerNorm | RMSNorm):
                change = RMSNorm(epsilon=old.epsilon) if isinstance(old, LayerNorm) else LayerNorm(epsilon=old.epsilon)
                yield replace_at(value, field.name, change), f"{path}.kind"
        else:
            for changed in changes(field.name, old):
                yield replace_at(value, field.name, changed), path


def replace_at(value, name, new, *, is_refused=False):
    try:
        if is_refused:
            return None
        return replace(value, **{name: new})
    except ValueError:
        return None  # no such model: that is a difference too


OTHERS = {
    "activation": ("silu", "gelu", "relu"),
    "norm_placement": ("pre", "post", "reordered", "sandwich"),
    "parallel": ("none", "own_norms", "one_norm"),
    "cross": ("none", "separate"),
    "qk_norm_over": ("head", "projection"),
    "order": ("interleaved", "halves"),
    "score": ("softmax", "sigmoid"),
    "over": ("first", "mean", "last"),
}
ABSENT = {
    "pattern": Window(3, 3),
    "position": Rotary(base=3.0),
    "extension": LinearExtension(factor=4.0),
    "qk_norm": RMSNorm(scale=False),
    "softcap": 1.0,
    "scale": 1.3,
}


def changes(name: str, old):
    if name in OTHERS:
        return [other for other in OTHERS[name] if other != old][:1]
    if isinstance(old, bool):
        return [not old]
    if old is None:
        return [ABSENT[name]] if name in ABSENT else []
    if isinstance(old, int):
        by_factor = ("num_heads", "num_kv_heads", "head_dim", "model_dim", "max_distance", "original_length")
        return [old * 4 if name in by_factor else old + 1]
    if name == "fraction":
        return [1.0 if old < 1 else 0.5]
    return [max(old * 4, 0.3)] if isinstance(old, float) else []


MUST_SEE = {
    "gpt2": {"decoder.blocks.0.norm.epsilon", "decoder.blocks.0.feedforward.activation", "stem.scale", "head.softcap"},
    "llama3": {"decoder.position.extension.factor", "decoder.position.base", "decoder.blocks.0.mixer.scale"},
    "mistral": {"decoder.blocks.0.mixer.pattern.before"},
    "gemma3": {"decoder.blocks.0.mixer.position.base", "decoder.position.base", "stem.scale"},
    "mixtral": {"decoder.blocks.0.feedforward.router.num_active"},
    "qwen3-moe": {"decoder.blocks.0.feedforward.router.normalize"},
    "t5": {"encoder.position.bidirectional", "encoder.position.max_distance", "head.scale"},
    "modernbert": {"encoder.blocks.1.mixer.pattern.after", "encoder.blocks.1.mixer.position.base"},
}


@ALL
@torch.no_grad()
def test_every_field_that_matters_breaks_parity_when_altered(name, root):
    _, ours = both(name, root)
    expected, seen, unseen = our_logits(ours, name), set(), set()
    for config, path in alterations(ours.config):
        (seen if differs(config, ours, name, expected) else unseen).add(path)
    assert unseen <= ALLOWED_UNSEEN, f"altering {sorted(unseen - ALLOWED_UNSEEN)} changed nothing"
    assert MUST_SEE.get(name, set()) <= seen
    assert len(seen) > 12


ALLOWED_UNSEEN = {
    "vocab_size",  # of a model of features
    *(f"decoder.blocks.{i}.mixer.pattern.after" for i in range(6)),  # what lies ahead is hidden anyway
}


def differs(config: ModelConfig | None, ours: Transformer, name: str, expected: torch.Tensor) -> bool:
    if config is None:
        return True
    try:
        other = Transformer(config).eval()
        other.load_state_dict(ours.state_dict())
        got = our_logits(other, name)
    except (ValueError, RuntimeError, AssertionError):
        return True  # the weights don't even fit
    return got.shape != expected.shape or bool((got - expected).abs().max() > 1e-3)
