"""The command line: a table of commands, and their exit codes.

Modules are named by strings and imported when their command is called, so that help doesn't import torch.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from threading import current_thread, main_thread

from isoform import __version__
from isoform.config import ConfigError, parse_flags, unknown_name
from isoform.files import FULL, StorageError
from isoform.signals import keyboard_interrupts
from isoform.terminal import ExitCode, Terminal, steady_streams

STARTED = time.perf_counter()


@dataclass(frozen=True)
class Command:
    """A command: its dataclass of options, its function, and a summary."""

    options: str
    function: str
    summary: str
    takes: str = ""
    """The argument before the flags: a `recipe`, or a `form`, which is a recipe, a preset or a trained model."""


COMMANDS = {
    "train": Command("TrainOptions", "training:train", "train a recipe, or continue a run", "recipe"),
    "generate": Command("GenerateOptions", "writing:generate", "continue a text with a trained model"),
    "evaluate": Command("EvaluateOptions", "writing:evaluate", "loss and bits per byte, on any text"),
    "inspect": Command("InspectOptions", "training:inspect", "look at training rows and masks", "recipe"),
    "estimate": Command("EstimateOptions", "costs:estimate", "parameters, FLOPs, memory, time", "form"),
    "scale": Command("ScaleOptions", "studies:scale", "ladder of sizes, law, forecast, report", "recipe"),
    "reproduce": Command("ReproduceOptions", "studies:reproduce", "check a claim; --list"),
    "convert": Command("ConvertOptions", "about:convert", "Hugging Face folders and GGUF files"),
    "doctor": Command("DoctorOptions", "about:doctor", "what this machine can do"),
    "recipes": Command("RecipesOptions", "about:recipes", "recipes and presets; --diff A B"),
}


def usage() -> str:
    """The text of `isoform --help`."""
    lines = [f"  {name:<10}{command.summary}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            f"isoform {__version__}: one Transformer in all its forms",
            "",
            "usage: isoform COMMAND …",
            "",
            *lines,
            "",
            "isoform COMMAND --help lists the options of a command. Start with: isoform train shakespeare",
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
    if not arguments or arguments[0] in ("-h", "--help"):
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
    except ValueError as error:
        return terminal.fail(ExitCode.BAD_INPUT, str(error), _trace(terminal))
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


def _read_call(name: str, arguments: list[str], terminal: Terminal) -> Callable:
    """A command with its options, as a function without arguments; everything that it needs is imported."""
    if name not in COMMANDS:
        raise unknown_name("command", name, COMMANDS)
    command = COMMANDS[name]
    options_type = getattr(import_module("isoform.options"), command.options)
    prog = f"isoform {name}"
    if command.takes:
        recipe_name, base, arguments = _with_recipe(options_type, arguments, command.takes)
        prog = f"{prog} {recipe_name or 'RECIPE'}"
        options = parse_flags(options_type, base, arguments, prog=prog, description=options_type.__doc__ or "")
    else:
        recipe_name = ""
        options = parse_flags(
            options_type, options_type(), arguments, prog=prog, description=options_type.__doc__ or ""
        )
    terminal.quiet = options.output.quiet
    module, function = command.function.split(":")
    call = getattr(import_module(f"isoform.commands.{module}"), function)
    return partial(call, options, terminal, recipe_name) if command.takes else partial(call, options, terminal)


def _with_recipe(options_type: type, arguments: list[str], takes: str):
    """The name before the flags, options with its recipe, which the flags are laid over, and the other arguments."""
    from isoform.recipe import draft_recipe, load_form

    name = arguments[0] if arguments and not arguments[0].startswith("-") else ""
    rest = arguments[1:] if name else arguments
    start, preset, out = (_flag(rest, flag) or "" for flag in ("--start", "--model.preset", "--out"))
    if takes == "form" and name and not preset:
        return name, options_type(recipe=load_form(name, _recipe_at)), rest
    if name or start or preset:
        recipe = draft_recipe(name, start=start, preset=preset, recipe_at=_recipe_at)
        return name, options_type(recipe=recipe), _without_flag(rest, "--model.preset")
    if "-h" in rest or "--help" in rest:
        return "", options_type(), rest
    if out and (Path(out) / "recipe.toml").exists():
        return "", options_type(recipe=draft_recipe(out)), rest
    no_run = f"{out} holds no run to continue; " if out else ""
    raise ConfigError(f"{no_run}name a recipe: a built-in one (isoform recipes lists them) or the path of a TOML file")


def _recipe_at(path: str):
    return import_module("isoform.run").recipe_at(path)  # imports torch, so only where a model on disk is named


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
