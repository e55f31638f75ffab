"""Trackers are told what metrics.jsonl holds, as each of them keeps it without a network."""

import json
import os
import sqlite3
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import isoform
from isoform.metrics import read_metrics

FLAGS = ["--width", "16", "--context", "16", "--layers", "1", "--model.decoder.blocks.mixer.num_heads", "2", "--steps",
         "4", "--batch", "64", "--training.log_every", "2", "--training.sample_tokens", "0"]  # fmt: skip


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "trackio"])
def test_a_tracker_keeps_every_line(name, tmp_path):
    if find_spec(name) is None:
        pytest.skip(f"needs {name}: pip install 'isoform[track]'")
    (tmp_path / "text.txt").write_text("To be, or not to be, that is the question.\n" * 80)
    command = [sys.executable, "-m", "isoform", "train", "gpt2", "--data", "text.txt", *FLAGS, "--out", "run", "--json"]
    local = {"WANDB_MODE": "offline", "TRACKIO_DIR": str(tmp_path / "trackio"), "HF_HUB_OFFLINE": "1"}
    process = subprocess.run(
        [*command, "--log", name], cwd=tmp_path, env=os.environ | local, capture_output=True, text=True, check=True
    )
    assert json.loads(process.stdout)["out"] == "run"  # and nothing else is there
    lines = [line for line in read_metrics(tmp_path / "run/metrics.jsonl") if "loss" in line]
    assert losses_of(name, tmp_path) == pytest.approx({line["step"]: line["loss"] for line in lines})


def losses_of(name: str, folder: Path) -> dict[int, float]:
    """The losses by step that a tracker kept."""
    if name == "tensorboard":
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        events = EventAccumulator(str(folder / "run/tensorboard"))
        events.Reload()
        return {event.step: event.value for event in events.Scalars("loss")}
    if name == "trackio":
        with sqlite3.connect(folder / "trackio/isoform.db") as database:
            rows = [(step, json.loads(text)) for step, text in database.execute("select step, metrics from metrics")]
        return {step: metrics["loss"] for step, metrics in rows if "loss" in metrics}
    from wandb.proto.wandb_internal_pb2 import Record

    (path,) = (folder / "run/wandb").glob("offline-run-*/*.wandb")
    data, start, losses, whole = path.read_bytes(), 7, {}, b""
    while start + 7 <= len(data):  # LevelDB's log: checksum, length and type before each part, in blocks of 32 KiB
        if 2**15 - start % 2**15 < 7:
            start += 2**15 - start % 2**15
        length, kind = int.from_bytes(data[start + 4 : start + 6], "little"), data[start + 6]
        whole, start = whole + data[start + 7 : start + 7 + length], start + 7 + length
        if kind in (1, 4):
            history = Record.FromString(whole).history.item
            items = {".".join(i.nested_key) or i.key: json.loads(i.value_json) for i in history}
            losses |= {items["_step"]: items["loss"]} if "loss" in items else {}
            whole = b""
    return losses


def test_a_tracker_that_is_absent_or_unknown_is_refused_before_a_run_begins(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    recipe = isoform.load_recipe("shakespeare")
    with pytest.raises(ValueError, match=r"pip install 'isoform\[track\]'"):
        isoform.train(recipe, tmp_path / "run", log="wandb")
    with pytest.raises(ValueError, match='unknown tracker "wandbb": did you mean "wandb"'):
        isoform.train(recipe, tmp_path / "run", log=["wandbb"])
    assert not (tmp_path / "run").exists()
