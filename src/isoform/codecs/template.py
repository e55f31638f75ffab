"""Chat templates: how a model's makers lay out a conversation, as a Jinja program that anyone may have written.

It is run in Jinja's sandbox, as `transformers` runs it, and within limits: loops, values and the text itself have a
size beyond which the template is refused. It knows no clock, so that the same conversation is always the same text.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence, Sized
from functools import lru_cache, wraps
from itertools import islice
from typing import Any, NamedTuple

from jinja2 import TemplateError, nodes, pass_eval_context
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment, SecurityError
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

LIMIT = 2**22
"""Characters of a value, or of a conversation."""
MAX_VALUES = 2**19
"""Elements of a value, and of what is in them."""
MAX_STEPS = 10**7
"""Steps of loops, and characters of what is made, in one conversation."""
MAX_TEMPLATE = 2**20
"""Characters of a template; the longest of published models has 20,000."""
FILTERS = (
    *("abs", "capitalize", "count", "d", "default", "dictsort", "first", "float", "int", "items", "join", "last"),
    *("length", "list", "lower", "map", "max", "min", "reject", "rejectattr", "replace", "reverse", "round", "safe"),
    *("select", "selectattr", "sort", "string", "title", "tojson", "trim", "unique", "upper"),
)
"""Those that templates use, and whose results are bounded by their inputs."""
GROWING = ("center", "ljust", "rjust", "zfill", "expandtabs", "format", "format_map", "translate", "to_bytes")
"""Methods whose results are as long as a number says."""

FAILURES = (
    *(TemplateError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError, RecursionError, SyntaxError),
    MemoryError,
)
"""What a template may fail with."""
LARGEST = 10**18
"""The largest whole number."""


class Rendered(NamedTuple):
    """A conversation as text, and what of it the template marks as the assistant's, from and to which character."""

    text: str
    marked: tuple[tuple[int, int], ...]


def render(template: str, messages: Sequence[Mapping[str, Any]], **values: Any) -> Rendered:
    """A conversation by a template. values: the other names that it knows, such as eos_token, tools.

    Raises ValueError for a template that is none, refuses the conversation, or goes beyond the limits.
    """
    try:
        program = _compiled(template)
        environment = program.environment
        assert isinstance(environment, _Environment)
        environment.begin()
        for part in program.root_render_func(program.new_context({**values, "messages": messages})):
            environment.parts.append(part)
            environment.written += len(part)
            environment.step(1 if environment.written <= LIMIT else MAX_STEPS + 1)
        return Rendered("".join(environment.parts), tuple(environment.marked))
    except FAILURES as error:
        raise ValueError(_failure(error)) from None


def is_marked(template: str) -> bool:
    """Whether a template says itself what the assistant generates. Raises ValueError for one that is none."""
    try:
        return _compiled(template).environment.marks  # pyrefly: ignore
    except FAILURES as error:
        raise ValueError(_failure(error)) from None


def _failure(error: BaseException) -> str:
    """What a template fails with, in one line."""
    return f"the chat template fails: {' '.join(str(error).split())[:200] or type(error).__name__}"


@lru_cache(maxsize=8)
def _compiled(template: str) -> Any:
    if len(template) > MAX_TEMPLATE:
        raise ValueError(f"it has {len(template):,} characters, and at most {MAX_TEMPLATE:,} are read")
    return _Environment().from_string(template)


class _Environment(ImmutableSandboxedEnvironment):
    """The sandbox, with what templates know there, and a count of what one of them does."""

    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def __init__(self) -> None:
        extensions = (_Generation, loopcontrols)
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=extensions, finalize=self._finalized)
        self.marks, self.concat = False, self._joined  # pyrefly: ignore
        self.filters = {name: self._bounded(self.filters[name]) for name in FILTERS}
        self.filters["tojson"] = self._bounded(_tojson)
        self.tests = {name: self._bounded(test) for name, test in self.tests.items()}
        self.globals: dict[str, Any] = {
            "range": self.globals["range"],
            "dict": _dict,
            "namespace": _Names,
            "raise_exception": _refuse,
        }
        self.begin()

    def begin(self) -> None:
        """Begin a conversation."""
        self.parts: list[str] = []
        self.marked: list[tuple[int, int]] = []
        self.steps = self.written = 0

    def step(self, count: int) -> None:
        """Count steps. Raises SecurityError beyond the limit."""
        self.steps += count
        if self.steps > MAX_STEPS:
            raise SecurityError(f"it takes more than {MAX_STEPS:,} steps, or writes more than {LIMIT:,} characters")

    def measured(self, value: Any) -> Any:
        """The same value. Raises SecurityError if it would be too long when written out."""
        total, count, rest = 0, 0, [value]
        while rest:
            item = rest.pop()
            count += 1
            total += len(item) if isinstance(item, str) else 1
            if isinstance(item, Mapping):
                rest += [*item, *item.values()]
            elif isinstance(item, list | tuple):
                rest += item
            if total > LIMIT or count + len(rest) > MAX_VALUES:
                raise SecurityError(f"it makes a value of more than {LIMIT:,} characters")
        self.step(total)
        return value

    def _finalized(self, value: Any) -> Any:
        return value if isinstance(value, str) else self.measured(value)

    def _joined(self, parts: Any) -> str:
        return "".join(self.measured([*parts]))

    def _bounded(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """A filter whose arguments and result are measured."""

        @wraps(function)
        def filtered(*arguments: Any, **named: Any) -> Any:
            plain = [a for a in (*arguments, *named.values()) if isinstance(a, str | list | tuple | dict)]
            self.measured(plain)
            if function.__name__ in ("do_replace", "sync_do_join", "do_join"):
                self._check_growth(plain)
            return self.measured(function(*arguments, **named))

        return filtered

    def _check_growth(self, values: Sequence[Any]) -> None:
        """Refuse to repeat a long text many times."""
        if len(values) > 1 and (1 + len(values[0])) * (1 + len(values[-1])) > 64 * LIMIT:
            raise SecurityError("it repeats a long text many times")

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Sums, products and powers, of limited size."""
        sized = [len(v) if isinstance(v, str | list | tuple) else abs(v) for v in (left, right) if _has_size(v)]
        is_text = isinstance(left, str | list | tuple) or isinstance(right, str | list | tuple)
        if operator == "%" and isinstance(left, str):
            raise SecurityError("it formats a text by %")
        if operator == "**" and max(sized, default=0) > 64:
            raise SecurityError("it takes a power of more than 64")
        if operator == "*" and is_text and sized[0] * sized[-1] > LIMIT:
            raise SecurityError(f"it makes a value of more than {LIMIT:,} characters")
        result = super().call_binop(context, operator, left, right)
        if isinstance(result, int) and abs(result) > LARGEST:
            raise SecurityError("it makes a number of more than 18 digits")
        return self.measured(result)

    def wrap_str_format(self, value: Any) -> None:
        """None: a method that formats is no safe attribute."""

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Whether an attribute may be read."""
        return attr not in GROWING and super().is_safe_attribute(obj, attr, value)

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        """Call a method or function, whose result is measured."""
        owner = getattr(__obj, "__self__", None)
        if getattr(__obj, "__name__", "") in ("replace", "join") and isinstance(owner, str):
            __self._check_growth([owner, *(a for a in args if isinstance(a, str | list | tuple))])
        result = super().call(__context, __obj, *args, **kwargs)
        return __self.measured(result) if isinstance(result, str | list | tuple | dict) else result

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        generation = next(e for e in self.extensions.values() if isinstance(e, _Generation))
        for loop in tree.find_all(nodes.For):
            loop.iter = generation.call_method("looped", [loop.iter], lineno=loop.lineno)  # pyrefly: ignore
        return _Measuring(generation).visit(tree)


class _Generation(Extension):
    """{% generation %}: what the assistant generates; and the calls that count."""

    tags = {"generation"}  # noqa: RUF012 - as the base class has it
    environment: Any

    def parse(self, parser: Any) -> nodes.Node:
        line = next(parser.stream).lineno
        self.environment.marks = True
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("generated"), [], [], body).set_lineno(line)

    @pass_eval_context
    def generated(self, context: Any, caller: Callable[[], str]) -> str:
        """Note where the text of the block stands."""
        text, start = caller(), self.environment.written
        self.environment.marked.append((start, start + len(text)))
        return text

    def looped(self, values: Any) -> Any:
        """What a loop goes through, whose elements are counted."""
        values = values if isinstance(values, Sized) else list(islice(values, MAX_VALUES))
        self.environment.step(len(values))
        return values

    def concatenated(self, values: list[Any]) -> str:
        """Values as one text."""
        return "".join(map(str, self.environment.measured(values)))

    def compared(self, value: Any) -> Any:
        """A value that is compared."""
        return self.environment.measured(value)


class _Measuring(NodeTransformer):
    """Replaces a ~ b by a call that measures, and measures what is compared."""

    def __init__(self, generation: _Generation) -> None:
        self.generation = generation

    def visit_Concat(self, node: nodes.Concat) -> nodes.Expr:
        self.generic_visit(node)
        return self.generation.call_method("concatenated", [nodes.List(node.nodes)], lineno=node.lineno)

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:
        self.generic_visit(node)
        node.expr = self.generation.call_method("compared", [node.expr], lineno=node.lineno)
        return node


class _Names(Namespace):
    """A namespace without names that begin with an underscore, which lead into Python."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        values = dict(*args[1:], **kwargs)
        for name in values:
            _check_name(name)
        Namespace.__init__(args[0], values)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: object) -> None:
    if str(name).startswith("_"):
        raise SecurityError(f"it sets {name!r} in a namespace")


def _has_size(value: Any) -> bool:
    return isinstance(value, str | list | tuple | int | float)


def _dict(*values: Any, **named: Any) -> dict[Any, Any]:
    return dict(*values, **named)


def _refuse(message: str) -> None:
    raise TemplateError(message)


def _tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, sort_keys: bool = False) -> str:
    """JSON without HTML's escapes, as transformers writes it."""
    if indent is not None and not 0 <= indent <= 16:
        raise SecurityError(f"it indents by {indent}")
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, sort_keys=sort_keys)
