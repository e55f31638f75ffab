"""How a model is trained: optimizer, schedule, batch, and when to validate, sample and save. Torch-free."""

from typing import Literal

from isoform.model.config import LowRank
from isoform.outside import External
from isoform.ranges import Count, Index, Layers, NonNegative, Positive, PositiveShare, Rate, Share, config

Tracker = Literal["tensorboard", "wandb", "trackio"]
"""Trackers that are told the metrics of a run."""


@config
class AdamW:
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019); gains and biases are not decayed."""

    learning_rate: NonNegative = 1e-3
    """At the peak of the schedule."""
    beta1: Rate = 0.9
    """Share of the gradient's running mean that each step keeps."""
    beta2: Rate = 0.95
    """Share of the squared gradient's running mean that each step keeps."""
    epsilon: Positive = 1e-8
    """Added to the root of that mean, so that nothing is divided by 0."""
    weight_decay: NonNegative = 0.1
    """Share of a matrix that is subtracted from it, per unit of learning rate and step."""
    embedding_learning_rate: NonNegative | None = None
    """Of the stem's embedding tables; default: learning_rate."""


@config
class Muon:
    """Momentum, orthogonalised, for the matrices of the blocks (Jordan 2024); AdamW for all other parameters."""

    learning_rate: NonNegative = 0.02
    """Of the matrices; the update of an (out, in) matrix is scaled by sqrt(max(1, out / in))."""
    momentum: Rate = 0.95
    """Share of the gradients' running mean that each step keeps."""
    weight_decay: NonNegative = 0.0
    """As of AdamW, for the matrices."""
    newton_schulz_steps: Layers = 5
    """Iterations of the orthogonalisation."""
    adam: AdamW = AdamW(learning_rate=1e-2, weight_decay=0.0)
    """For embeddings, head, gains and biases."""


Optimizer = AdamW | Muon | External
"""An external one is called with groups of parameters and its options: torch.optim:SGD, say."""


def learning_rate_of(optimizer: Optimizer) -> float:
    """The peak learning rate; of an external optimizer its option lr. Raises ValueError if it has none."""
    if not isinstance(optimizer, External):
        return optimizer.learning_rate
    rate = optimizer.options.get("lr")
    if not isinstance(rate, int | float):
        raise ValueError(f"training.optimizer: {optimizer.name} has no number as its option lr; set options.lr")
    return rate


@config
class WarmupStableDecay:
    """Linear warm-up, a plateau, and a linear decay over the last part."""

    warmup_steps: Index = 0
    """Steps until the peak."""
    decay_fraction: Share = 0.3
    """The fraction of all steps in the decay."""
    final: Share = 0.0
    """The learning rate at the end, as a fraction of the plateau."""


@config
class Cosine:
    """Linear warm-up, then half a cosine down (Loshchilov and Hutter 2017)."""

    warmup_steps: Index = 0
    """Steps until the peak."""
    final: Share = 0.1
    """The learning rate at the end, as a fraction of the peak."""


@config
class InverseSquareRoot:
    """Linear warm-up, then sqrt(warmup / step) (Vaswani et al. 2017, section 5.3)."""

    warmup_steps: Index = 4000
    """Steps until the peak."""


Schedule = WarmupStableDecay | Cosine | InverseSquareRoot


@config
class Training:
    """One run."""

    steps: Count = 1000
    """Optimizer steps."""
    epochs: Positive | None = None
    """The most passes over the training data: a run begins with fewer steps if they would be more, and with a warm-up
    of at most a tenth of them; none: steps alone decide."""
    global_batch_tokens: Count = 4096
    """Tokens per step, over all rows; a multiple of the length of a row."""
    micro_batch_size: Count | None = None
    """Rows per forward pass; default: all rows of a step. Only the random draws of dropout depend on it."""
    optimizer: Optimizer = AdamW()
    """How gradients become updates."""
    schedule: Schedule = WarmupStableDecay()
    """How the learning rate changes over the steps."""
    clip_norm: Positive | None = 1.0
    """Largest gradient norm; none: no clipping."""
    frozen: tuple[str, ...] = ()
    """Prefixes of names of parameters that are not trained: stem, encoder, decoder.blocks.0."""
    layer_decay: PositiveShare = 1.0
    """The learning rate of each block as a fraction of that of the block above it; the stem counts as a block below the
    first (Howard and Ruder 2018, section 3.2)."""
    adapters: LowRank | None = None
    """Low-rank adapters that are trained instead of the parameters; none: all parameters that aren't frozen are."""
    validate_every: Index | None = None
    """Steps between validations on the whole validation split; 0: only at the end; none: a fifth of the steps, at most
    250."""
    checkpoint_every: Index = 250
    """Steps between checkpoints; 0: only at the end."""
    keep_checkpoints: Count = 2
    """How many of the newest checkpoints stay on the disk."""
    average_checkpoints: Count = 1
    """The final model is the mean of the last n checkpoints (Vaswani et al. 2017, section 6.1)."""
    sample_every: Index = 0
    """Steps between samples; 0: only at the end."""
    sample_tokens: Index = 200
    """Length of samples in tokens; 0: no samples."""
    log_every: Count = 10
    """Steps between lines of metrics.jsonl."""

    @property
    def validation_interval(self) -> int:
        """Steps between validations; 0: only at the end."""
        return max(1, min(250, self.steps // 5)) if self.validate_every is None else self.validate_every

    def __post_init__(self) -> None:
        if self.average_checkpoints > self.keep_checkpoints:
            raise ValueError(
                f"training.average_checkpoints={self.average_checkpoints} must be at most "
                f"keep_checkpoints={self.keep_checkpoints}"
            )
        interval = self.checkpoint_every or self.steps
        if interval * (self.average_checkpoints - 1) >= self.steps:
            raise ValueError(
                f"training.average_checkpoints={self.average_checkpoints}, {interval} steps apart, need more than "
                f"{self.steps} steps; set checkpoint_every lower"
            )


def doubts(training: Training) -> list[str]:
    """What is allowed, but hardly meant: a learning rate that never reaches its peak."""
    schedule, steps = training.schedule, training.steps
    warmup = schedule.warmup_steps
    if warmup >= steps > 1:
        return [
            f"training.schedule.warmup_steps={warmup} is not below training.steps={steps}: the learning rate rises to "
            f"the end, and reaches {min(1.0, steps / warmup):.2g} of its peak"
        ]
    if isinstance(schedule, WarmupStableDecay) and schedule.decay_fraction > 0:
        begin = steps - max(1, round(schedule.decay_fraction * steps))
        if warmup > begin + 1:
            return [
                f"training.schedule: the decay over decay_fraction={schedule.decay_fraction:g} of the run begins after "
                f"step {begin}, before the warm-up ends at step {warmup}: the learning rate never reaches its peak"
            ]
    return []
