"""Makes the runs of this folder, each stopped after step 6 of 10, and what became of them: by the release of commit
f802a83, in whose words this file and recipes.toml are written. Later releases read the runs; none makes them again.

    git worktree add ../before f802a83
    PYTHONPATH=../before/src python tests/old_runs/make.py          # data and runs
    PYTHONPATH=../before/src python tests/old_runs/make.py DATA     # ids.json; the data of the claims lie in DATA

data/        the texts; recipes name them, and other runs, by paths from this folder
NAME/        a run directory, and expected.json: what that release made of it
NAME-ended/  the same run finished, of which only the model is left
ids.json     of each claim's arms: how many pieces the codec has, the labels, FLOPs of a step; all that planning takes
             from the data but their hashes, which docs/results has
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import sys
import tempfile
import tomllib
from collections.abc import Callable
from pathlib import Path

import torch
from isoform.training.ledger import read_metrics
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from isoform.evaluation.evaluate import apply
from isoform.experiment import evaluate_held_out, load_records, prepare, train
from isoform.machine import choose_machine
from isoform.recipe import Recipe, changed, load_recipe, recipe_from_dict
from isoform.run import Run, Trained, export, load
from isoform.scaling.claims import load_claim
from isoform.scaling.ladder import Rung
from isoform.scaling.study import make_job

HERE = Path(__file__).parent
CPU = choose_machine("cpu", "float32")
STOP = 6
ENDED = ("averaged", "tagging")
WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "ate", "an", "old", "hat", "so", "no", "one", "saw", "it"]


def main() -> None:
    os.chdir(HERE)
    torch.set_num_threads(1)
    write_data(Path("data"))
    recipes = tomllib.loads(Path("recipes.toml").read_text())
    base = recipes.pop("base")
    for path in Path().glob("*/expected.json"):
        shutil.rmtree(path.parent)
    for name, changes in recipes.items():
        make(name, changed(recipe_from_dict(base), changes))


def write_data(folder: Path) -> None:
    """Small files of each kind of record."""
    rng = random.Random(0)

    def words(least: int, most: int) -> list[str]:
        return rng.choices(WORDS, k=rng.randint(least, most))

    def lines(records: list) -> str:
        return "".join(json.dumps(record) + "\n" for record in records)

    folder.mkdir(exist_ok=True)
    (folder / "text.txt").write_text(" ".join(rng.choices(WORDS, k=400)) + "\n")
    (folder / "more.txt").write_text(" ".join(rng.choices(WORDS[:6], k=200)) + "\n")
    sources = [" ".join(word[:3] for word in words(1, 2)) for _ in range(80)]
    pairs = [{"source": said, "target": said[::-1]} for said in sources]
    (folder / "pairs.jsonl").write_text(lines(pairs))
    texts = [words(3, 6) for _ in range(80)]
    opinions = [{"text": " ".join(said), "label": "good" if "cat" in said else "bad"} for said in texts]
    (folder / "opinions.jsonl").write_text(lines(opinions))
    kinds = {"cat": "noun", "mat": "noun", "hat": "noun", "sat": "verb", "ate": "verb", "saw": "verb"}
    texts = [words(3, 5) for _ in range(80)]
    tags = [{"tokens": said, "tags": [kinds.get(word, "other") for word in said]} for said in texts]
    (folder / "tags.jsonl").write_text(lines(tags))
    letters = sorted({letter for word in WORDS for letter in word})
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters), "at"]
    tokenizer = Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "wordpiece.json"), pretty=False)


def make(name: str, recipe: Recipe) -> None:
    """A run stopped after step 6, and what it comes to, in a copy."""
    run = train(recipe, Path(name), machine=CPU, should_stop=after(STOP))
    for path in sorted(run.checkpoints.iterdir())[:-1]:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    (run.folder / ".lock").unlink()
    expected = about(run)
    with tempfile.TemporaryDirectory() as folder:
        ended = Run(Path(shutil.copytree(run.folder, Path(folder) / name)))
        train(load_recipe(str(ended.recipe)), ended.folder, machine=CPU)
        losses = {line["step"]: line["loss"] for line in read_metrics(ended.metrics) if "loss" in line}
        expected["losses"] = {step: loss for step, loss in losses.items() if step > STOP}
        expected["final_loss"] = json.loads(ended.summary.read_text())["validation_loss"]
        write(run, expected)
        if name in ENDED:
            (ended.folder / ".lock").unlink()
            shutil.rmtree(ended.checkpoints)
            only = Run(Path(shutil.copytree(ended.folder, f"{run.folder}-ended")))
            write(only, about(only))


def write(run: Run, expected: dict) -> None:
    (run.folder / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")


def after(steps: int) -> Callable[[], bool]:
    """Asked after each step: whether so many are done."""
    done = iter(range(1, steps + 1))
    return lambda: next(done) == steps


def about(run: Run) -> dict:
    """What a run's model says, how well it does, and what it can be written as."""
    trained = load(run.folder)
    held_out = load_records(trained.recipe.data)[1].validation
    loss = evaluate_held_out(trained.model, trained.recipe, trained.codec, held_out, CPU).loss
    return {
        "step": trained.step,
        "id": study_id(trained.recipe),
        "loss": loss,
        "logits": logits(trained),
        **written(trained),
    }


def study_id(recipe: Recipe) -> str:
    """What a study would call this run, were `data` the fingerprint of its data."""
    return make_job("", Rung(recipe, 0.0, 0, 0.0, 0), "data").id


def logits(trained: Trained) -> list[float]:
    """The first numbers that are said at the last place of the first training row that counts."""
    prepared = prepare(trained.recipe, trained.codec)
    batch = prepared.loader.rows(0, 1)
    with torch.inference_mode():
        scores = apply(trained.model, prepared.view, batch)[batch.loss_weights > 0]
    return [float(f"{score:.6g}") for score in scores[-1][:5]]


def written(trained: Trained) -> dict[str, str]:
    """The class of transformers that the model can be exported for, or how the refusal begins."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            return {"architecture": export(trained, Path(folder))}
        except ValueError as error:
            return {"refusal": re.split("[:(]", str(error))[0].strip()}


def write_ids(data: str) -> None:
    """What the claims with published runs take from their data."""
    claims = [path.stem for path in sorted((HERE.parent.parent / "docs/results").glob("*.json"))]
    tables = []
    for claim in claims:
        loaded = load_claim(claim, data=data)
        starts = {arm.name: arm.starts for arm in loaded.claim.arms}
        codecs, lines = {"": None}, []
        for arm, recipe in loaded.recipes.items():
            prepared = prepare(recipe, codecs[starts.get(arm, "")])
            codecs[arm] = prepared.codec
            labels = getattr(prepared.recipe.objective, "labels", ())
            known = [prepared.codec.vocab_size, labels, prepared.flops_per_step]
            lines.append(f"  {json.dumps(arm)}: {json.dumps(known)}")
        if lines:
            tables.append(f" {json.dumps(claim)}: {{\n" + ",\n".join(lines) + "\n }")
    (HERE / "ids.json").write_text("{\n" + ",\n".join(tables) + "\n}\n")


if __name__ == "__main__":
    main() if len(sys.argv) == 1 else write_ids(sys.argv[1])
