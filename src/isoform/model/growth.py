"""A trained model made larger without changing its output: experts from one feed-forward, more blocks, more width.

The new parts contribute nothing at first, because their matrices back into the residual stream are zero, or because
copies share the work; they learn from there.
"""

from __future__ import annotations

from dataclasses import replace
from typing import assert_never

import torch

from isoform.config import differences
from isoform.model.block import Block
from isoform.model.component import Role, groups_of, roles_of, rows_of_parts
from isoform.model.config import BlockConfig, Head, ModelConfig, Pooled, StackConfig
from isoform.model.experts import upcycle_state
from isoform.model.parts import (
    LSTM,
    ALiBi,
    Attention,
    Buckets,
    Experts,
    FeedForward,
    Grid,
    Learned,
    Position,
    Rotary,
    Shaw,
    Sinusoidal,
    TokenChoice,
)
from isoform.model.transformer import Transformer
from isoform.outside import External


class OtherModel(ValueError):
    """A model to start from that differs in more than what training may begin with."""


@torch.no_grad()
def upcycle(model: Transformer, num_experts: int, num_active: int = 2, *, seed: int = 0) -> Transformer:
    """Each feed-forward copied into num_experts experts, of which a new router picks num_active per token (Komatsuzaki
    et al. 2023, "Sparse Upcycling"). The weights of a token's experts sum to 1, so the output is unchanged.

    Raises ValueError for feed-forwards that are experts already or have biases.
    """

    def block_of(block: BlockConfig) -> BlockConfig:
        inner = block.feedforward
        if inner is None or isinstance(inner, Experts):
            raise ValueError(
                "only one feed-forward can be copied into several; a block here has none, or experts already"
            )
        if inner.bias:
            raise ValueError("the feed-forward has biases, and experts are without biases")
        inner = replace(inner, feedforward_dim=model.config.feedforward_dim(inner))
        router = TokenChoice(num_active=num_active, balance_loss=0.01)
        return replace(block, feedforward=Experts(num_experts=num_experts, expert=inner, router=router))

    grown = _fresh(_with_blocks(model.config, block_of), seed)
    load_grown(grown, model)
    return grown.train(model.training)


@torch.no_grad()
def load_grown(target: Transformer, source: Transformer) -> list[str]:
    """Load another model's parameters; experts become copies of its feed-forward. New are tokens beyond its vocabulary,
    learned positions beyond its context, and a head with another kind of output.

    Returns what is another about context and positions. Raises OtherModel naming the fields that differ; dropout,
    initialization, the context's length and what of a position scheme holds no parameters may.
    """
    alike = _with_blocks(target.config, lambda block: replace(block, feedforward=_expert(block.feedforward)))
    compared = alike if _is_dense(source.config) else target.config
    has_new_head = _gives(source.config.head) != _gives(target.config.head)
    different = [
        f"{path}: {before} there, {now} here"
        for path, before, now in differences(_compared(source.config), _compared(compared))
        if not path.startswith(("dropout", "initialization"))
        and not path.endswith(("mixer.dropout", "context_length"))
        and not (path == "vocab_size" and source.config.vocab_size < target.config.vocab_size)
        and not (has_new_head and path.startswith("head"))
    ]
    if different:
        more = f"; and {len(different) - 3} more fields" if len(different) > 4 else ""
        shown = different[:3] if more else different
        raise OtherModel(f"the model to start from is another one: {'; '.join(shown)}{more}")
    state, into = source.state_dict(), dict(target.named_modules())
    if has_new_head:
        state = {name: tensor for name, tensor in state.items() if not name.startswith("head.")}
    for name, block in source.named_modules():
        twin = into.get(name)
        if not isinstance(block, Block) or not isinstance(twin, Block) or block.is_routed:
            continue
        if isinstance(feedforward := twin.config.feedforward, Experts) and block.feedforward is not None:
            state = {key: tensor for key, tensor in state.items() if not key.startswith(f"{name}.feedforward.")}
            copies = upcycle_state(block.feedforward.state_dict(), feedforward)
            state |= {f"{name}.feedforward.{part}": tensor for part, tensor in copies.items()}
    fresh = target.state_dict()
    for name, tensor in state.items():
        if name in fresh and len(tensor) != len(fresh[name]):  # new tokens and positions keep what they were made with
            shared = min(len(tensor), len(fresh[name]))
            fresh[name][:shared] = tensor[:shared]
            state[name] = fresh[name]
    result = target.load_state_dict(state, strict=False)
    roles, new = roles_of(target), {Role.ROUTER, Role.ADAPTER, *([Role.HEAD] if has_new_head else [])}
    missing = [
        n for n in result.missing_keys if roles.get(n) not in new and not (has_new_head and n.startswith("head."))
    ]
    assert not missing and not result.unexpected_keys
    return [
        f"{path} {now}" if before is None else f"{path} {before} -> {now}"
        for path, before, now in differences(source.config, target.config)
        if "position" in path.split(".") or path.endswith("context_length")
    ]


def _gives(head: Head) -> tuple:
    """What a head outputs: scores of tokens, of classes, or a vector."""
    return (type(head), head.num_outputs, head.embed) if isinstance(head, Pooled) else (type(head),)


def _expert(feedforward: FeedForward | None) -> FeedForward | None:
    return feedforward.expert if isinstance(feedforward, Experts) else feedforward


def _is_dense(config: ModelConfig) -> bool:
    return not any(isinstance(block.feedforward, Experts) for stack in config.stacks for block in stack.blocks)


def _compared(config: ModelConfig) -> ModelConfig:
    """The config with the widths of dense feed-forwards written out, and of positions only what has parameters."""

    def block_of(block: BlockConfig) -> BlockConfig:
        inner = block.feedforward
        if inner is None or isinstance(inner, Experts):
            return block
        return replace(block, feedforward=replace(inner, feedforward_dim=config.feedforward_dim(inner)))

    def stack_of(stack: StackConfig | None) -> StackConfig | None:
        if stack is None:
            return None
        has_own = isinstance(stack.position, Shaw)  # a block with a rotary scheme then lacks the tables of the others
        blocks = stack.blocks if has_own else tuple(_without_rotary(block) for block in stack.blocks)
        return replace(stack, position=_with_parameters(stack.position), blocks=blocks)

    sized = _with_blocks(config, block_of)
    return replace(sized, encoder=stack_of(sized.encoder), decoder=stack_of(sized.decoder))


def _without_rotary(block: BlockConfig) -> BlockConfig:
    return replace(block, mixer=replace(block.mixer, position=None)) if isinstance(block.mixer, Attention) else block


def _with_parameters(position: Position | None) -> Position | None:
    """A position scheme with a fixed value for what has no parameters."""
    match position:
        case None | Rotary() | Sinusoidal() | ALiBi():
            return None
        case Buckets(num_buckets=num_buckets):
            return replace(position, max_distance=num_buckets)
        case Learned() | Grid() | Shaw():
            return position
        case _:
            assert_never(position)


@torch.no_grad()
def deepen(model: Transformer, num_layers: int, *, seed: int = 0) -> Transformer:
    """The model with num_layers blocks in its last stack, the new ones spread among the old and contributing nothing at
    first.

    Raises ValueError for fewer blocks than the model has, and forms whose blocks can't be skipped: norms on the sum,
    exits, loops, shortcuts.
    """
    is_decoder = model.config.decoder is not None
    stack = model.config.decoder or model.config.encoder
    assert stack is not None
    layers = model.config.layers(stack)
    if num_layers < stack.num_layers:
        raise ValueError(f"num_layers={num_layers} is fewer than the model's {stack.num_layers}")
    mixers = [block.mixer for block in layers]
    has_shortcut = any(isinstance(mixer, Attention) and mixer.value_shortcut for mixer in mixers)
    if has_shortcut or any(b.norm_placement == "post" or b.x0_shortcut for b in layers):
        raise ValueError("blocks with a norm on the sum or with shortcuts can't be skipped; nothing can be added")
    if any(isinstance(mixer, LSTM | External) for mixer in mixers):
        raise ValueError(
            "an LSTM, or a mixer of the user's own, has no matrix that is known to lead back into the residual stream; "
            "nothing can be added"
        )
    if stack.exits or stack.loops > 1 or any(isinstance(b.feedforward, Experts) for b in layers):
        raise ValueError("stacks with exits, loops or experts can't be deepened")
    origin = [i * stack.num_layers // num_layers for i in range(num_layers)]
    is_new = [i > 0 and origin[i] == origin[i - 1] for i in range(num_layers)]
    deeper = replace(stack, num_layers=num_layers, blocks=tuple(layers[o] for o in origin))
    whole = model.config
    config = replace(whole, decoder=deeper) if is_decoder else replace(whole, encoder=deeper)
    grown, old, name = _fresh(config, seed), model.state_dict(), "decoder" if is_decoder else "encoder"
    outputs = {key.rpartition(".")[0] for key, role in roles_of(grown).items() if role is Role.OUTPUT}
    for key, tensor in grown.state_dict().items():
        if not key.startswith(f"{name}.blocks."):
            tensor.copy_(old[key])
            continue
        _, _, layer, rest = key.split(".", 3)
        if not is_new[int(layer)]:
            tensor.copy_(old[f"{name}.blocks.{origin[int(layer)]}.{rest}"])
        elif key.rpartition(".")[0] in outputs:
            tensor.zero_()
        elif rest.startswith(("mixer_norm.inner.", "cross_norm.inner.", "feedforward_norm.inner.")):
            tensor.copy_(old[f"{name}.blocks.{origin[int(layer)]}.{rest}"])
            if rest.endswith(".bias"):
                tensor.zero_()
    return grown.train(model.training)


@torch.no_grad()
def widen(model: Transformer, feedforward_dim: int, *, seed: int = 0) -> Transformer:
    """Feed-forwards of this inner width, the new part contributing nothing at first (Net2Net's idea, Chen et al. 2016).

    Raises ValueError for a smaller width than the model's, and for experts.
    """

    def block_of(block: BlockConfig) -> BlockConfig:
        inner = block.feedforward
        if inner is None or isinstance(inner, Experts):
            raise ValueError(
                "only a feed-forward can be widened; a block here has none, or experts: widen before upcycling"
            )
        if feedforward_dim < model.config.feedforward_dim(inner):
            raise ValueError(
                f"feedforward_dim={feedforward_dim} is less than the {model.config.feedforward_dim(inner)} there are"
            )
        return replace(block, feedforward=replace(inner, feedforward_dim=feedforward_dim))

    grown, old = _fresh(_with_blocks(model.config, block_of), seed), model.state_dict()
    wider, narrower = groups_of(grown), groups_of(model)
    for name, tensor in grown.state_dict().items():
        before = old[name]
        if tensor.shape == before.shape:
            tensor.copy_(before)
        elif tensor.shape[-1] != before.shape[-1] and tensor.dim() == 2:
            tensor.zero_()
            tensor[:, : before.shape[1]] = before
        else:
            rows = rows_of_parts(tensor, wider.get(name, (len(tensor),)))
            rows_before = rows_of_parts(before, narrower.get(name, (len(before),)))
            for part, part_before in zip(rows, rows_before, strict=True):
                tensor[part[: len(part_before)]] = before[part_before]
    return grown.train(model.training)


def _with_blocks(config: ModelConfig, block_of) -> ModelConfig:
    def stack_of(stack: StackConfig | None) -> StackConfig | None:
        return None if stack is None else replace(stack, blocks=tuple(map(block_of, stack.blocks)))

    return replace(config, encoder=stack_of(config.encoder), decoder=stack_of(config.decoder))


def _fresh(config: ModelConfig, seed: int) -> Transformer:
    """A model whose parameters are drawn from a generator of its own."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Transformer(config)
