"""Conversations: messages of a system, a user, an assistant and tools, as a text; and what of it the assistant says.

A model's own chat template decides what the text is. What the assistant says is what the template marks as generated;
of one without marks it is what a turn adds to the prompt for it, up to the special token that ends the turn. A model
without a template reads a plain form, "User: …", "Assistant: …", in which each answer ends as texts do.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from isoform.codecs.template import is_marked, render

ROLES = ("system", "user", "assistant", "tool")
ALIASES = {"human": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant", "function": "tool"}
"""Roles by other names; "from" and "value" are other names of "role" and "content"."""
REASONING = ("reasoning_content", "thinking", "reasoning")
"""Names of an answer's reasoning; templates read the first, some the second."""
Message = Mapping[str, Any]
Spans = list[tuple[int, int]]


def conversation(value: object, where: str) -> list[Message]:
    """The messages of a conversation in one form: role and content, a text, and what else a template may read.

    Raises ValueError, with the location, for anything else.
    """
    if not isinstance(value, list | tuple) or not value:
        raise ValueError(f"{where}: messages are a list of {{'role': …, 'content': …}}, not {str(value)[:40]!r}")
    return [_message(item, f"{where}, message {number}") for number, item in enumerate(value, 1)]


def _message(value: object, where: str) -> Message:
    if not isinstance(value, Mapping):
        raise ValueError(f"{where} is a {type(value).__name__}, not {{'role': …, 'content': …}}")
    given = {str(key): item for key, item in value.items() if item is not None}
    role = given.pop("role", None) or given.pop("from", None)
    role = ALIASES.get(str(role), str(role))
    if role not in ROLES:
        raise ValueError(f"{where}: the role {role!r} is none of {', '.join(ROLES)}")
    content = given.pop("content") if "content" in given else given.pop("value", None)
    message = {"role": role}
    if content is not None:
        message["content"] = _text(content, where)
    elif not given:
        raise ValueError(f"{where}: has no 'content'")
    if reasoning := next((given[name] for name in REASONING if name in given), None):
        given |= {"reasoning_content": reasoning, "thinking": given.get("thinking", reasoning)}
    try:
        json.dumps(message, ensure_ascii=False).encode()
        return {**message, **json.loads(json.dumps(given, sort_keys=True))}
    except UnicodeEncodeError:
        raise ValueError(f"{where}: has a lone surrogate, which is half a character; remove it") from None
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{where}: {error}; messages are made of texts, numbers, lists and objects") from None


def _text(content: object, where: str) -> str:
    """The content of a message, a text or parts of one."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list | tuple) else [content]
    texts = [part.get("text") if isinstance(part, Mapping) else part for part in parts]
    for part, text in zip(parts, texts, strict=True):
        if not isinstance(text, str):
            what = part.get("type", "unknown") if isinstance(part, Mapping) else type(part).__name__
            raise ValueError(f"{where}: a part of the type {what!r}; only texts are read")
    return "".join(map(str, texts))


def plain_parts(messages: Sequence[Message], *, for_answer: bool = False) -> Iterator[tuple[str, bool]]:
    """The plain form as texts, each with whether the assistant says it; the end of the text follows those.

    for_answer: whether the assistant is to say something next. Raises ValueError for calls of tools.
    """
    given = ""
    for message in messages:
        if "content" not in message or "tool_calls" in message:
            raise ValueError("a message calls a tool, for which the plain form of conversations has no words")
        if message["role"] == "assistant":
            yield f"{given}Assistant:", False
            yield f" {message['content']}", True
            given = ""
        else:
            given += f"{message['role'].capitalize()}: {message['content']}\n\n"
    if for_answer or given:
        yield f"{given}Assistant:" if for_answer else given, False


def laid_out(
    template: str, messages: Sequence[Message], values: Mapping[str, Any], special: Collection[str]
) -> tuple[str, Spans]:
    """A conversation by a template, and the spans of characters that the assistant says.

    values: other names that the template knows; special: the special tokens, one of which ends a turn. Raises
    ValueError for a template that fails, or that doesn't let what the assistant says be known.
    """
    text, marked = render(template, messages, add_generation_prompt=False, **values)
    if is_marked(template):
        return text, [*marked]
    ends = re.compile("|".join(re.escape(name) for name in sorted(special, key=len, reverse=True)) or "(?!)")
    spans: Spans = []
    for number, message in enumerate(messages):
        if message["role"] == "assistant":
            start = _start(template, messages, number, values, text)
            spans.append((start, _end(template, messages, number, values, text, start, ends)))
    return text, spans


def prompt_of(template: str, messages: Sequence[Message], values: Mapping[str, Any]) -> str:
    """A conversation by a template, up to where the assistant goes on."""
    return render(template, messages, add_generation_prompt=True, **values).text


def _start(template: str, messages: Sequence[Message], number: int, values: Mapping[str, Any], text: str) -> int:
    """Where an answer begins: after the prompt for it."""
    if not number:  # many templates can't lay out nothing
        return max(0, text.find(messages[0].get("content", "")))
    prompt = prompt_of(template, messages[:number], values)
    if not text.startswith(prompt):
        raise ValueError(
            f"the chat template lays out what precedes message {number + 1} in another way once that follows, so that "
            f"what the assistant says isn't known; mark it there by {{% generation %}}"
        )
    return len(prompt)


def _end(
    template: str,
    messages: Sequence[Message],
    number: int,
    values: Mapping[str, Any],
    text: str,
    start: int,
    ends: re.Pattern[str],
) -> int:
    """Where an answer ends: after the special token that ends the turn, or where the turn does."""
    whole = render(template, messages[: number + 1], add_generation_prompt=False, **values).text
    if text.startswith(whole) and len(whole) >= start:
        last = max((match.end() for match in ends.finditer(whole, start)), default=None)
        return len(whole) if last is None or whole[last:].strip() else last
    content = messages[number].get("content", "").strip()
    begin = text.find(content, start) if content else -1
    if begin >= 0 and (end := ends.search(text, begin + len(content))):
        return end.end()
    raise ValueError(
        f"the chat template lays out message {number + 1} in another way once others follow, so that where it ends "
        f"isn't known; mark it there by {{% generation %}}"
    )
