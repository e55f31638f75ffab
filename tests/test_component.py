"""What modules say of their parameters: roles, groups and methods, for all forms; and shards of whole groups."""

from contextlib import contextmanager
from dataclasses import replace
from functools import wraps

import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from isoform.batch import plain_tokens
from isoform.checkpoint.versions import upgrade_tensors
from isoform.model.adapters import adapt
from isoform.model.component import Component, Role, group_width, grouped, groups_of, roles_of, rows_of_parts
from isoform.model.config import Linear as LinearStemConfig
from isoform.model.config import LowRank, Pooled
from isoform.model.embedding import LinearStem, PooledHead
from isoform.model.experts import build_experts
from isoform.model.feedforward import GatedFeedForward
from isoform.model.mixers.attention import AttentionTerms, MultiHeadAttention
from isoform.model.mixers.documents import Documents
from isoform.model.mixers.recurrence import RecurrenceMixer
from isoform.model.parts import Attention, Experts, Gated, TokenChoice
from models import FORMS, VOCAB, build, pair, reads_forward

PAIRS = {f"{name}, pair": pair(form) for name, form in FORMS.items() if not reads_forward(form)}
JOINT = {
    f"{name}, joint, {layers}": replace(
        both, decoder=replace(both.decoder, cross="joint", memory_layers=layers, exits=both.encoder.exits)
    )
    for name, both in ((name, pair(FORMS[name])) for name in ("plain", "grouped", "biases", "buckets"))
    for layers in ("last", "layerwise")
}
ALL = {**FORMS, **PAIRS, **JOINT}


@pytest.mark.parametrize("name", ALL)
def test_every_parameter_has_a_role(name):
    model = build(ALL[name])
    roles = roles_of(model)
    assert list(roles) == [name for name, _ in model.named_parameters()]
    vectors = {Role.GAIN, Role.SHIFT, Role.MIX}
    assert all((p.dim() == 1) == (roles[n] in vectors) for n, p in model.named_parameters())
    for stack in (model.encoder, model.decoder):
        for block in [] if stack is None else stack.blocks:
            into = [n for n, p in block.named_parameters() if roles_of(block)[n] is Role.OUTPUT]
            assert len(into) >= (block.config.feedforward is not None) + (block.cross is not None)
            assert all(n.rsplit(".", 2)[-2] in ("output", "down", "experts") for n in into)


def test_roles_say_what_is_drawn_how_and_what_muon_is_for():
    roles = roles_of(build(FORMS["shortcuts"]))
    assert roles["stem.embedding.weight"] is Role.EMBEDDING and roles["head.weight"] is Role.HEAD
    assert roles["decoder.blocks.1.mixer.value_mix"] is roles["decoder.blocks.1.x0_mix"] is Role.MIX
    assert roles["decoder.blocks.0.mixer.query_key_value.weight"] is Role.MATRIX
    assert roles_of(build(FORMS["n-grams"]))["stem.ngrams.1.weight"] is Role.CONTEXT_EMBEDDING
    assert roles_of(build(FORMS["shaw"]))["decoder.blocks.0.position.key_table"] is Role.TABLE
    assert roles_of(build(FORMS["experts"]))["decoder.blocks.0.feedforward.router.weight"] is Role.ROUTER
    assert roles_of(build(FORMS["gained heads"]))["decoder.blocks.0.mixer.query_norm.weight"] is Role.SHIFT
    assert roles_of(PooledHead(Pooled(num_outputs=3), 8))["output.weight"] is Role.HEAD
    assert roles_of(LinearStem(LinearStemConfig(num_features=4), 8))["projection.weight"] is Role.EMBEDDING


def test_a_matrix_of_which_nobody_says_what_it_is_stops_the_building():
    model = build(FORMS["plain"])
    model.decoder.blocks[0].new = nn.Linear(4, 4)
    with pytest.raises(ValueError, match=r"what decoder.blocks.0.new.weight is for"):
        roles_of(model)


@pytest.mark.parametrize("name", ALL)
def test_groups_are_whole_and_each_row_is_of_one_part(name):
    model = build(ALL[name])
    state = model.state_dict()
    for key, sizes in groups_of(model).items():
        parts = rows_of_parts(state[key], sizes)
        count = state[key].shape[-2 if state[key].dim() > 1 else 0]
        assert torch.cat(parts).sort().values.equal(torch.arange(count))
        assert [len(part) * sum(sizes) for part in parts] == [count * size for size in sizes]
    fused = ("query_key_value.weight", "key_value.weight", "gate_up.weight", "gate_up", "decay_candidate_gate.weight")
    assert {key for key in state if key.endswith(fused)} <= groups_of(model).keys()


def test_groups_of_matrices_that_lie_above_each_other():
    above = torch.arange(8).float().view(8, 1)  # queries 0 1 2 3, keys 4 5, values 6 7 of two groups
    assert grouped(above, (2, 1, 1)).flatten().tolist() == [0, 1, 4, 6, 2, 3, 5, 7]
    experts = torch.arange(8).float().view(1, 8, 1).expand(3, 8, 2)
    assert grouped(experts, (2, 2))[2, :, 1].tolist() == [0, 1, 4, 5, 2, 3, 6, 7]


def test_groups_of_features_are_as_many_as_can_be_wide():
    widths = {256: 32, 11008: 1376, 14336: 1792, 128: 32, 192: 96, 64: 32, 688: 344, 1368: 684, 24: 12, 7: 7}
    assert {features: group_width(features) for features in widths} == widths


def test_tensors_of_an_earlier_layout_are_regrouped_unless_they_are_of_another_model():
    model, name = build(FORMS["grouped"]), "decoder.blocks.0.mixer.query_key_value.weight"
    above = torch.arange(32.0).view(32, 1).expand(32, 16)
    assert upgrade_tensors({name: above}, 2, model)[name][:, 0].equal(grouped(above, (8, 4, 4))[:, 0])
    other = torch.zeros(31, 16)
    assert upgrade_tensors({name: other}, 2, model)[name] is other
    assert upgrade_tensors({name: above}, 3, model)[name] is above


def shard(module: nn.Module, smaller: nn.Module, which: int, count: int) -> nn.Module:
    """A module of the same kind with the which-th of `count` equal parts of everything that is not of model_dim."""
    state = {}
    for name, target in smaller.state_dict().items():
        tensor = module.state_dict()[name]
        for dim in range(tensor.dim()):
            if tensor.shape[dim] != target.shape[dim]:
                tensor = tensor.chunk(count, dim)[which]
        state[name] = tensor
    smaller.load_state_dict(state)
    return smaller


D = 16
ATTENTIONS = {
    "each its key": {"num_heads": 4},
    "shared keys": {"num_heads": 8, "num_kv_heads": 2, "head_dim": 4},
    "biases": {"num_heads": 4, "bias": True, "output_bias": False},
    "no bias of keys": {
        "num_heads": 8,
        "num_kv_heads": 4,
        "head_dim": 4,
        "bias": True,
        "key_bias": False,
        "output_bias": False,
    },
}


@pytest.mark.parametrize("name", ATTENTIONS)
def test_shards_of_attention_add_up(name):
    torch.manual_seed(0)
    fields = ATTENTIONS[name]
    half = {key: value // 2 if key in ("num_heads", "num_kv_heads") else value for key, value in fields.items()}
    head_dim = fields.get("head_dim", D // fields["num_heads"])
    x, memory = torch.randn(2, 5, D), torch.randn(2, 7, D)
    for cross in (False, True):
        whole = MultiHeadAttention(Attention(**fields), D, head_dim, cross=cross)
        for bias in (n for n in whole.state_dict() if n.endswith("bias")):
            nn.init.normal_(whole.get_parameter(bias))
        parts = [shard(whole, MultiHeadAttention(Attention(**half), D, head_dim, cross=cross), i, 2) for i in range(2)]
        run = (lambda m: m.read(x, memory, AttentionTerms())) if cross else (lambda m: m(x, AttentionTerms())[0])
        assert [part.num_heads for part in parts] == [fields["num_heads"] // 2] * 2
        torch.testing.assert_close(sum(run(part) for part in parts), run(whole), rtol=1e-5, atol=1e-5)


def test_shards_of_feedforwards_experts_and_recurrences_add_up():
    torch.manual_seed(0)
    x = torch.randn(2, 5, D)
    whole = GatedFeedForward(Gated(), D, 256)
    parts = [shard(whole, GatedFeedForward(Gated(), D, 64), i, 4) for i in range(4)]
    for part in parts:
        part.gate_up.group = whole.gate_up.group  # a shard has fewer groups, not smaller ones
    torch.testing.assert_close(sum(part(x) for part in parts), whole(x), rtol=1e-5, atol=1e-5)

    config = Experts(num_experts=3, expert=Gated(), router=TokenChoice())
    whole = build_experts(config, D, 256)
    for kind in (torch.no_grad, torch.enable_grad):
        parts = [shard(whole, build_experts(config, D, 64), i, 4) for i in range(4)]
        for part in parts:
            part.experts.width = whole.experts.width
        with kind():
            torch.testing.assert_close(sum(part(x) for part in parts), whole(x), rtol=1e-5, atol=1e-5)

    whole, documents = RecurrenceMixer(D, 24), Documents(plain_tokens(torch.zeros(2, 5).long()).coordinates)
    whole.reset_parameters()
    parts = [shard(whole, RecurrenceMixer(D, 12), i, 2) for i in range(2)]
    for part in parts:
        part.decay_candidate_gate.group = whole.decay_candidate_gate.group
    torch.testing.assert_close(sum(part(x, documents) for part in parts), whole(x, documents), rtol=1e-5, atol=1e-5)


class Uses(TorchFunctionMode):
    """Notes each parameter that a function is given while no module that owns it is at work."""

    def __init__(self, model: nn.Module) -> None:
        self.owners: dict[int, list[str]] = {}
        for path, module in model.named_modules():
            for parameter in module.parameters(recurse=False):
                self.owners.setdefault(id(parameter), []).append(path)
        self.working: list[str] = []
        self.stray: set[str] = set()
        super().__init__()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        flat = [a for arg in args for a in (arg if isinstance(arg, list | tuple) else [arg])]
        harmless = ("__get__", "dim", "size", "is_floating_point", "data_ptr", "__len__", "stride", "numel")
        if getattr(func, "__name__", "") not in harmless:
            for owners in (self.owners.get(id(a)) for a in flat if isinstance(a, nn.Parameter)):
                if owners and not any(owner in self.working for owner in owners):
                    self.stray.add(f"{owners[0]} in {func.__name__}")
        return func(*args, **(kwargs or {}))

    @contextmanager
    def watched(self, model: nn.Module):
        for path, module in model.named_modules():
            methods = module.methods if isinstance(module, Component) else ()
            for name in ("forward", *methods):
                setattr(module, name, self.noted(path, getattr(module, name)))
        with self:
            yield

    def noted(self, path: str, method):
        @wraps(method)
        def wrapper(*args, **kwargs):
            self.working.append(path)
            try:
                return method(*args, **kwargs)
            finally:
                self.working.pop()

        return wrapper


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("trains", [False, True])
def test_parameters_are_used_by_forward_or_a_method_that_is_named(name, trains):
    model = build(ALL[name]).train(trains)
    ids = torch.randint(VOCAB, (2, 6))
    source = torch.randint(VOCAB, (2, 5)) if model.encoder is not None else None
    uses = Uses(model)
    with uses.watched(model), torch.set_grad_enabled(trains):
        model(ids, source=source)
        if not trains and model.decoder is not None:
            cache = model.build_cache(2)
            model.decode(ids, memory=None if source is None else model.encode(source), cache=cache)
    assert not uses.stray


def test_a_parameter_that_is_used_from_elsewhere_is_noticed():
    model = build(FORMS["plain"])
    uses = Uses(model)
    with uses.watched(model):
        torch.nn.functional.linear(torch.zeros(1, 16), model.decoder.blocks[0].mixer.output.weight)
    assert uses.stray == {"decoder.blocks.0.mixer.output in linear"}


def test_adapters_have_the_groups_of_their_matrix():
    model = build(FORMS["grouped"])
    adapt(model, LowRank(rank=2, targets=("attention", "feedforward")))
    groups = groups_of(model)
    name = "decoder.blocks.0.mixer.query_key_value"
    assert groups[f"{name}.adapter_b"] == groups[f"{name}.weight"] == (8, 4, 4)
    assert roles_of(model)[f"{name}.adapter_a"] is Role.ADAPTER
