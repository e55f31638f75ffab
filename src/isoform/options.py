"""The options of each command, a frozen dataclass each. Torch-free, so that help is quick."""

from __future__ import annotations

from dataclasses import field
from typing import Annotated, Any, Literal

from isoform.annotations import Alias, FilePath, FolderPath, Holds, Inlined, Positional, RecipeName
from isoform.flags import Short
from isoform.generation.config import Sampling
from isoform.ranges import (
    Exponent,
    Index,
    NonNegative,
    OptionalRows,
    OptionalSize,
    Positive,
    Rows,
    Size,
    Threads,
    config,
)
from isoform.recipe import Recipe
from isoform.scaling.config import Ladder
from isoform.training.config import Tracker

Inline = Inlined()
NamedRecipe = Annotated[Recipe, Inlined("RECIPE")]
"""A recipe that the argument before the flags names, and whose fields are flags."""

SHORTS = {
    "data": Short(("data.path",), "What to train on: a file, a folder, package:NAME, toy:NAME"),
    "steps": Short(("training.steps",), "Optimizer steps"),
    "lr": Short(("training.optimizer.learning_rate",), "The peak learning rate"),
    "batch": Short(("training.global_batch_tokens",), "Tokens per step, a multiple of --context"),
    "layers": Short(
        ("model.num_layers", "model.encoder.num_layers", "model.decoder.num_layers"), "Blocks of each stack"
    ),
    "width": Short(("model.model_dim",), "Width of the model"),
    "context": Short(("model.context_length",), "The most tokens that are seen at once"),
    "seed": Short(("seed",), "The seed of all random numbers"),
    "start": Short(("start",), "A run, Hugging Face folder or GGUF file to start from"),
}
"""The fields of a recipe that most people set, by short names."""


@config
class Output:
    """The output of a command."""

    quiet: Annotated[bool, Alias("-q")] = False
    """Print only results and warnings."""
    verbose: Annotated[bool, Alias("-v")] = False
    """Show the traceback of a failure."""
    json: bool = False
    """Print one JSON object, and nothing else, on standard output."""


@config
class MachineOptions:
    """Where to compute."""

    device: Annotated[str, Holds("DEVICE")] = "auto"
    """auto, cpu, cuda, cuda:N or mps."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Format of the matrix products; auto: of training that of the device's fastest instructions; of text that is
    generated the one that decodes faster here, measured once (isoform doctor shows both)."""
    threads: Threads = 0
    """CPU threads; 0: one per core, and one for each run of a study."""
    compile: bool | None = None
    """Compile the blocks with torch.compile (needs a C++ compiler on CPUs); default: on CUDA only."""
    kernel: Literal["auto", "dense", "sdpa", "flex"] = "auto"
    """How attention is computed: auto (the fastest), by plain matrix products, torch's fused kernel, or FlexAttention,
    which is compiled and can't train on CPUs."""
    deterministic: bool = False
    """On CUDA: bitwise reproducible results, at some cost. On CPUs they always are."""


@config
class Own:
    """Parts of your own that a run was trained with; nothing that a run names is imported otherwise."""

    codec: str = ""
    """MODULE:NAME of its codec."""
    view: str = ""
    """MODULE:NAME of its view."""
    mixers: tuple[str, ...] = ()
    """MODULE:NAME of each mixer."""

    @property
    def parts(self) -> dict[str, Any]:
        """As arguments of `load`."""
        return {"codec": self.codec or None, "view": self.view or None, "mixers": self.mixers}


@config
class TrainOptions:
    """Train a recipe, or continue the run in --out.

    isoform train shakespeare --data my.txt --steps 2000 --out runs/mine
    isoform train gpt2 --data my.txt --layers 4 --width 384 --batch 8192
    isoform train --start smollm2 --data my.txt --lora 8
    """

    recipe: NamedRecipe = Recipe()
    """A built-in recipe or an architecture (isoform recipes lists them), a TOML file, a run, a Hugging Face folder or a
    GGUF file."""
    lora: OptionalSize = 0
    """Train low-rank adapters of this rank beside the parameters, which stay (training.adapters); 0: as the recipe
    says."""
    out: FolderPath = ""
    """The run directory; empty: the run that is named, or runs/RECIPE-N, new. An existing run is continued."""
    dry_run: bool = False
    """Prepare everything, print what would be trained, and stop."""
    overwrite: bool = False
    """Train from the start in an --out that holds a run; its files are removed after the first new checkpoint."""
    log: tuple[Tracker, ...] = ()
    """Trackers that are told each line of metrics: tensorboard (RUN/tensorboard), wandb, trackio."""
    report: bool = True
    """Write report.html at the end; the runs of a study leave it out."""
    machine: Annotated[MachineOptions, Inline] = MachineOptions()
    output: Annotated[Output, Inline] = Output()


@config
class StudyOptions:
    """How the runs of a study are executed."""

    pool: FolderPath = "runs/pool"
    """The folder of runs, named by their content; an existing run is not repeated."""
    engine: Literal["local", "ray", "slurm"] = "local"
    """Processes here, or the nodes of a Ray or Slurm cluster, which must share the pool's file system."""
    workers: OptionalSize = 0
    """Runs in parallel; 0: one per CPU core on a CPU, one on another device. Small models are trained fastest by many
    runs of one thread, the default of --threads here."""


@config
class ScaleOptions:
    """Plan a ladder of sizes, run it, fit its law, forecast, report.

    isoform scale shakespeare --minutes 10 --dry_run
    isoform scale shakespeare --minutes 10 --against training.optimizer.kind=adamw
    isoform scale ladder --data my.txt --budget 1e14 --verify
    """

    ladder: Annotated[Ladder, Inline] = Ladder()
    against: RecipeName = ""
    """Another recipe (a name or a TOML path), or changes of this one (KEY=VALUE,KEY=VALUE), to run on the same ladder
    and compare."""
    forecast: Positive = 10.0
    """Forecast a run with the largest run's compute times this factor."""
    verify: bool = False
    """Train the run that was forecast, and score the forecast."""
    price: dict[str, NonNegative] = field(default_factory=dict)
    """The price of an hour, in any currency: --price.here 0.1 --price.H200 3.5."""
    out: FolderPath = ""
    """The folder of the report; empty: runs/scale-RECIPE."""
    dry_run: bool = False
    """Print the planned runs and their cost, and stop."""
    recipe: NamedRecipe = Recipe()
    """A built-in recipe or an architecture (isoform recipes lists them), or a TOML file."""
    study: Annotated[StudyOptions, Inline] = StudyOptions()
    machine: Annotated[MachineOptions, Inline] = MachineOptions()
    output: Annotated[Output, Inline] = Output()


@config
class ReproduceOptions:
    """Check a claim: execute its runs, decide by its rule, write its page.

    isoform reproduce --list
    isoform reproduce chinchilla --quick
    isoform reproduce my-claim.toml --out results --workers 4
    """

    claim: Annotated[str, Positional("CLAIM", is_optional=True)] = ""
    """The id of a built-in claim, or the path of a TOML file."""
    list: bool = False
    """List all claims, with the verdicts in --out."""
    quick: bool = False
    """The short version, of at most five minutes; its pages are named ID-quick."""
    extend: bool = False
    """Reuse the runs in the JSON in --out, and execute those that are missing."""
    data: FolderPath = ""
    """The folder of the claim's data that no package provides; empty: the working directory."""
    out: FolderPath = "docs/results"
    """The folder for ID.md, ID.json and the figures."""
    study: Annotated[StudyOptions, Inline] = StudyOptions()
    machine: Annotated[MachineOptions, Inline] = field(default_factory=MachineOptions)
    output: Annotated[Output, Inline] = field(default_factory=Output)


@config
class InspectOptions:
    """Look at training rows: every token above its target, and the attention mask; of a run also how it went, and its
    attention.

    isoform inspect shakespeare
    isoform inspect shakespeare --data my.txt --first 100 --examples 3
    isoform inspect reverse-seq2seq --columns 0
    """

    examples: Size = 1
    """The number of rows."""
    first: Index = 0
    """The index of the first row; training begins with row 0."""
    columns: OptionalSize = 32
    """The number of tokens of each mask that are drawn; 0: none."""
    attention: FilePath = ""
    """A PNG file for a figure of the attention of a trained model in the first of the rows, by layer and head."""
    prompt: str = ""
    """A text whose attention is drawn instead of that of a row."""
    recipe: NamedRecipe = Recipe()
    """A built-in recipe or an architecture (isoform recipes lists them), a TOML file, a run, a Hugging Face folder or a
    GGUF file."""
    output: Annotated[Output, Inline] = Output()


@config
class ReportOptions:
    """Write the page of a run again, finished or not; or one page of several, with their curves and how they differ.

    isoform report runs/shakespeare-1
    isoform report runs/shakespeare-1 runs/shakespeare-2 --out both.html
    """

    runs: Annotated[tuple[str, ...], Positional("RUN")] = ()
    """Run directories."""
    out: FilePath = ""
    """The HTML file; empty: report.html in the run, or comparison.html here."""
    output: Annotated[Output, Inline] = field(default_factory=Output)


@config
class GenerateOptions:
    """Continue a text with a trained model.

    isoform generate runs/shakespeare-1 --prompt "To be" --temperature 0.8
    isoform generate smollm2 --prompt "The capital of France is" --probabilities
    isoform generate runs/multi30k-1 --path test.en --beams 4 --out test.de
    """

    run: Annotated[str, Positional("MODEL")] = ""
    """A run directory, a Hugging Face folder, or a GGUF file."""
    prompt: str | None = None
    """The text to continue; default: standard input, if it is not a terminal."""
    path: FilePath = ""
    """A file with a prompt, or a source, on each line; the output has a line for each, or num_samples lines, each after
    the index of the prompt and its score."""
    out: FilePath = ""
    """The file for the output of --path; empty: standard output."""
    sampling: Annotated[Sampling, Inline] = Sampling()
    beams: OptionalRows = 0
    """Beam search for the num_samples most probable texts with this many beams; 0: sample instead."""
    length_penalty: Exponent = 1.0
    """A text's score in beam search is its log probability over its length to this power."""
    probabilities: bool = False
    """For each token of prompt and continuation: probability, rank, entropy, alternatives."""
    attention: FilePath = ""
    """A PNG file for a figure of attention by layer and head: from the output to its source, or among the tokens of
    prompt and output."""
    own: Annotated[Own, Inline] = Own()
    machine: Annotated[MachineOptions, Inline] = MachineOptions()
    output: Annotated[Output, Inline] = Output()

    def __post_init__(self) -> None:
        sampling, plain = self.sampling, Sampling()
        if self.beams and sampling.num_samples > self.beams:
            raise ValueError(f"num_samples={sampling.num_samples} must be at most beams={self.beams}")
        settings = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "stop")
        changed = [name for name in settings if getattr(sampling, name) != getattr(plain, name)]
        if sampling.temperature == 0:  # beam search takes the most probable tokens, too
            changed.remove("temperature")
        is_set = {"prompt": self.prompt is not None, "probabilities": self.probabilities, "attention": self.attention}
        given = [name for name, value in is_set.items() if value]
        for other, unused in (
            ("beams", {*changed, *given} - {"prompt", "attention"} if self.beams else ()),
            ("path", given if self.path else ()),
        ):
            if unused:
                raise ValueError(f"{min(unused)} has no effect with {other}; leave one of them out")
        if self.out and not self.path:
            raise ValueError(f"out={self.out!r} is for the output of path; give path, too")


@config
class EvaluateOptions:
    """Loss and bits per byte of runs, on their validation split or any text; and scores of tasks.

    isoform evaluate runs/shakespeare-1
    isoform evaluate runs/shakespeare-1 smollm2 --path my.txt
    isoform evaluate runs/multi30k-1 --path 'test.{en,de}' --tasks translation
    """

    runs: Annotated[tuple[str, ...], Positional("MODEL")] = ()
    """Run directories, Hugging Face folders, GGUF files."""
    path: str = ""
    """The text to evaluate on, whole; empty: each run's own validation split."""
    limit: Index = 0
    """The maximum number of rows; 0: all."""
    tasks: tuple[Literal["translation"], ...] = ()
    """translation: all sources are translated, and scored with BLEU, tokenized (as published) and on plain text."""
    language: str = "en"
    """The ISO 639 code of the target language, for the abbreviations in Moses' tokenizer."""
    beams: Rows = 5
    """The number of beams of the beam search."""
    length_penalty: Exponent = 1.0
    """The score in beam search is the log probability over the length to this power."""
    out: FolderPath = ""
    """The folder for the translations, a file for each run; empty: they aren't saved."""
    own: Annotated[Own, Inline] = Own()
    machine: Annotated[MachineOptions, Inline] = MachineOptions()
    output: Annotated[Output, Inline] = Output()


@config
class ChatOptions:
    """Talk to a language model, turn by turn; a conversation beyond the context loses its oldest turns.

    isoform chat smollm2
    isoform chat runs/smollm2-1 --system "You answer in rhymes."
    printf 'Hello.\\nWho are you?\\n' | isoform chat smollm2 --temperature 0
    """

    run: Annotated[str, Positional("MODEL")] = ""
    """A run directory, a Hugging Face folder, or a GGUF file: a decoder of texts."""
    system: str = ""
    """The system's message, which tells the model what it is to be."""
    sampling: Annotated[Sampling, Inline] = Sampling(temperature=0.7, top_p=0.9)
    own: Annotated[Own, Inline] = Own()
    machine: Annotated[MachineOptions, Inline] = MachineOptions()
    output: Annotated[Output, Inline] = Output()

    def __post_init__(self) -> None:
        if self.sampling.num_samples > 1:
            raise ValueError(f"num_samples={self.sampling.num_samples}: an answer is one text; leave it out")


@config
class PredictOptions:
    """Ask a classifier, tagger, regression or embedding model: labels with probabilities, tags, numbers, vectors.

    echo "A fine film." | isoform predict runs/sentiment-1
    isoform predict runs/sentiment-1 --path reviews.csv --out labels.csv
    isoform predict bert-ner --path sentences.jsonl --format jsonl
    """

    run: Annotated[str, Positional("MODEL")] = ""
    """A run directory, a Hugging Face folder, or a GGUF file."""
    path: str = ""
    """Records to ask about: a .txt file, a text on each line; a .csv, .jsonl or .parquet file, or toy:digits; empty:
    texts on standard input, one on each line."""
    out: FilePath = ""
    """The file for the answers; empty: standard output."""
    format: Literal["auto", "csv", "jsonl"] = "auto"
    """auto: by the suffix of --out, else CSV. JSONL has the probabilities of all labels."""
    text_key: str = ""
    """The column or JSON key of the texts; empty: that of training, or found as in training."""
    cut: bool = False
    """Cut texts that are longer than the context, with a warning; default: refuse them."""
    batch_tokens: Size = 4096
    """Tokens that are read at once, padding included."""
    own: Annotated[Own, Inline] = Own()
    machine: Annotated[MachineOptions, Inline] = MachineOptions()
    output: Annotated[Output, Inline] = Output()


@config
class EstimateOptions:
    """Parameters, FLOPs, memory and time of a recipe or preset, before anything is trained.

    isoform estimate shakespeare --layers 8 --width 256
    isoform estimate mixtral
    isoform estimate smollm2.gguf
    """

    recipe: NamedRecipe = Recipe()
    """A built-in recipe or an architecture (isoform recipes lists them), a TOML file, a run, a Hugging Face folder or a
    GGUF file."""
    machine: Annotated[MachineOptions, Inline] = MachineOptions()
    output: Annotated[Output, Inline] = Output()


@config
class ConvertOptions:
    """Write a model as a folder for transformers; fields that no class there can represent are refused by name.

    isoform convert runs/shakespeare-1 shakespeare-hf
    isoform convert SmolLM2.gguf smollm2
    """

    source: Annotated[str, Positional("SOURCE")] = ""
    """A run directory, a Hugging Face folder, or a GGUF file."""
    destination: Annotated[str, Positional("DESTINATION")] = ""
    """The folder to write; it must be new or empty."""
    own: Annotated[Own, Inline] = Own()
    output: Annotated[Output, Inline] = field(default_factory=Output)


@config
class DoctorOptions:
    """What this machine can do.

    isoform doctor --refresh
    """

    refresh: bool = False
    """Measure again: peaks, and which format decodes faster."""
    machine: Annotated[MachineOptions, Inline] = MachineOptions()
    output: Annotated[Output, Inline] = Output()


@config
class RecipesOptions:
    """The built-in recipes and presets, or how two of them differ.

    isoform recipes
    isoform recipes --diff bert gpt2
    isoform recipes --show gpt2 > my.toml
    """

    diff: Annotated[tuple[str, str] | None, Holds("RECIPE")] = None
    """Two recipes or presets (names, or TOML paths) to compare field by field."""
    show: RecipeName = ""
    """Print a recipe, the recipe of a run, or a preset, as TOML."""
    output: Annotated[Output, Inline] = field(default_factory=Output)
