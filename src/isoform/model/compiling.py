"""Functions that torch compiles when they are first called."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import torch

MOST_PROGRAMS = 64
"""Programs of one function that are kept."""
P = ParamSpec("P")
T = TypeVar("T")


def compiled(f: Callable[P, T], *, has_open_shapes: bool) -> Callable[P, T]:
    """f, a program for each kind of arguments and each shape or, with open shapes, one for the first shape and one for
    all others. After too many programs torch would run f uncompiled with a warning; instead they are dropped, and
    compiled again when needed."""
    translated = torch.compile(f, dynamic=None if has_open_shapes else False)

    @wraps(f)
    def call(*arguments: P.args, **keywords: P.kwargs) -> T:
        with torch._dynamo.config.patch(recompile_limit=MOST_PROGRAMS, fail_on_recompile_limit_hit=True):
            try:
                return translated(*arguments, **keywords)
            except torch._dynamo.exc.FailOnRecompileLimitHit:
                torch.compiler.reset()
                return translated(*arguments, **keywords)

    return call
