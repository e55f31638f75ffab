"""The command chat: turns with a language model, in a terminal or through a pipe."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from isoform.codecs.chat import Message
from isoform.codecs.codec import TextCodec, as_text
from isoform.commands.command import Result, chosen_machine
from isoform.files import write_text
from isoform.generation.streaming import Generation
from isoform.generation.turns import fitted, reply
from isoform.model.config import Pooled
from isoform.options import ChatOptions
from isoform.reading import LINE, decode
from isoform.run import Trained, load
from isoform.terminal import Terminal

HELP = """/undo         take the last message and its answer back
/reset        forget all messages but the system's
/system TEXT  tell the model what it is to be; without a text: nothing any more
/save FILE    write the conversation, as a line of JSON that can be trained on
/help         this
Ctrl-C stops an answer and keeps what there is of it, Ctrl-D ends; // begins a message with /."""
NO_TEMPLATE = "the model has no chat template: it reads the plain form User: …, Assistant: …"


@dataclass
class Conversation:
    """A model, and what was said."""

    trained: Trained
    codec: TextCodec
    options: ChatOptions
    terminal: Terminal
    is_screen: bool = False
    """Whether somebody types the turns, who may interrupt an answer, or err."""
    messages: list[Message] = field(default_factory=list)

    @property
    def limit(self) -> int:
        """Tokens of the context."""
        config = self.trained.transformer.config
        assert config.decoder is not None
        return config.length(config.decoder)

    def answer(self, text: str) -> None:
        """Say something, and write the answer as it is generated. Raises ValueError, with the conversation as before,
        for what can't be said."""
        sampling = self.options.sampling
        messages = [*self.messages, {"role": "user", "content": text}]
        room = min(sampling.max_tokens, max(1, self.limit // 2))
        ids, left_out = fitted(self.codec, messages, self.limit - room)
        if left_out:
            self.terminal.warn(f"the conversation exceeds the context; its first {left_out} messages are left out")
        sampling = replace(sampling, seed=sampling.seed + len(messages))
        parts: list[str] = []
        try:
            for part in reply(self.trained.transformer, self.codec, ids, sampling, self.trained.view.inputs_mask):
                if not isinstance(part, Generation):
                    part = part if parts or self.has_template else part.lstrip()
                    parts.append(part)
                    if not self.terminal.json:
                        self.terminal.write(part)
                elif part.reason == "length":
                    self.terminal.warn(f"the answer was ended after {part.num_tokens} tokens")
        except KeyboardInterrupt:
            if not self.is_screen:
                raise
        if not self.terminal.json:
            self.terminal.write("\n")
        content = "".join(parts) if self.has_template else "".join(parts).strip()
        self.messages = [*messages, {"role": "assistant", "content": content}]

    @property
    def has_template(self) -> bool:
        """Whether the model says how conversations are laid out."""
        return bool(self.codec.origin.template())

    def obey(self, line: str) -> None:
        """Do what a line with / asks for. Raises ValueError for what isn't known or can't be done."""
        name, _, rest = line.partition(" ")
        rest = rest.strip()
        if name == "/help":
            self.terminal.say(HELP)
        elif name == "/undo":
            users = [i for i, message in enumerate(self.messages) if message["role"] == "user"]
            if not users:
                raise ValueError("there is nothing to take back")
            self.messages = self.messages[: users[-1]]
        elif name == "/reset":
            self.messages = [message for message in self.messages if message["role"] == "system"]
        elif name == "/system":
            self.tell_system(rest)
        elif name == "/save":
            if not rest or Path(rest).is_dir():
                raise ValueError("name a file: /save FILE")
            write_text(Path(rest), json.dumps({"messages": self.messages}, ensure_ascii=False) + "\n")
            self.terminal.say(f"{len(self.messages)} messages  {rest}")
        else:
            raise ValueError(f"{name} is none of /undo, /reset, /system, /save, /help; // begins a message with /")

    def tell_system(self, text: str) -> None:
        """Set the system's message. Raises ValueError for a template that has none."""
        rest = [message for message in self.messages if message["role"] != "system"]
        messages = [*([{"role": "system", "content": text}] if text else []), *rest]
        self.codec.encode_prompt([*messages, {"role": "user", "content": "a"}])
        self.messages = messages


def chat(options: ChatOptions, terminal: Terminal) -> Result:
    """Turns with a model, until the input ends."""
    machine = chosen_machine(options.machine)
    trained = load(options.run, machine.device, machine.dtype, **options.own.parts)
    model = trained.transformer
    model.use_kernel(options.machine.kernel)
    if model.encoder is not None or model.decoder is None or isinstance(model.config.head, Pooled):
        raise ValueError(
            f"{options.run} is no decoder of texts alone, which chat needs; ask it with isoform generate or isoform "
            f"predict"
        )
    is_screen = sys.stdin is not None and sys.stdin.isatty()
    codec = as_text(trained.codec)
    talk = Conversation(trained, codec, options, terminal, is_screen)
    try:
        codec.encode_prompt([{"role": "user", "content": "a"}])
        if options.system:
            talk.tell_system(options.system)
    except ValueError as error:
        raise ValueError(f"{options.run}: {error}") from None
    if not talk.has_template:
        terminal.warn(NO_TEMPLATE)
    if is_screen:
        terminal.say("/help shows what else can be typed; Ctrl-D ends")
    for line in _lines(terminal, is_screen=is_screen):
        try:
            if line.startswith("/") and not line.startswith("//"):
                talk.obey(line)
            else:
                talk.answer(line.removeprefix("/") if line.startswith("//") else line)
        except (ValueError, OSError) as error:
            if not is_screen or error is terminal.failure:
                raise
            terminal.warn(str(error))
    return Result({"run": options.run, "messages": talk.messages})


def _lines(terminal: Terminal, *, is_screen: bool) -> Iterator[str]:
    """What is typed, or comes through a pipe; empty lines are no turns."""
    if is_screen:
        with suppress(ImportError):
            import readline  # noqa: F401 - lets a line be edited
    number = 0
    while sys.stdin is not None:
        number += 1
        if is_screen:
            try:
                line = input("" if terminal.json else "> ")
            except KeyboardInterrupt:
                terminal.say()
                continue
            except EOFError:
                terminal.say()
                return
        else:
            data = sys.stdin.buffer.readline(LINE)
            if not data:
                return
            line = decode(data, f"standard input, line {number}")
        if line := line.strip("\r\n"):
            yield line
