"""The labels of a classifier in config.json: what its outputs are called, and whether they are classes or a number."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from isoform.model.config import Head, Linear, ModelConfig, Pooled
from isoform.objectives.config import Classification, Objective, Regression, Tagging, TokenRegression
from isoform.recipe import Recipe


def with_labels(recipe: Recipe, ids: Mapping[str, Any]) -> Recipe:
    """The recipe of another library's model with the names of its labels, or for a number as transformers has it: where
    `problem_type` says so, or there is one output. Labels of images are indices.

    Raises ValueError for labels that don't exclude each other, and for several numbers.
    """
    model, objective = recipe.model, recipe.objective
    if not isinstance(objective, Classification | Tagging) or not isinstance(model, ModelConfig):
        return recipe
    names, problem = _label_names(ids.get("id2label"), model.head), ids.get("problem_type")
    if problem == "multi_label_classification":
        raise ValueError(
            f"problem_type={problem!r} is not supported: labels here exclude each other; give a classifier with one "
            f"label for a text"
        )
    if len(names) == 1 or problem == "regression":
        if len(names) > 1:
            raise ValueError(f"problem_type={problem!r} with {len(names)} outputs is not supported, only one number is")
        return replace(recipe, objective=Regression() if isinstance(objective, Classification) else TokenRegression())
    return recipe if isinstance(model.stem, Linear) else replace(recipe, objective=replace(objective, labels=names))


def _label_names(given: object, head: Head) -> tuple[str, ...]:
    """The names of the outputs, in their order; LABEL_0, LABEL_1, … where there are none, as in transformers."""
    assert isinstance(head, Pooled)
    names = {str(i): str(name) for i, name in given.items()} if isinstance(given, Mapping) else {}
    return tuple(names.get(str(i), f"LABEL_{i}") for i in range(head.num_outputs))


def label_fields(objective: Objective) -> dict[str, Any]:
    """The fields of a config.json about what a model predicts."""
    match objective:
        case Classification(labels=labels) | Tagging(labels=labels) if labels:
            names = {str(i): name for i, name in enumerate(labels)}
            return {"id2label": names, "label2id": {name: i for i, name in enumerate(labels)}}
        case Regression() | TokenRegression():
            return {"problem_type": "regression"}
        case _:
            return {}
