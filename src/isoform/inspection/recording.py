"""Intermediate tensors of a model, recorded by name without changing its output, within a memory limit."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from fnmatch import fnmatchcase

import torch
from torch import Tensor

from isoform.batch import Tokens, plain_tokens
from isoform.config import nearest
from isoform.mask import Mask
from isoform.model.auxiliary import Auxiliary
from isoform.model.config import BlockConfig, ModelConfig, StackConfig
from isoform.model.parts import Experts
from isoform.model.recording import recorder_of
from isoform.model.transformer import Transformer

LIMIT = 2**30


@torch.inference_mode()
def record(
    model: Transformer,
    tokens: Tensor,
    *names: str,
    mask: Mask | None = None,
    source: Tensor | None = None,
    source_mask: Mask | None = None,
    limit: int = LIMIT,
) -> dict[str, Tensor]:
    """Run a model on ids (B, T), and on a source (B, S) for an encoder, and return the tensors of these names, in which
    `*` is a wildcard: decoder.blocks.2.mixer.weights, decoder.blocks.*.feedforward. `recordable` lists them.

    Recording doesn't change the model's output. Raises ValueError for a name that no tensor has, with the nearest one,
    and, before running the model, if the tensors would take more than `limit` bytes.
    """
    shapes = recordable(model.config, tuple(tokens.shape), None if source is None else tuple(source.shape))
    for name in names:
        if not any(fnmatchcase(candidate, name) for candidate in shapes):
            near = nearest(name, shapes)
            remedy = f"did you mean {near!r}? " if near else ""
            raise ValueError(f"no tensor is called {name!r}; {remedy}recordable() lists all {len(shapes)} names")
    matches = [candidate for candidate in shapes if any(fnmatchcase(candidate, name) for name in names)]
    size = sum(math.prod(shapes[match]) for match in matches) * next(model.parameters()).element_size()
    if size > limit:
        raise ValueError(
            f"{len(matches)} tensors would take {size:,} bytes, above limit={limit:,}; request fewer, or raise it"
        )
    recorder = recorder_of(names)
    model.eval()
    model.hidden(tokens, mask, source, source_mask, Auxiliary(recorder=recorder))
    return recorder.tensors


def recordable(
    config: ModelConfig, shape: tuple[int, ...], source_shape: tuple[int, ...] | None = None
) -> Mapping[str, tuple[int, ...]]:
    """The names that `record` accepts, with the shapes of their tensors for ids (B, T), and a source (B, S). The model
    runs on the meta device, without computing or allocating anything."""
    with torch.device("meta"):
        model = Transformer(_plain(config)).eval().to("meta")  # tables of positions are made on the CPU
        tokens, source = (None if s is None else _tokens(s) for s in (shape, source_shape))
    assert tokens is not None
    recorder = recorder_of(["*"])
    model.hidden(tokens, None, source, None, Auxiliary(recorder=recorder))
    return {name: tuple(tensor.shape) for name, tensor in recorder.tensors.items()}


def _tokens(shape: tuple[int, ...]) -> Tokens:
    return plain_tokens(torch.zeros(shape, dtype=torch.long))


def _plain(config: ModelConfig) -> ModelConfig:
    """A config with the same shapes but no data-dependent routing: a single expert, and every block for all tokens."""

    def stack_of(stack: StackConfig | None) -> StackConfig | None:
        if stack is None:
            return None
        return replace(stack, blocks=tuple(map(block_of, stack.blocks)))

    def block_of(block: BlockConfig) -> BlockConfig:
        feedforward = block.feedforward
        expert = feedforward.expert if isinstance(feedforward, Experts) else feedforward
        return replace(block, depth=None, feedforward=expert)

    return replace(config, encoder=stack_of(config.encoder), decoder=stack_of(config.decoder))
