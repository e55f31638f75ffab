"""The command line: a table of commands, and their exit codes.

Modules are named by strings and imported when their command is called, so that help doesn't import torch.
"""

from __future__ import annotations

import errno
import os
import shlex
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from threading import current_thread, main_thread
from typing import Any

from isoform import __version__
from isoform.annotations import text_of
from isoform.config import ConfigError, unknown_name, validated
from isoform.files import FULL, StorageError
from isoform.flags import Shorts, as_typed, draft_flags, positionals_of, see_help
from isoform.help import asks_for_help, help_text
from isoform.outside import OPTIMIZER, NotNamed, named, unnamed
from isoform.signals import keyboard_interrupts
from isoform.terminal import ExitCode, Terminal, steady_streams

STARTED = time.perf_counter()
NO_RECIPE = "name a recipe: a built-in one (isoform recipes lists them) or the path of a TOML file"


@dataclass(frozen=True)
class Command:
    """A command: its dataclass of options, its function, and a summary."""

    options: str
    function: str
    summary: str
    takes: str = ""
    """The argument before the flags: a `recipe`, or a `form`, which is a recipe, a preset or a trained model."""
    opens: bool = False
    """Whether it begins with what the recipe says, before PyTorch is loaded."""


COMMANDS = {
    "train": Command("TrainOptions", "training:train", "train a recipe, or continue a run", "recipe", opens=True),
    "generate": Command("GenerateOptions", "writing:generate", "continue a text with a trained model"),
    "chat": Command("ChatOptions", "chatting:chat", "talk to a language model, turn by turn"),
    "predict": Command("PredictOptions", "asking:predict", "labels, tags, numbers or vectors of texts"),
    "evaluate": Command("EvaluateOptions", "writing:evaluate", "loss and bits per byte, on any text"),
    "inspect": Command("InspectOptions", "looking:inspect", "training rows, masks; a run and its attention", "recipe"),
    "report": Command("ReportOptions", "looking:report", "the page of a run, or of several"),
    "estimate": Command("EstimateOptions", "costs:estimate", "parameters, FLOPs, memory, time", "form"),
    "scale": Command("ScaleOptions", "studies:scale", "ladder of sizes, law, forecast, report", "recipe", opens=True),
    "reproduce": Command("ReproduceOptions", "studies:reproduce", "check a claim; --list"),
    "convert": Command("ConvertOptions", "about:convert", "Hugging Face folders and GGUF files"),
    "doctor": Command("DoctorOptions", "about:doctor", "what this machine can do"),
    "recipes": Command("RecipesOptions", "about:recipes", "recipes and presets; --diff A B"),
}


def usage() -> str:
    """The text of `isoform --help`."""
    lines = [f"  {name:<11}{command.summary}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            f"isoform {__version__}: one Transformer in all its forms",
            "",
            "usage: isoform COMMAND …",
            "",
            *lines,
            "",
            "isoform COMMAND --help lists the options of a command; isoform completion bash",
            "(or zsh, fish) prints a script that completes them. Start with:",
            "",
            "  isoform train shakespeare",
        ]
    )


def main(arguments: list[str] | None = None) -> int:
    """Run a command; returns the exit code (0 done, 65 bad input, 74 storage, 75 start again, 130 interrupted)."""
    arguments = sys.argv[1:] if arguments is None else arguments
    steady_streams()
    terminal = Terminal(json="--json" in arguments, verbose="-v" in arguments or "--verbose" in arguments)
    terminal.started = STARTED
    code = _run(arguments, terminal)
    if code == ExitCode.DONE and terminal.failure is not None and terminal.failure.errno != errno.EPIPE:
        why = f"standard output can't be written to: {terminal.failure.strerror}; make room"
        return terminal.fail(ExitCode.STORAGE, why)
    return code


def _run(arguments: list[str], terminal: Terminal) -> int:
    if arguments[:1] == ["help"]:
        arguments = [*arguments[1:2], "--help", *arguments[2:]]
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        terminal.say(usage())
        return ExitCode.DONE
    if arguments[0] == "--version":
        terminal.say(f"isoform {__version__}")
        return ExitCode.DONE

    def warn(message, category, filename, lineno, file=None, line=None) -> None:
        terminal.warn(str(message))

    warnings.showwarning = warn
    try:
        with _without_interrupts(terminal):
            call = _read_call(arguments[0], arguments[1:], terminal)
        if call is None:
            return ExitCode.DONE
        with keyboard_interrupts(terminal):
            result = call()
    except KeyboardInterrupt:
        return terminal.fail(ExitCode.INTERRUPTED, "interrupted")
    except BlockingIOError as error:
        return terminal.fail(ExitCode.TRANSIENT, str(error), _trace(terminal))
    except OSError as error:
        if error is terminal.failure or isinstance(error, BrokenPipeError):  # nobody reads the output any more
            return ExitCode.DONE
        is_storage = isinstance(error, StorageError) or error.errno in FULL
        code = ExitCode.STORAGE if is_storage else ExitCode.BAD_INPUT
        return terminal.fail(code, str(error), _trace(terminal))
    except NotNamed as error:
        takes = COMMANDS[arguments[0]].takes
        command = shlex.join(["isoform", *arguments, *error.flags(of_recipe=bool(takes))])
        return terminal.fail(ExitCode.BAD_INPUT, f"{error.what}; name it: {command}", _trace(terminal))
    except ValueError as error:
        return terminal.fail(ExitCode.BAD_INPUT, _as_typed(str(error), arguments), _trace(terminal))
    except Exception as error:
        if isinstance(error, MemoryError) or "out of memory" in str(error) or "can't allocate memory" in str(error):
            first = str(error).splitlines()[0] if str(error) else "no memory left"
            message = f"{first}; use fewer rows at once (--training.micro_batch_size) or a smaller model"
            return terminal.fail(ExitCode.BAD_INPUT, message, _trace(terminal))
        handle, path = tempfile.mkstemp(prefix="isoform-fault-", suffix=".log")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(traceback.format_exc())
        message = f"an internal error of isoform: {type(error).__name__}: {error} (traceback in {path})"
        return terminal.fail(ExitCode.FAULT, message, _trace(terminal))
    if terminal.json:
        terminal.emit(result.values)
    return result.exit_code


@contextmanager
def _without_interrupts(terminal: Terminal) -> Iterator[None]:
    """While libraries are imported, SIGINT ends the process at once: an exception in their midst may become another
    one, or be lost. Where somebody else answers that signal, they still do."""
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler or current_thread() is not main_thread():
        yield
        return
    signal.signal(signal.SIGINT, lambda number, frame: os._exit(terminal.fail(ExitCode.INTERRUPTED, "interrupted")))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _read_call(name: str, arguments: list[str], terminal: Terminal) -> Callable | None:
    """A command with its options, as a function without arguments, with everything imported that it needs; None if its
    help was asked for, and printed."""
    if name == "completion":
        return _complete(arguments, terminal)
    if name not in COMMANDS:
        raise ConfigError(see_help(str(unknown_name("command", name, [*COMMANDS, "help", "completion"])), "isoform"))
    command, prog = COMMANDS[name], f"isoform {name}"
    options_type = getattr(import_module("isoform.options"), command.options)
    shorts, (group, rest) = _shorts(command), asks_for_help(arguments)
    if not arguments and _needs_arguments(command, options_type):
        terminal.say(help_text(prog, options_type(), shorts=shorts, width=_width()))
    recipe_name, base = "", options_type()
    if command.takes:
        asks_help = group is not None
        recipe_name, base, rest = _with_recipe(options_type, rest, command.takes, prog, terminal, asks_help=asks_help)
    draft = draft_flags(base, rest, prog=prog, shorts=shorts)
    if group is not None:
        terminal.say(help_text(prog, draft, shorts=shorts, group=group, width=_width()))
        return None
    options = validated(draft)
    for field, mark in positionals_of(options_type).items():
        if not (mark.is_optional or getattr(options, field)):
            text = text_of(options_type, field).rstrip(".")
            raise ConfigError(see_help(f"name {mark.word}: {text[:1].lower()}{text[1:]}", prog))
    if command.takes:
        options = _with_own_parts(options, command, recipe_name, arguments)
    terminal.quiet = options.output.quiet
    for line in import_module("isoform.opening").opening(options.recipe) if command.opens else ():
        terminal.say(line)
    module, function = command.function.split(":")
    with terminal.doing("loading PyTorch", is_brief=not command.opens):
        call = getattr(import_module(f"isoform.commands.{module}"), function)
    return partial(call, options, terminal, recipe_name) if command.takes else partial(call, options, terminal)


def _shorts(command: Command) -> Shorts:
    return import_module("isoform.options").SHORTS if command.takes else {}


def _width() -> int:
    """Columns of help: those of the terminal within what can be read."""
    return min(max(shutil.get_terminal_size((80, 24)).columns, 40), 120)


def _needs_arguments(command: Command, options_type: type) -> bool:
    """Whether a command can do nothing without arguments."""
    marks = positionals_of(options_type).values()
    return command.takes != "" or not all(mark.is_optional for mark in marks)


def _as_typed(text: str, arguments: Sequence[str]) -> str:
    """An error with the short names that were typed instead of the fields for which they stand."""
    command = COMMANDS.get(arguments[0])
    return as_typed(text, arguments[1:], _shorts(command)) if command else text


def _complete(arguments: Sequence[str], terminal: Terminal) -> None:
    """Print a shell's script, or for a line after `--` what may come next."""
    module = import_module("isoform.completion")
    shell, *rest = arguments or [""]
    if shell in ("", "-h", "--help"):
        terminal.say(module.usage())
    if shell == "":
        raise ConfigError(f"name a shell: {', '.join(module.SCRIPTS)}")
    if shell in module.SCRIPTS and not rest:
        terminal.write(module.SCRIPTS[shell])
    elif shell in module.SCRIPTS:
        *before, current = rest[1:] or [""]
        terminal.json = False  # whose flag may be in the line
        for word in _completions(before, current):
            terminal.say(word)
    elif shell not in ("-h", "--help"):
        raise ConfigError(see_help(str(unknown_name("shell", shell, module.SCRIPTS)), "isoform completion"))


def _completions(before: Sequence[str], current: str) -> list[str]:
    """What may follow the words of a command line."""
    module = import_module("isoform.completion")
    if not before or before == ["help"]:
        words = [*COMMANDS, "completion", "help", *([] if before else ["--help", "--version"])]
        return [word for word in words if word.startswith(current)]
    if before[0] == "completion":
        return [shell for shell in module.SCRIPTS if shell.startswith(current)]
    if (command := COMMANDS.get(before[0])) is None:
        return []
    options_type = getattr(import_module("isoform.options"), command.options)
    words = [*before[1:]]
    config = options_type()
    while words:  # what is typed so far may not be whole: then without its last word
        with suppress(ValueError, OSError):
            rest = words
            if command.takes:
                _, config, rest = _with_recipe(options_type, words, command.takes, "", None, asks_help=True)
            config = draft_flags(config, rest, prog="", shorts=_shorts(command))
            break
        words.pop()
    return module.completions(config, before[1:], current, shorts=_shorts(command))


def _with_recipe(
    options_type: type, arguments: list[str], takes: str, prog: str, terminal: Terminal | None, *, asks_help: bool
):
    """The name before the flags, options with its recipe, which the flags are laid over, and the other arguments.

    terminal: told of a model on disk that is read; None: none is read.
    """
    from isoform.recipe import draft_recipe, load_form, with_adapters

    name = arguments[0] if arguments and not arguments[0].startswith("-") else ""
    rest = arguments[1:] if name else arguments
    start, preset, out = (_flag(rest, flag) or "" for flag in ("--start", "--model.preset", "--out"))
    recipe_at = None if terminal is None else partial(_recipe_at, terminal=terminal, names=rest)
    if takes == "form" and name and not preset:
        return name, options_type(recipe=load_form(name, recipe_at)), rest
    if name or start or preset:
        adapts = any(word.startswith(("--lora", "--training.adapters.")) for word in rest)
        recipe = draft_recipe(name, start=start, preset=preset, recipe_at=recipe_at, adapts=adapts)
        recipe = with_adapters(recipe) if _flag(rest, "--lora") else recipe  # so that their other fields are flags
        return name, options_type(recipe=recipe), _without_flag(rest, "--model.preset")
    if asks_help:
        return "", options_type(), rest
    if out and (Path(out) / "recipe.toml").exists():
        return "", options_type(recipe=draft_recipe(out)), rest
    no_run = f"{out} holds no run to continue; " if out else ""
    raise ConfigError(see_help(f"{no_run}{NO_RECIPE}", prog))


def _recipe_at(path: str, terminal: Terminal, names: Sequence[str]):
    with terminal.doing(f"reading the model {path}"):  # imports torch, so only where a model on disk is named
        return import_module("isoform.run").recipe_at(path, names)


def _with_own_parts(options: Any, command: Command, name: str, arguments: Sequence[str]) -> Any:
    """The options with the objects of external parts, all of them if the user names the file of the recipe, else those
    that stand in the arguments. Raises NotNamed for others."""
    from isoform.recipe import is_own_file

    words = {word.partition("=")[2] if word.startswith("--") else word for word in arguments}
    options = replace(options, recipe=named(options.recipe, None if is_own_file(name) else words))
    needed = {
        field: part
        for field, part in unnamed(options.recipe).items()
        if command.takes == "recipe" or field != OPTIMIZER
    }
    if needed:
        raise NotNamed(name or options.out, needed)
    return options


def _without_flag(arguments: list[str], name: str) -> list[str]:
    """The arguments without a flag and its value."""
    pairs = zip(arguments, ["", *arguments], strict=False)
    return [word for word, before in pairs if name not in (word, before) and not word.startswith(f"{name}=")]


def _flag(arguments: list[str], name: str) -> str | None:
    for i, argument in enumerate(arguments):
        if argument == name and i + 1 < len(arguments):
            return arguments[i + 1]
        if argument.startswith(f"{name}="):
            return argument.split("=", 1)[1]
    return None


def _trace(terminal: Terminal) -> str:
    return traceback.format_exc() if terminal.verbose else ""


if __name__ == "__main__":
    sys.exit(main())
