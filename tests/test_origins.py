"""What a Hugging Face folder says beside its model and its tokenizer.json, as transformers reads it."""

import itertools
import json
import shutil
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import transformers as peers

import isoform
from isoform.codecs.config import Tokenizer
from isoform.evaluation.evaluate import evaluate_records
from isoform.experiment import train
from isoform.files import remove
from isoform.generation.answers import sample
from isoform.generation.config import Sampling
from isoform.generation.constraints import constraints_of
from isoform.generation.decode import build_prompt
from isoform.journal import is_vacant
from isoform.machine import choose_machine
from test_journal import recipe
from test_whole import BYTES, PAIRS, bytes_tokenizer, folder_of, peer_of, tokenizer_of

CPU = choose_machine("cpu", "float32")
TEMPLATES = {"rag": "{{ documents }}", "tool_use": "{{ tools }}é", ".hidden": "{{ x }}"}


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("folders")


def folder_with_templates(folder: Path) -> Path:
    """A small model, its tokenizer, its chat template and further ones."""
    tokenizer = peers.PreTrainedTokenizerFast(tokenizer_object=bytes_tokenizer(), **BYTES)
    tokenizer.chat_template = {"default": "{{ messages }}", **TEMPLATES}
    tokenizer.save_pretrained(folder)
    sizes = {"n_layer": 1, "n_head": 2, "n_embd": 16, "n_positions": 32, "bos_token_id": 0, "eos_token_id": 0}
    peers.GPT2LMHeadModel(peers.GPT2Config(vocab_size=len(tokenizer), **sizes)).save_pretrained(folder)
    return folder


def templates_of(folder: Path) -> object:
    return peers.AutoTokenizer.from_pretrained(folder).chat_template


def test_further_chat_templates_are_converted(tmp_path):
    source = folder_with_templates(tmp_path / "source")
    (source / "additional_chat_templates" / "notes.txt").write_text("no template")
    assert templates_of(source).keys() == {"default", *TEMPLATES}
    isoform.export(isoform.load(source), tmp_path / "out")
    assert templates_of(tmp_path / "out") == templates_of(source)
    assert not (tmp_path / "out" / "additional_chat_templates" / "notes.txt").exists()


def test_nothing_is_copied_through_a_link(tmp_path):
    source = folder_with_templates(tmp_path / "source")
    (tmp_path / "secret").write_text("secret")
    (source / "additional_chat_templates" / "other.jinja").symlink_to(tmp_path / "secret")
    with pytest.warns(UserWarning, match=r"other\.jinja is a link and is left aside"):
        trained = isoform.load(source)
    isoform.export(trained, tmp_path / "out")
    assert templates_of(tmp_path / "out").keys() == {"default", *TEMPLATES}
    (source / "additional_chat_templates").rename(tmp_path / "elsewhere")
    (source / "additional_chat_templates").symlink_to(tmp_path / "elsewhere")
    with pytest.warns(UserWarning, match="additional_chat_templates is a link and is left aside"):
        trained = isoform.load(source)
    isoform.export(trained, tmp_path / "plain")
    assert templates_of(tmp_path / "plain") == "{{ messages }}"


def test_a_run_keeps_further_chat_templates(tmp_path):
    """And its folder counts as one that a killed start left, not as somebody else's."""
    source = folder_with_templates(tmp_path / "source")
    (tmp_path / "text.txt").write_text("the cat sat on the mat\n" * 99)
    folder = tmp_path / "run"
    codec = Tokenizer(path=str(source / "tokenizer.json"))
    plan = replace(recipe(tmp_path / "text.txt", steps=2, validate_every=0, sample_every=0), codec=codec)
    train(plan, folder, machine=CPU)
    assert "model/additional_chat_templates/rag.jinja" in (folder / "manifest.json").read_text()
    longer = replace(plan, training=replace(plan.training, steps=3))
    isoform.export(isoform.load(train(longer, folder, machine=CPU).folder), tmp_path / "out")
    assert templates_of(tmp_path / "out") == templates_of(source)

    for path in [path for path in folder.iterdir() if path.name not in ("model", "manifest.json")]:
        remove(path)
    (folder / "model" / "model.safetensors").unlink()
    assert is_vacant(folder)
    (folder / "model" / "additional_chat_templates" / "notes.txt").write_text("mine")
    assert not is_vacant(folder)


def changed(folder: Path, file: str, **fields: object) -> None:
    """Set fields of a JSON file, or remove those that are ABSENT."""
    path = folder / file
    values = {**(json.loads(path.read_text()) if path.exists() else {}), **fields}
    path.write_text(json.dumps({key: value for key, value in values.items() if value is not ABSENT}))


ABSENT = object()
FIELDS = {"absent": ABSENT, "null": None, "named": 5}
RECORD = {"source": "the lazy dog", "target": "What's new?"}
NO_END = "the model's files name no eos_token_id"


def their_ids(name: str, folder: Path) -> list[int] | None:
    """What transformers generates greedily, with what comes first; None if it refuses to."""
    model, tokenizer = peer_of(name).model.from_pretrained(folder).eval(), tokenizer_of(name)
    inputs = tokenizer("the fox", return_tensors="pt").input_ids
    try:
        return model.generate(inputs, max_new_tokens=6, do_sample=False)[0].tolist()
    except ValueError as error:
        assert "has to be defined" in str(error)
        return None


def our_ids(folder: Path) -> list[int] | None:
    try:
        trained = isoform.load(folder)
        prompt = build_prompt(trained.codec, "the fox", answers_source=trained.answers_source, view=trained.view)
    except ValueError as error:
        assert "decoder_start_token_id or bos_token_id has to be defined" in str(error)
        return None
    constraints = constraints_of(trained.codec, trained.transformer.config.vocab_size)
    ((text,),) = sample(trained.transformer, [prompt], Sampling(max_tokens=6, temperature=0), constraints)
    return [*prompt.ids.tolist(), *text.ids.tolist()]


def their_loss(name: str, folder: Path) -> float | None:
    """The loss of a record in transformers; None if it refuses to score it."""
    model, tokenizer = peer_of(name).model.from_pretrained(folder).eval(), tokenizer_of(name)
    ids = [tokenizer(RECORD[key], return_tensors="pt").input_ids for key in ("source", "target")]
    try:
        return float(model(input_ids=ids[0], labels=ids[1]).loss.detach())
    except (AttributeError, TypeError, ValueError):  # the start is None
        return None


@pytest.mark.parametrize("config", FIELDS)
@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.filterwarnings(f"ignore:{NO_END}")
def test_targets_begin_as_in_transformers(name, config, root, tmp_path):
    """Those that are generated, and those that are scored; before and after they are converted."""
    if name == "marian" and config != "named":
        return  # below
    cases = itertools.product(("no file", "absent", "named"), (ABSENT, 10))
    for number, (generation, bos) in enumerate(cases):
        folder = shutil.copytree(folder_of(name, root), tmp_path / str(number))
        changed(folder, "config.json", decoder_start_token_id=FIELDS[config], bos_token_id=bos)
        if generation == "no file":
            (folder / "generation_config.json").unlink()
        else:
            start = 6 if generation == "named" else ABSENT
            changed(folder, "generation_config.json", decoder_start_token_id=start, bos_token_id=bos)
        expected, loss = their_ids(name, folder), their_loss(name, folder)
        assert our_ids(folder) == expected, (generation, bos)
        if expected is None and loss is None:
            continue
        trained = isoform.load(folder)
        if loss is not None:
            score = evaluate_records(trained.model, trained.recipe, trained.codec, [RECORD], CPU)
            assert score.loss == pytest.approx(loss, rel=1e-5), (generation, bos)
        isoform.export(trained, folder / "out")
        assert their_ids(name, folder / "out") == expected and their_loss(name, folder / "out") == loss


def test_a_start_that_the_class_refuses_is_refused(root, tmp_path):
    folder = shutil.copytree(folder_of("marian", root), tmp_path / "changed")
    changed(folder, "config.json", decoder_start_token_id=None)
    with pytest.raises(Exception, match="decoder_start_token_id"):
        peer_of("marian").model.from_pretrained(folder)
    with pytest.raises(ValueError, match="decoder_start_token_id is null, which their class refuses"):
        isoform.load(folder)
    changed(folder, "config.json", decoder_start_token_id=ABSENT)
    with pytest.raises(ValueError, match="decoder_start_token_id=58100, and the model's table has"):
        isoform.load(folder)


@pytest.mark.parametrize("name", ["gpt2", "llama2", "t5", "bart"])
@pytest.mark.parametrize("config", FIELDS)
@pytest.mark.parametrize("generation", ["no file", *FIELDS])
def test_texts_end_as_in_transformers(name, config, generation, root, tmp_path):
    """And go on where no end is declared, with a warning, whatever the tokenizer calls its end."""
    folder = shutil.copytree(folder_of(name, root), tmp_path / "changed")
    start = {"decoder_start_token_id": 2, "forced_eos_token_id": ABSENT} if name in PAIRS else {}
    files = ["config.json", "generation_config.json"]
    if generation == "no file":
        (folder / files.pop()).unlink()
    for file in files:
        changed(folder, file, eos_token_id=ABSENT, **start)
    number = their_ids(name, folder)[-3]
    for file, field in zip(files, (config, generation), strict=False):
        changed(folder, file, eos_token_id={**FIELDS, "named": number}[field])
    is_named = (config if generation == "no file" else generation) == "named"
    expected = their_ids(name, folder)
    assert expected[-1] == number or not is_named
    with warnings.catch_warnings() if is_named else pytest.warns(UserWarning, match=NO_END):
        assert our_ids(folder) == expected
    isoform.export(isoform.load(folder), tmp_path / "out")
    assert their_ids(name, tmp_path / "out") == expected


def test_a_run_that_starts_from_a_folder_without_an_end_keeps_its_own(root, tmp_path):
    """Which its texts end with in training."""
    folder = shutil.copytree(folder_of("gpt2", root), tmp_path / "start")
    for file in ("config.json", "generation_config.json"):
        changed(folder, file, eos_token_id=ABSENT)
    (tmp_path / "text.txt").write_text("the cat sat on the mat\n" * 99)
    model = isoform.load(folder).transformer.config
    plan = recipe(tmp_path / "text.txt", steps=2, validate_every=0, sample_every=2)
    training = replace(plan.training, global_batch_tokens=model.context_length)
    plan = replace(plan, start=str(folder), model=model, training=training)
    trained = isoform.load(train(plan, tmp_path / "run", machine=CPU).folder)
    assert constraints_of(trained.codec, model.vocab_size).ends == (trained.codec.end_of_text,)
