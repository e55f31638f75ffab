"""What a command says of a recipe at once, before PyTorch is loaded and anything is read."""

from __future__ import annotations

from isoform.config import kind_of
from isoform.model.baseline_config import Model
from isoform.model.config import ModelConfig, StackConfig
from isoform.model.cost import num_parameters
from isoform.recipe import Recipe


def opening(recipe: Recipe) -> list[str]:
    """The lines about model and data that a recipe alone decides."""
    lines = [f"model          {_model(recipe.model)}", f"data           {_data(recipe)}"]
    return [*lines, f"start          {recipe.start}"] if recipe.start else lines


def _model(model: Model) -> str:
    if isinstance(model, ModelConfig):
        form, layers = model.form.replace("_", "-"), " + ".join(map(_layers, model.stacks))
    else:
        form, layers = kind_of(type(model)).replace("_", " "), str(model.num_layers)
    besides = "" if model.vocab_size else " besides stem and head"
    return (
        f"{form}, {layers} layers of width {model.model_dim}, context {model.context_length}, "
        f"{num_parameters(model):,} parameters{besides}"
    )


def _layers(stack: StackConfig) -> str:
    return str(stack.num_layers) if stack.loops == 1 else f"{stack.loops} x {stack.num_layers}"


def _data(recipe: Recipe) -> str:
    data, objective = recipe.data, kind_of(type(recipe.objective)).replace("_", " ")
    paths = ", ".join(part.path for part in data.mixture) or data.path or "none named"
    validated = f", validated on {data.validation_path}" if data.validation_path else ""
    codec = "" if recipe.start else f", read as {kind_of(type(recipe.codec))}"
    return f"{paths}{validated}{codec}, objective {objective}"
