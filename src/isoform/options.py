"""What each verb takes: one frozen dataclass a verb. Torch-free, so that help is quick."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

import tyro

from isoform.generation.config import Sampling
from isoform.recipe import Recipe
from isoform.scaling.config import Ladder

Inline = tyro.conf.arg(name="")


@dataclass(frozen=True, kw_only=True)
class Output:
    """How a verb speaks."""

    quiet: Annotated[bool, tyro.conf.arg(aliases=["-q"])] = False
    """Say only what matters."""
    verbose: Annotated[bool, tyro.conf.arg(aliases=["-v"])] = False
    """Show the traceback of a failure."""
    json: bool = False
    """Print one JSON object on standard output, and nothing else there."""


@dataclass(frozen=True, kw_only=True)
class MachineOptions:
    """Where to compute."""

    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Format of the matrix products; auto: what the device is good at."""
    compile: bool | None = None
    """Compile the blocks with torch.compile (on CPUs that takes a C++ compiler); absent: on CUDA only."""
    kernel: Literal["auto", "dense", "sdpa", "flex"] = "auto"
    """How attention is computed: as is fast here, by plain products, torch's fused kernel, or FlexAttention, which
    is compiled and can't train on CPUs."""
    deterministic: bool = False
    """On CUDA: the same bits each time, at some cost. CPUs give them anyway."""


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """Train a recipe, or continue the run in --out."""

    recipe: Annotated[Recipe, Inline] = Recipe()
    out: str = ""
    """The run directory; empty: runs/RECIPE-N, new. An existing run is continued."""
    dry_run: bool = False
    """Prepare everything, say what would be trained, and stop."""
    report: bool = True
    """Write report.html at the end; the runs of a study leave it out."""
    machine: Annotated[MachineOptions, Inline] = MachineOptions()
    output: Annotated[Output, Inline] = Output()


@dataclass(frozen=True, kw_only=True)
class StudyOptions:
    """Who makes the runs of a study."""

    pool: str = "runs/pool"
    """Where runs lie, named by their content; a run that is there is not made again."""
    engine: Literal["local", "ray", "slurm"] = "local"
    """Processes here, or the nodes of a Ray or Slurm cluster, which must share the pool's file system."""
    workers: int = 0
    """Runs side by side; 0: as many as CPU cores on a CPU, one on another device."""
    threads: int = 1
    """CPU threads of each run; small models are made fastest by many runs of one thread."""


@dataclass(frozen=True, kw_only=True)
class ScaleOptions:
    """Plan a ladder of sizes, run it, fit its law, forecast, report."""

    recipe: Annotated[Recipe, Inline] = Recipe()
    ladder: Annotated[Ladder, Inline] = Ladder()
    against: str = ""
    """Another recipe (a name or a TOML path) to climb the same ladder with, or changes of this one:
    KEY=VALUE,KEY=VALUE; the two are compared."""
    forecast: float = 10.0
    """Forecast a run of so many times the largest run's compute."""
    verify: bool = False
    """Train the run that was forecast, and score the forecast."""
    price: dict[str, float] = field(default_factory=dict)
    """What an hour costs, in any money: --price.here 0.1 --price.H200 3.5."""
    out: str = ""
    """The folder of the report; empty: runs/scale-RECIPE."""
    dry_run: bool = False
    """Say what would be run and what it would take, and stop."""
    study: Annotated[StudyOptions, Inline] = StudyOptions()
    machine: Annotated[MachineOptions, Inline] = MachineOptions()
    output: Annotated[Output, Inline] = Output()


@dataclass(frozen=True, kw_only=True)
class ReproduceOptions:
    """Check a claim: make its runs, decide by its rule, write its page."""

    claim: tyro.conf.Positional[str] = ""
    """The id of a built-in claim, or the path of a TOML file."""
    list: bool = False
    """All claims, with the verdicts found in --out."""
    quick: bool = False
    """The short form, of at most five minutes; its pages are named ID-quick."""
    extend: bool = False
    """Take the runs that the JSON in --out knows as done, and make those that are missing."""
    data: str = ""
    """The folder in which a claim's data lie that don't come with a package; empty: here."""
    out: str = "docs/results"
    """Where ID.md, ID.json and the pictures go."""
    study: Annotated[StudyOptions, Inline] = StudyOptions()
    machine: Annotated[MachineOptions, Inline] = field(default_factory=MachineOptions)
    output: Annotated[Output, Inline] = field(default_factory=Output)


@dataclass(frozen=True, kw_only=True)
class InspectOptions:
    """Look at training rows: every token above what it should say, and who may attend to whom."""

    recipe: Annotated[Recipe, Inline] = Recipe()
    examples: int = 1
    """How many rows."""
    first: int = 0
    """The number of the first: row 0 is where training begins."""
    columns: int = 32
    """So many tokens of each mask are drawn; 0: none."""
    output: Annotated[Output, Inline] = Output()


@dataclass(frozen=True, kw_only=True)
class GenerateOptions:
    """Continue a text with a trained model."""

    run: tyro.conf.Positional[str] = ""
    """A run directory, a Hugging Face folder, or a GGUF file."""
    prompt: str | None = None
    """The text to continue; absent: standard input, if it is not a terminal."""
    path: str = ""
    """A file with a prompt, or a source, on each line: the answer to each is written, a line each; with num_samples
    above 1 so many lines, each after the number of the prompt and its score."""
    out: str = ""
    """The file for the answers to --path; empty: standard output."""
    sampling: Annotated[Sampling, Inline] = Sampling()
    beams: int = 0
    """Search for the num_samples most probable texts with so many beams, instead of sampling; 0: sample."""
    length_penalty: float = 1.0
    """A text's score in that search is its log probability over its length to this power."""
    probabilities: bool = False
    """Walk prompt and continuation token by token: probability, rank, entropy, alternatives."""
    attention: str = ""
    """A PNG file for a picture of how the tokens of an answer attend to those of its source, layer by layer."""
    machine: Annotated[MachineOptions, Inline] = MachineOptions()
    output: Annotated[Output, Inline] = Output()


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """Loss and bits per byte of runs, on their own validation text or any other; and how well they do a task."""

    runs: tyro.conf.Positional[tuple[str, ...]] = ()
    """Run directories, Hugging Face folders, GGUF files."""
    path: str = ""
    """The text to evaluate on, whole; empty: each run's own validation split."""
    limit: int = 0
    """At most this many rows; 0: all."""
    tasks: tuple[Literal["translation"], ...] = ()
    """translation: every source is answered, and the answers are scored with BLEU, as is published and on plain
    text."""
    language: str = "en"
    """Of the targets of a translation, by its ISO 639 code: Moses' tokenizer knows its abbreviations."""
    beams: int = 5
    """So many beams search for each answer."""
    length_penalty: float = 1.0
    """An answer's score in that search is its log probability over its length to this power."""
    out: str = ""
    """The folder for the answers, a file of lines for each run; empty: they aren't kept."""
    machine: Annotated[MachineOptions, Inline] = MachineOptions()
    output: Annotated[Output, Inline] = Output()


@dataclass(frozen=True, kw_only=True)
class EstimateOptions:
    """Parameters, FLOPs, memory and time of a recipe or preset, before anything is trained."""

    recipe: Annotated[Recipe, Inline] = Recipe()
    machine: Annotated[MachineOptions, Inline] = MachineOptions()
    output: Annotated[Output, Inline] = Output()


@dataclass(frozen=True, kw_only=True)
class ConvertOptions:
    """Write a model as a folder that transformers loads; what no class of theirs can say is refused by name."""

    source: tyro.conf.Positional[str] = ""
    """A run directory, a Hugging Face folder, or a GGUF file."""
    destination: tyro.conf.Positional[str] = ""
    """The folder to write; it must be new or empty."""
    output: Annotated[Output, Inline] = field(default_factory=Output)


@dataclass(frozen=True, kw_only=True)
class DoctorOptions:
    """What this machine can do."""

    refresh: bool = False
    """Measure the peaks again."""
    machine: Annotated[MachineOptions, Inline] = MachineOptions()
    output: Annotated[Output, Inline] = Output()


@dataclass(frozen=True, kw_only=True)
class RecipesOptions:
    """The built-in recipes and presets, or how two of them differ."""

    diff: tuple[str, str] | None = None
    """Two recipes or presets (names, or TOML paths) to compare field by field."""
    show: str = ""
    """Print one recipe as it is written."""
    output: Annotated[Output, Inline] = field(default_factory=Output)
