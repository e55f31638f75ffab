"""The examples are true, and what they show is what the library computes."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from isoform.batch import plain_coordinates
from isoform.mask import Causal, Full
from isoform.model.lowering import attend, lower

EXAMPLES = Path(__file__).parent.parent / "examples"
sys.path.insert(0, str(EXAMPLES))


@pytest.mark.parametrize(("mask", "edges"), [(Causal(), "decoder_edges"), (Full(), "encoder_edges")])
def test_attention_is_message_passing(mask, edges):
    import message_passing

    torch.manual_seed(0)
    q, k, v = (torch.randn(6, 4, dtype=torch.float64) for _ in range(3))
    nodes = [message_passing.Node(*(t[i].tolist() for t in (q, k, v))) for i in range(6)]
    heard = message_passing.message_pass(nodes, getattr(message_passing, edges)(6))
    at = plain_coordinates(1, 6)
    ours = attend(q[None, None], k[None, None], v[None, None], lower(mask, at, at))[0, 0]
    torch.testing.assert_close(ours, torch.tensor(heard, dtype=torch.float64))


def test_a_node_without_edges_hears_nothing():
    import message_passing

    assert message_passing.message_pass([message_passing.Node([1.0], [1.0], [5.0])], set()) == [[0.0]]


def test_first_run_is_short_and_runs(tmp_path):
    script = EXAMPLES / "first_run.py"
    assert len(script.read_text().splitlines()) < 60
    text = tmp_path / "text.txt"
    text.write_text("To be, or not to be, that is the question:\nROMEO: " * 60)
    done = subprocess.run(
        [sys.executable, str(script), str(text), "4"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert "%" in done.stdout and (tmp_path / "runs/first-run-1/summary.json").exists()
