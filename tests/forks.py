"""Processes for tests that start many: forks of one that has imported torch, where a new one would take seconds.

They have an exit code, a log and signals like other processes; with ISOFORM_ALL new processes are started instead.
"""

import gc
import multiprocessing
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from isoform.cli import main

MODULES = ["isoform.commands.training", "isoform.report"]
CONTEXT = multiprocessing.get_context("forkserver") if "forkserver" in multiprocessing.get_all_start_methods() else None
if CONTEXT:
    CONTEXT.set_forkserver_preload(MODULES)


class Fork:
    """`python -m isoform.cli` in a fork, with the interface of subprocess.Popen that is needed."""

    def __init__(self, words: Sequence[str], environment: Mapping[str, str], log: str, folder: str) -> None:
        arguments = words[words.index("isoform.cli") + 1 :]
        self.process = CONTEXT.Process(target=run, args=(arguments, environment, log, folder), daemon=True)
        self.process.start()
        self.terminate, self.kill = self.process.terminate, self.process.kill

    def poll(self) -> int | None:
        return self.process.exitcode

    def wait(self) -> int | None:
        self.process.join()
        return self.process.exitcode

    @property
    def pid(self) -> int | None:
        return self.process.pid

    @property
    def returncode(self) -> int | None:
        return self.process.exitcode


def run(arguments: Sequence[str], environment: Mapping[str, str], log: str, folder: str) -> None:
    gc.freeze()  # every training collects garbage first: not in what was imported
    os.environ.update(environment)
    os.chdir(folder)
    with Path(log).open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.exit(main(arguments))
