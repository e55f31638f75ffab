"""Completion of command lines: a script for each shell, which asks this program what may come next.

What may come depends on what is typed: the fields of `--model.kind lstm` are those of an LSTM. A dotted flag is
completed step by step, like a path of folders. Files are left to the shells.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from isoform.annotations import Inlined, elements_of, hints_of, mark_of, members_of, word_of
from isoform.flags import FLAG, Flag, Shorts, aliases_of, fields_of, flags_of, positionals_of
from isoform.model.presets import PRESETS
from isoform.recipe import builtin_recipes

FILES = "/"
"""Stands for the files that the shell knows."""
PRESET = "--model.preset"
"""The flag of recipes that is no field of theirs."""

SCRIPTS = {
    "bash": r"""# bash: eval "$(isoform completion bash)" in ~/.bashrc
_isoform() {
    local word
    COMPREPLY=()
    while IFS= read -r word; do
        case $word in
            /)
                compopt -o filenames 2> /dev/null
                while IFS= read -r word; do COMPREPLY+=("$word"); done < <(compgen -f -- "$2") ;;
            *.)
                compopt -o nospace 2> /dev/null
                COMPREPLY+=("$word") ;;
            *) COMPREPLY+=("$word") ;;
        esac
    done < <("$1" completion bash -- "${COMP_WORDS[@]:1:COMP_CWORD}" 2> /dev/null)
}
complete -F _isoform isoform
""",
    "zsh": r"""#compdef isoform
# zsh: eval "$(isoform completion zsh)" in ~/.zshrc
(( ${+functions[compdef]} )) || { autoload -Uz compinit && compinit }
_isoform() {
    local -a values
    values=("${(@f)$("${(Q)words[1]}" completion zsh -- "${(@)words[2,CURRENT]}" 2> /dev/null)}")
    (( ${values[(I)/]} )) && _files
    values=(${values:#/})
    compadd -S '' -- ${(M)values:#*.}
    compadd -- ${values:#*.}
}
compdef _isoform isoform
""",
    "fish": r"""# fish: isoform completion fish | source in ~/.config/fish/config.fish
function __isoform_words
    set -l words (commandline -opc)
    set -l current (commandline -ct)
    for word in ($words[1] completion fish -- $words[2..-1] "$current" 2> /dev/null)
        if test "$word" = /
            complete -C "'' $current"  # as an argument of any command: files
        else
            printf '%s\n' $word
        end
    end
end
complete -c isoform -f -a '(__isoform_words)'
""",
}
"""By shell, the text that it reads at its start."""


def completions(config: object, before: Sequence[str], current: str, *, shorts: Shorts) -> list[str]:
    """What may follow the words after a verb, and begins with `current`; a config's values decide which flags it has.

    A step of a dotted flag ends in a dot. FILES stands for files.
    """
    words, flags = [word for word in before if word != "="], flags_of(config)  # bash makes "=" a word
    if current.startswith("--") and "=" in current:
        flag, _, text = current.partition("=")
        values = _values(_flag_of(flag, config, flags, shorts))
        return [f"{flag}={value}" for value in _beginning(text, values)]
    if shorts and words[-1:] == [PRESET]:
        return _beginning(current, PRESETS)
    last = next((i for i in reversed(range(len(words))) if FLAG.match(words[i])), None)
    if last is not None and not current.startswith("-"):
        flag = _flag_of(words[last], config, flags, shorts)
        if flag is not None and len(words) - last - 1 < _most_words(flag):
            return _beginning("" if current == "=" else current, _values(flag))
    if current.startswith("-"):
        return [
            *dict.fromkeys(_next_step(name, current) for name in _beginning(current, _names(flags, config, shorts)))
        ]
    return _beginning(current, _arguments(config, words, flags, shorts))


def _beginning(text: str, words: Iterable[str]) -> list[str]:
    return [word for word in words if word == FILES or word.startswith(text)]


def _next_step(name: str, typed: str) -> str:
    """A dotted name up to the first dot after what is typed."""
    dot = name.find(".", len(typed))
    return name if dot < 0 else name[: dot + 1]


def _names(flags: Sequence[Flag], config: object, shorts: Shorts) -> Iterator[str]:
    """All flags."""
    yield from (f"--{name}" for name, short in shorts.items() if fields_of(short, flags))
    for flag in flags:
        is_on = flag.value is True
        head, _, last = flag.path.rpartition(".")
        is_table = any(get_origin(member) is dict for member in members_of(flag.hint))
        yield f"--{head}{'.' if head else ''}{'no_' if is_on else ''}{last}{'.' if is_table else ''}"
    yield from [PRESET] if shorts else []
    yield from aliases_of(type(config))
    yield from ("--help", "--help-all")


def _flag_of(word: str, config: object, flags: Sequence[Flag], shorts: Shorts) -> Flag | None:
    """The flag of a word, by whatever name."""
    name = aliases_of(type(config)).get(word, word).removeprefix("--").replace("-", "_")
    if name in shorts:
        return next(iter(fields_of(shorts[name], flags)), None)
    return next((flag for flag in flags if flag.path == name), None)


def _most_words(flag: Flag) -> int:
    """The most words that a flag takes."""
    members = members_of(flag.hint)
    if bool in members:
        return 0
    return max(1, *(999 if Ellipsis in get_args(m) else len(elements_of(m, 0)) for m in members))


def _values(flag: Flag | None) -> list[str]:
    """What may be the value of a flag."""
    if flag is None or flag.kinds:
        return [*flag.kinds] if flag else []
    values = [str(option) for m in members_of(flag.hint) if get_origin(m) is Literal for option in get_args(m)]
    inner = [each for m in members_of(flag.hint) for each in elements_of(m, 1)]
    values += [str(option) for each in inner if get_origin(each) is Literal for option in get_args(each)]
    if bool in members_of(flag.hint):
        values += ["true", "false"]
    if NoneType in members_of(flag.hint):
        values.append("none")
    return values + _of_word(word_of(flag.owner, flag.name))


def _of_word(word: str) -> list[str]:
    """What a text may be, by the word that help has for it."""
    if word == "RECIPE":
        return [*builtin_recipes(), *PRESETS, FILES]
    if word == "CLAIM":
        return [path.stem for path in sorted((Path(__file__).parent / "claims").glob("*.toml"))] + [FILES]
    return [FILES] if word in ("FILE", "FOLDER", "PATH", "MODEL", "SOURCE", "DESTINATION") else []


def _arguments(config: Any, words: Sequence[str], flags: Sequence[Flag], shorts: Shorts) -> list[str]:
    """What may be the next argument without a flag."""
    cls, count, room = type(config), 0, 0
    for word in words:
        if FLAG.match(word):
            flag = _flag_of(word.partition("=")[0], config, flags, shorts)
            room = _most_words(flag) if flag and "=" not in word else 0
        elif room:
            room -= 1
        else:
            count += 1
    marks = [mark_of(cls, name, Inlined) for name in hints_of(cls)]
    named = next((mark.named for mark in marks if mark and mark.named), "")
    if named:
        return _of_word(named) if not words else []
    fields = [*positionals_of(cls)]
    if fields and Ellipsis in get_args(hints_of(cls)[fields[-1]]):
        count = min(count, len(fields) - 1)
    return _of_word(word_of(cls, fields[count])) if count < len(fields) else []


def usage() -> str:
    """The help of `isoform completion`."""
    lines = [line for script in SCRIPTS.values() for line in script.splitlines() if line.startswith("# ")]
    return "\n".join(
        [
            "usage: isoform completion SHELL",
            "",
            "Print a script by which a shell completes verbs, recipes, flags, kinds and files.",
            "",
            *(f"  {line[2:]}" for line in lines),
        ]
    )
