"""Masked language modelling, sequence-to-sequence training and beam search: isoform and transformers, interleaved.

    python benchmarks/objectives.py MULTI30K [--rounds 5] [--steps 10]      # a folder with task 1 of Multi30k

BERT of 4 layers, width 256, and BART of 3 + 3 layers, width 256, over 4,000 tokens, without dropout; both start
with equal weights and the same rows, pairs padded to the longest of similar length. The peer runs in each of FORMS,
compiled before the clock starts, ours in float32 and bfloat16. Beam search has 4 beams on the first 200 sentences of
test2016 in batches of 25 of similar length, by that BART after 400 steps of translation, in float32.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from harness import beside_the_best, in_turn, ratios, save_results, summary, training_steps
from peer_training import FORMS, backward, build_optimizer, update
from transformers import BartConfig, BartForConditionalGeneration, BertConfig, BertForMaskedLM, PreTrainedModel

from isoform.batch import Batch, Encoding, Example, GlobalBatch, collate
from isoform.checkpoint.huggingface import read_folder, write_folder
from isoform.codecs.codec import as_text
from isoform.data.sources import load_source
from isoform.experiment import train
from isoform.generation.answers import beam_search
from isoform.generation.config import Beam
from isoform.generation.constraints import Constraints
from isoform.generation.decode import build_prompt
from isoform.machine import choose_machine
from isoform.mask import Causal, Full
from isoform.model.transformer import Transformer
from isoform.objectives.config import Masked, Objective, Seq2seq
from isoform.objectives.task import build_task
from isoform.objectives.views import View, build_view
from isoform.recipe import load_form, load_recipe, with_changes
from isoform.run import Trained, load
from isoform.training.config import AdamW
from isoform.training.optimizer import build_optimizers

VOCAB, END, BEGIN = 4000, 2, 2
LEARNED = 400
"""Steps of translation before the search."""


def bert() -> PreTrainedModel:
    """The peer's encoder."""
    torch.manual_seed(0)
    return BertForMaskedLM(
        BertConfig(
            vocab_size=VOCAB,
            hidden_size=256,
            num_hidden_layers=4,
            num_attention_heads=4,
            intermediate_size=1024,
            max_position_embeddings=128,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
    )


def bart() -> PreTrainedModel:
    """The peer's encoder-decoder."""
    torch.manual_seed(0)
    return BartForConditionalGeneration(
        BartConfig(
            vocab_size=VOCAB,
            d_model=256,
            encoder_layers=3,
            decoder_layers=3,
            encoder_attention_heads=4,
            decoder_attention_heads=4,
            encoder_ffn_dim=1024,
            decoder_ffn_dim=1024,
            max_position_embeddings=128,
            dropout=0.0,
            pad_token_id=1,
            eos_token_id=END,
            decoder_start_token_id=BEGIN,
            forced_eos_token_id=None,
        )
    )


def twin(theirs: PreTrainedModel) -> Transformer:
    """Our model with the peer's weights."""
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        return read_folder(Path(folder))


def masked_rows(steps: int) -> list[Batch]:
    """16 rows of 128 tokens per step, 15 % of which are predicted."""
    rng, full = np.random.default_rng(0), []
    for _ in range(steps):
        rows = []
        for _ in range(16):
            ids, counts = rng.integers(5, VOCAB, 128), rng.random(128) < 0.15
            inputs = np.where(counts & (rng.random(128) < 0.8), 4, ids)
            rows.append([Example(Encoding(inputs), ids, counts.astype(np.float32))])
        full.append(collate(rows, 128))
    return full


def pair_rows(steps: int) -> list[Batch]:
    """64 pairs of similar length per step: 6 .. 35 tokens, targets about as long as their sources."""
    rng, batches = np.random.default_rng(0), []
    sizes = np.sort(np.clip(rng.normal(17, 5, 64 * steps), 6, 35).astype(int)).reshape(steps, 64)
    for lengths in rng.permutation(sizes):
        rows = []
        for n in lengths.tolist():
            m = int(np.clip(n + rng.integers(-3, 4), 4, 36))
            target = np.append(rng.integers(5, VOCAB, m - 1), END)
            source = np.append(rng.integers(5, VOCAB, n - 1), END)
            inputs = Encoding(np.concatenate([[BEGIN], target[:-1]]))
            rows.append([Example(inputs, target, np.ones(len(target), np.float32), source=Encoding(source))])
        longest = max(len(e.inputs) for (e,) in rows), max(len(e.source) for (e,) in rows if e.source is not None)
        batches.append(collate(rows, *longest))
    return batches


def our_steps(theirs: PreTrainedModel, batches: Sequence[Batch], objective: Objective, dtype: str) -> Callable:
    """Complete steps of our trainer on these batches."""
    machine, model = choose_machine("cpu", dtype), twin(theirs)
    model.set_matmul_dtype(machine.dtype)
    view = View(Full(), Full(), *unread()) if isinstance(objective, Masked) else build_view(objective)
    return training_steps(
        model,
        build_optimizers(AdamW(), model, machine.dtype),
        machine,
        lambda step: global_batch(batches[step % len(batches)]),
        partial(build_task(objective, view).loss, model),
        len(batches),
    )


def unread() -> tuple[Callable, Callable]:
    """Placeholders for the functions of a view whose rows exist already."""

    def never(*_: object):
        raise AssertionError

    return never, never


def global_batch(batch: Batch) -> GlobalBatch:
    """One pass per step."""
    return GlobalBatch([batch], float(batch.loss_weights.sum()))


def their_inputs(batch: Batch, *, is_encoder_decoder: bool) -> dict[str, torch.Tensor]:
    """What the peer is given for our batch."""
    labels = batch.targets.masked_fill(batch.loss_weights == 0, -100)
    if not is_encoder_decoder:
        return {"input_ids": batch.inputs.ids, "labels": labels}
    assert batch.source is not None
    is_real = (batch.source.coordinates.document >= 0).long()
    ids = batch.source.ids.masked_fill(is_real == 0, 1)
    return {"input_ids": ids, "attention_mask": is_real, "decoder_input_ids": batch.inputs.ids, "labels": labels}


def their_steps(model: PreTrainedModel, batches: Sequence[Batch], form: str, *, is_encoder_decoder: bool) -> Callable:
    """A plain loop on the same batches."""
    model = model.train()
    optimizer = build_optimizer(model, beta2=0.95)
    add_gradients = backward(lambda arguments: model(**arguments).loss, form, has_one_shape=not is_encoder_decoder)
    inputs = [their_inputs(batch, is_encoder_decoder=is_encoder_decoder) for batch in batches]

    def work() -> float:
        start = time.perf_counter()
        for arguments in inputs:
            add_gradients(arguments)
            update(model, optimizer)
        return time.perf_counter() - start

    return work


def trained(name: str, build: Callable, batches: Sequence[Batch], objective: Objective, rounds: int) -> dict:
    """Tokens per second of both, in turn."""
    is_encoder_decoder = name == "seq2seq"
    works: dict[str, Callable] = {}
    for form in FORMS:
        works[f"transformers {form}"] = their_steps(build(), batches, form, is_encoder_decoder=is_encoder_decoder)
        if "compiled" not in form:
            works[f"isoform {form}"] = our_steps(build(), batches, objective, form)
    seconds = in_turn(works, rounds=rounds)
    return beside_the_best(seconds, sum(int((b.inputs.coordinates.document >= 0).sum()) for b in batches))


def translator(data: Path, folder: Path) -> Trained:
    """BART of the benchmark's shape after some steps of translation."""
    block = {"mixer": {"num_heads": 4}, "feedforward": {"feedforward_dim": 1024}}
    stack = {"num_layers": 3, "blocks": {"0": block}}
    shape = {"model_dim": 256, "vocab_size": 0, "context_length": 64, "encoder": stack, "decoder": stack}
    model = with_changes(load_form("bart"), {"model": shape}).model
    training = {"steps": LEARNED, "average_checkpoints": 1, "checkpoint_every": 0, "keep_checkpoints": 1}
    optimizer = {"kind": "adamw", "learning_rate": 1e-3}
    training |= {"validate_every": 0, "optimizer": optimizer, "schedule": {"warmup_steps": 50}}
    recipe = with_changes(load_recipe("multi30k"), {"training": training})
    run = train(replace(recipe, model=model, data=recipe.data.resolve(str(data))), folder)
    return load(run.folder)


def beam_searches(rounds: int, data: Path) -> dict:
    """Beam search for the same sources with the same weights."""
    with tempfile.TemporaryDirectory() as folder:
        trained = translator(data, Path(folder) / "run")
        ours, codec = trained.transformer, as_text(trained.codec)
        write_folder(ours, Path(folder) / "theirs")
        theirs = BartForConditionalGeneration.from_pretrained(Path(folder) / "theirs").eval()
    path = str(data / "test_2016_flickr.{en,de}.gz")
    texts = [record["source"] for record in load_source(path, path).validation[:200]]
    prompts = [build_prompt(codec, text, answers_source=True, view=trained.view) for text in texts]
    sources = [prompt.source for prompt in prompts if prompt.source is not None]
    order = sorted(range(len(sources)), key=lambda i: len(sources[i]))
    parts = [order[start : start + 25] for start in range(0, len(order), 25)]
    end, begin = codec.end_of_text, int(prompts[0].ids[0])
    beam, outputs = Beam(size=4, max_tokens=60, early_stopping="bound"), dict[str, list[list[int]]]()

    def of_ours() -> None:
        results = [
            beam_search(ours, [prompts[i] for i in part], beam, Constraints(ends=(end,)), mask=Causal())
            for part in parts
        ]
        outputs["ours"] = [beams[0].ids.tolist() for part in results for beams in part]

    def of_theirs() -> None:
        outputs["theirs"] = []
        for part in parts:
            ids = torch.full((len(part), max(len(sources[i]) for i in part)), end)
            is_real = torch.zeros_like(ids)
            for row, i in enumerate(part):
                ids[row, : len(sources[i])] = torch.from_numpy(sources[i].astype(np.int64))
                is_real[row, : len(sources[i])] = 1
            with torch.no_grad():
                generated = theirs.generate(
                    input_ids=ids,
                    attention_mask=is_real,
                    num_beams=4,
                    max_new_tokens=60,
                    early_stopping=False,
                    do_sample=False,
                    decoder_start_token_id=begin,
                    eos_token_id=end,
                    pad_token_id=end,
                    forced_eos_token_id=None,
                )
            outputs["theirs"] += [row[: [*row, end].index(end)] for row in generated[:, 1:].tolist()]

    seconds = in_turn({"isoform": of_ours, "transformers": of_theirs}, rounds=rounds)
    answers = [ids[: [*ids, end].index(end)] for ids in outputs["ours"]]
    same = sum(a == b for a, b in zip(answers, outputs["theirs"], strict=True))
    return {
        "seconds": {name: summary(times) for name, times in seconds.items()},
        "times_the_peer": ratios(seconds, "isoform", "transformers"),
        "same_answers": f"{same} of {len(sources)}",
        "mean_length": float(np.mean([len(ids) for ids in answers])),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=10)
    options = parser.parse_args()
    choose_machine("cpu")  # before any thread starts, as a process that trains does, so that all flush subnormals
    save_results(
        "objectives",
        {
            "masked": trained("masked", bert, masked_rows(options.steps), Masked(), options.rounds),
            "seq2seq": trained("seq2seq", bart, pair_rows(options.steps), Seq2seq(), options.rounds),
            "beam_search": beam_searches(options.rounds, options.data),
        },
    )


if __name__ == "__main__":
    main()
