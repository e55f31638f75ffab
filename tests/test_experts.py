"""Experts and mixture of depths: against loops over tokens, and what routing promises."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from isoform.mask import Causal, Coordinates, dense_mask
from isoform.model.depth import DepthRouter, Subset, choose
from isoform.model.experts import Auxiliary, build_experts, upcycle_state, update_load_biases
from isoform.model.feedforward import ACTIVATIONS, build_feedforward
from isoform.model.parts import Dense, Depth, ExpertChoice, Experts, Gated, TokenChoice
from isoform.objectives.losses import Loss
from isoform.objectives.task import with_auxiliary

D, F, E = 8, 6, 5
KINDS = [
    Gated(),
    Dense(),
    *(Dense(activation=a) for a in ACTIVATIONS if a != Dense().activation),
    *(Gated(activation=a) for a in ACTIVATIONS if a != Gated().activation),
]
ROUTERS = {
    "softmax": TokenChoice(),
    "one": TokenChoice(num_active=1, normalize=False),
    "all": TokenChoice(num_active=E),
    "raw": TokenChoice(num_active=3, normalize=False, scale=2.5),
    "sigmoid": TokenChoice(score="sigmoid", scale=0.5),
    "expert_choice": ExpertChoice(capacity_factor=1.5),
}


def built(expert=None, router=None, **more):
    """Experts in float64, all parameters drawn at random."""
    torch.manual_seed(0)
    config = Experts(num_experts=E, expert=expert or Gated(), router=router or TokenChoice(), **more)
    module = build_experts(config, D, F).double()
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.7)
    return module


def drawn(rows=3, length=7, seed=1) -> Tensor:
    torch.manual_seed(seed)
    return torch.randn(rows, length, D, dtype=torch.float64, requires_grad=True)


def expert_output(module, x: Tensor, expert: int) -> Tensor:
    """What one expert makes of one token (D)."""
    hidden, activation = module.experts.first[expert] @ x, ACTIVATIONS[module.experts.activation]
    if module.experts.width:
        gate, up = hidden.view(-1, 2, module.experts.width).unbind(1)
        hidden = (activation(gate) * up).flatten()
    else:
        hidden = activation(hidden)
    return module.experts.down[expert] @ hidden


def looped(module, x: Tensor, present: Tensor | None = None) -> Tensor:
    """The same, token by token and expert by expert, in the words of the papers."""
    config, rows = module.config, []
    here = torch.ones(x.shape[:2], dtype=torch.bool) if present is None else present
    for row, exists in zip(x, here, strict=True):
        logits = row @ module.router.weight.T
        out = [torch.zeros(D, dtype=x.dtype) for _ in row]
        if isinstance(config, ExpertChoice):
            scores = logits.softmax(-1)
            take = math.ceil(int(exists.sum()) * config.capacity_factor / E)
            for expert in range(E):
                ranked = [i for i in scores[:, expert].argsort(descending=True).tolist() if exists[i]]
                for i in ranked[:take]:
                    out[i] = out[i] + scores[i, expert] * expert_output(module, row[i], expert)
        else:
            scores = logits.softmax(-1) if config.score == "softmax" else logits.sigmoid()
            for i in range(len(row)):
                best = scores[i].argsort(descending=True)[: config.num_active]
                weights = scores[i, best] / (scores[i, best].sum() if config.normalize else 1) * config.scale
                if exists[i]:
                    for weight, expert in zip(weights, best, strict=True):
                        out[i] = out[i] + weight * expert_output(module, row[i], int(expert))
        rows.append(torch.stack(out))
    return torch.stack(rows)


def gradients(out: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    torch.manual_seed(5)
    return torch.autograd.grad((out * torch.randn_like(out)).sum(), inputs)


@pytest.mark.parametrize("is_padded", [False, True])
@pytest.mark.parametrize("router", ROUTERS)
def test_experts_equal_a_loop_over_tokens(router, is_padded):
    module, x = built(router=ROUTERS[router]), drawn()
    present = torch.rand(x.shape[:2]) > 0.3 if is_padded else None
    ours, theirs = module(x, present), looped(module, x, present)
    torch.testing.assert_close(ours, theirs)
    inputs = (x, *module.parameters())
    for a, b in zip(gradients(ours, *inputs), gradients(theirs, *inputs), strict=True):
        torch.testing.assert_close(a, b)
    with torch.no_grad():
        torch.testing.assert_close(module(x, present), theirs)
        for i in range(x.shape[1]) if router != "expert_choice" and not is_padded else ():
            torch.testing.assert_close(module(x[:1, i : i + 1]), theirs[:1, i : i + 1])


@pytest.mark.parametrize("expert", KINDS, ids=lambda e: f"{type(e).__name__}-{e.activation}")
def test_each_kind_of_expert_and_its_plain_form(expert):
    module, x = built(expert), drawn()
    inputs, theirs = (x, *module.parameters()), looped(module, x)
    expected = theirs, *gradients(theirs, *inputs)
    for work in (module.experts.work, module.experts.work_plainly):
        module.experts.work = work
        ours = module(x)
        for a, b in zip((ours, *gradients(ours, *inputs)), expected, strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("expert", [Gated(), Dense()])
def test_gradients_by_finite_differences(expert):
    module, x = built(expert, TokenChoice(num_active=2)), drawn(1, 4)
    names = [name for name, _ in module.named_parameters()]

    def call(x, *parameters):
        return torch.func.functional_call(module, dict(zip(names, parameters, strict=True)), (x,))

    assert torch.autograd.gradcheck(call, (x, *module.parameters()))


def test_an_expert_without_tokens_gets_a_zero_gradient():
    module, x = built(router=TokenChoice(num_active=1)), drawn()
    with torch.no_grad():
        module.router.weight.zero_()  # all tie, so that one expert is chosen by all
    module(x).sum().backward()
    chosen = module.experts.down.grad.abs().sum((1, 2)) > 0
    assert chosen.sum() == 1 and not module.experts.gate_up.grad[~chosen].any()


def test_no_token_at_all():
    for router in (TokenChoice(capacity_factor=1.0, z_loss=1.0, balance_loss=1.0), ExpertChoice()):
        module, x, auxiliary = built(router=router), drawn(), Auxiliary()
        out = module(x, torch.zeros(x.shape[:2], dtype=torch.bool), auxiliary)
        (out.sum() + sum(auxiliary.losses.values())).backward()
        assert not out.any() and not x.grad.any() and all(float(v) == 0 for v in auxiliary.counts.values())


@pytest.mark.parametrize("router", [TokenChoice(capacity_factor=0.75), ExpertChoice()], ids=["token", "expert"])
def test_padding_takes_no_part(router):
    """What stands in empty slots changes nothing, and takes nobody's room."""
    module, x, lengths = built(router=router), drawn(2, 9), (4, 9)
    present = torch.arange(9) < torch.tensor(lengths).unsqueeze(1)
    other = torch.where(present.unsqueeze(-1), x, 100 * x)
    for row, length in enumerate(lengths):
        alone = module(x[row : row + 1, :length])
        for stream in (x, other):
            torch.testing.assert_close(module(stream, present)[row : row + 1, :length], alone)
    assert not module(other, present)[0, 4:].any()


def test_capacity_takes_the_first_tokens_and_counts_the_others():
    router = TokenChoice(num_active=2, capacity_factor=0.5)
    module, x, auxiliary = built(router=router), drawn(2, 10), Auxiliary()
    out = module(x, None, auxiliary)
    best = (x @ module.router.weight.T).topk(2, dim=-1).indices
    room, dropped = math.ceil(10 * 2 * 0.5 / E), 0
    for row in range(2):
        taken = dict.fromkeys(range(E), 0)
        for i in range(10):
            weights = (x[row, i] @ module.router.weight.T)[best[row, i]].softmax(-1)
            expected = torch.zeros(D, dtype=x.dtype)
            for weight, expert in zip(weights, best[row, i].tolist(), strict=True):
                if taken[expert] < room:
                    taken[expert] += 1
                    expected = expected + weight * expert_output(module, x[row, i], expert)
                else:
                    dropped += 1
            torch.testing.assert_close(out[row, i], expected)
    assert int(auxiliary.counts["experts_dropped"]) == dropped > 0
    (grad,) = torch.autograd.grad(out[:, 4].sum(), x)
    assert not grad[:, 5:].any(), "a token's result depends on later ones"
    module.eval()
    torch.testing.assert_close(module(x), looped(module, x))  # in evaluation nothing is dropped


def test_expert_choice_takes_evenly_and_counts_who_is_missed():
    module, x, auxiliary = built(router=ExpertChoice(capacity_factor=0.5)), drawn(2, 10), Auxiliary()
    out = module(x, None, auxiliary)
    is_missed = (out == 0).all(-1)
    assert int(auxiliary.counts["experts_missed"]) == int(is_missed.sum()) >= 10  # of 20, at most 2 x 5 x 1 are taken


@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
@pytest.mark.parametrize("is_padded", [False, True])
def test_losses_are_their_formulas(score, is_padded):
    router = TokenChoice(score=score, balance_loss=0.3, z_loss=0.2, capacity_factor=0.5)
    module, x, auxiliary = built(router=router), drawn(), Auxiliary()
    present = torch.rand(x.shape[:2]) > 0.3 if is_padded else None
    module(x, present, auxiliary)
    logits = x.flatten(0, 1) @ module.router.weight.T
    logits = logits if present is None else logits[present.flatten()]
    scores = logits.softmax(-1) if score == "softmax" else logits.sigmoid()
    load = torch.bincount(scores.topk(2).indices.flatten(), minlength=E)
    share = (scores / scores.sum(-1, keepdim=True)).mean(0)
    balance = E * sum(load[i] / (2 * len(logits)) * share[i] for i in range(E))
    torch.testing.assert_close(auxiliary.losses["balance_loss"], 0.3 * balance)
    torch.testing.assert_close(auxiliary.losses["router_z_loss"], 0.2 * logits.exp().sum(-1).log().square().mean())
    torch.testing.assert_close(auxiliary.loads[module], load.double())
    assert torch.autograd.grad(sum(auxiliary.losses.values()), module.router.weight)[0].any()


def test_losses_of_parts_divide_to_their_weighted_mean():
    module, total, weights = built(router=TokenChoice(z_loss=1.0)), 0.0, (2.0, 6.0)
    means = []
    for seed, weight in enumerate(weights):
        auxiliary = Auxiliary()
        module(drawn(seed=seed), None, auxiliary)
        module(drawn(seed=seed), None, auxiliary)  # a second module's share is added
        loss = with_auxiliary(Loss(torch.tensor(0.0), torch.tensor(0.0), torch.tensor(weight)), auxiliary)
        torch.testing.assert_close(loss.parts["router_z_loss"], loss.total.detach())
        total, means = total + loss.total / sum(weights), [*means, sum(auxiliary.losses.values())]
    torch.testing.assert_close(total, 0.25 * means[0] + 0.75 * means[1])


def test_biases_even_out_the_load_and_touch_no_weight():
    module, x = built(router=TokenChoice(num_active=1, normalize=False, bias_rate=0.02)), drawn(8, 64)
    x = (x + 1).detach()

    def load() -> Tensor:
        auxiliary = Auxiliary()
        module(x, None, auxiliary)
        update_load_biases(auxiliary.loads)
        return auxiliary.loads[module]

    before = load()
    for _ in range(200):
        after = load()
    assert before.max() > 1.5 * before.mean() and after.max() < 1.3 * after.mean()
    assert "load_bias" in module.state_dict() and "load_bias" not in built().state_dict()
    module.load_bias[2] = 9.0
    weight = (x[0, 0] @ module.router.weight.T).softmax(-1)[2]
    torch.testing.assert_close(module(x)[0, 0], weight * expert_output(module, x[0, 0], 2))


@pytest.mark.parametrize("expert", [Gated(), Dense()])
def test_reduced_products(expert):
    """bfloat16 in the products, float32 around them, forward and backward."""
    module = built(expert).float()
    x = drawn().float().detach().requires_grad_()
    exact = (out := module(x), *gradients(out, x, *module.parameters()))
    module.experts.product_dtype = torch.bfloat16
    reduced = (out := module(x), *gradients(out, x, *module.parameters()))
    for a, b in zip(exact, reduced, strict=True):
        assert b.dtype == torch.float32 and 0 < (a - b).norm() < 0.02 * a.norm()
    with torch.no_grad():
        torch.testing.assert_close(module(x), reduced[0], rtol=1e-4, atol=1e-4)
        one, before = module(x[:1, :1]), reduced[0][:1, :1]
        torch.testing.assert_close(one, before, rtol=0.02, atol=0.02)
        module.experts.down.mul_(2)  # the rounded copy that inference keeps must follow
        torch.testing.assert_close(module(x[:1, :1]), 2 * one)


def test_shared_experts_are_a_feedforward_for_all():
    module, x = built(num_shared=2), drawn()
    torch.testing.assert_close(module(x), looped(module, x) + module.shared(x))
    assert module.shared.down.weight.shape == (D, 2 * F)


def test_the_same_bits_again():
    module, x = built().float(), drawn().float().detach()
    first = module(x)
    assert all(torch.equal(first, module(x)) for _ in range(3))


@pytest.mark.parametrize("expert", [Gated(), Dense()])
def test_upcycled_experts_answer_as_the_dense_feedforward(expert):
    dense = build_feedforward(expert, D, F).double()
    config = Experts(num_experts=E, expert=expert)
    module, x = built(expert), drawn()
    missing, unexpected = module.load_state_dict(upcycle_state(dense.state_dict(), config), strict=False)
    assert missing == ["router.weight"] and not unexpected
    torch.testing.assert_close(module(x), dense(x))
    for other in (
        replace(config, num_shared=1),
        replace(config, router=ExpertChoice()),
        replace(config, router=TokenChoice(normalize=False)),
    ):
        with pytest.raises(ValueError, match="sum to 1"):
            upcycle_state(dense.state_dict(), other)
    with pytest.raises(ValueError, match=r"up\.bias"):
        upcycle_state(build_feedforward(replace(expert, bias=True), D, F).state_dict(), config)


def plain(rows: int, length: int) -> Coordinates:
    return Coordinates(torch.zeros(rows, length, dtype=torch.long), torch.arange(length).expand(rows, length))


def test_the_chosen_are_the_best_of_each_row_in_their_order():
    scores = torch.tensor([[0.1, 3.0, 2.0, 5.0, 9.0, 8.0], [4.0, 1.0, 2.0, 0.5, 6.0, 5.0]])
    present = torch.tensor([[True] * 4 + [False] * 2, [True] * 6])
    subset = choose(scores, present, 0.5)
    kept = [row[chosen].tolist() for row, chosen in zip(subset.indices, subset.is_chosen, strict=True)]
    assert kept == [[1, 3], [0, 4, 5]]
    coordinates = subset.coordinates(plain(1, 6))
    assert (coordinates.document == -1).tolist() == (~subset.is_chosen).tolist()
    assert torch.equal(coordinates.index, subset.indices) and coordinates.start is None
    torch.testing.assert_close(subset.weights, scores.gather(1, subset.indices).sigmoid())


def attention(x: Tensor, coordinates: Coordinates) -> Tensor:
    """A block in small: x and the mean of what it sees."""
    edges = dense_mask(Causal(), coordinates, coordinates).to(x.dtype)
    return x + edges @ x / edges.sum(-1, keepdim=True).clamp(min=1)


def through(subset: Subset, x: Tensor, coordinates: Coordinates) -> Tensor:
    """The wiring that depth.py describes."""
    inside = subset.gather(x)
    return subset.scatter_back(x, inside, attention(inside, subset.coordinates(coordinates)))


@pytest.mark.parametrize("share", [0.3, 1.0])
def test_only_the_chosen_see_each_other(share):
    torch.manual_seed(0)
    router, x = DepthRouter(Depth(share=share), D).double(), drawn(2, 7)
    present = torch.arange(7) < torch.tensor([[5], [7]])
    subset, coordinates = router.choose(x, present), plain(2, 7)
    out = through(subset, x, coordinates)
    for row, length in enumerate((5, 7)):
        take = math.ceil(length * share)
        scores = (x @ router.router.weight.T)[row, :length, 0]
        best = sorted(scores.argsort(descending=True)[:take].tolist())
        alone = x[row].clone()
        for n, i in enumerate(best):
            alone[i] = x[row, i] + scores[i].sigmoid() * x[row, best[: n + 1]].mean(0)
        torch.testing.assert_close(out[row], alone)
    assert torch.autograd.grad(out.sum(), router.router.weight)[0].any()


def test_a_prediction_that_hits_gives_the_same_as_the_choice():
    torch.manual_seed(0)
    router, x, coordinates = DepthRouter(Depth(share=0.5), D).double(), drawn(1, 8), plain(1, 8)
    scores = (x @ router.router.weight.T)[0, :, 0].sort().values
    with torch.no_grad():
        router.predictor.weight.copy_(router.router.weight)
        router.predictor.bias.fill_(-float(scores[3] + scores[4]) / 2)
    chosen, predicted = router.choose(x), router.predict(x)
    assert predicted.is_chosen[0].nonzero().flatten().tolist() == chosen.indices[0].tolist()
    torch.testing.assert_close(through(predicted, x, coordinates), through(chosen, x, coordinates))
    earlier = through(router.predict(x[:, :5]), x[:, :5], plain(1, 5))
    torch.testing.assert_close(earlier, through(predicted, x, coordinates)[:, :5])  # by its past alone


def test_the_predictor_learns_without_moving_the_stream():
    torch.manual_seed(0)
    router, x, auxiliary = DepthRouter(Depth(share=0.25, predictor_loss=0.5), D).double(), drawn(2, 8), Auxiliary()
    present = torch.arange(8) < torch.tensor([[8], [4]])
    subset = router.choose(x, present, auxiliary)
    happened = torch.zeros(2, 8, dtype=torch.float64)
    for row in range(2):
        happened[row, subset.indices[row][subset.is_chosen[row]]] = 1
    assert happened.sum(1).tolist() == [2, 1]
    p = router.predictor(x)[..., 0].sigmoid()
    nats = -(happened * p.log() + (1 - happened) * (1 - p).log())[present]
    torch.testing.assert_close(auxiliary.losses["predictor_loss"], 0.5 * nats.mean())
    grads = torch.autograd.grad(
        sum(auxiliary.losses.values()), (router.predictor.weight, x, router.router.weight), allow_unused=True
    )
    assert grads[0].any() and grads[1] is None and grads[2] is None
