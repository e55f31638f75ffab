"""Files of anyone's: refused in one line, soon and without much memory, and nothing else is done.

Every twelfth case of tests/hostile.py, which is a command of its own for all of them.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent


@pytest.mark.skipif(os.name == "nt" or not Path("/dev/zero").exists(), reason="needs forks and devices")
def test_hostile_files_are_refused_in_one_line():
    every = "1" if os.environ.get("ISOFORM_ALL") else "12"
    command = [sys.executable, str(ROOT / "hostile.py"), "--every", every]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    outcomes = [json.loads(line) for line in lines if line.startswith("{")]
    assert len(outcomes) >= 24
    assert [o for o in outcomes if not o["is_fine"]] == []
    assert [o for o in outcomes if o["megabytes"] > 300] == []
    assert [o for o in outcomes if o["seconds"] > 5] == []  # one second on an idle machine
