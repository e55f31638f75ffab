"""Our own folder of a model: config.json, model.safetensors and the codec's files; also the part model/ of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from isoform.checkpoint.huggingface import CONFIG
from isoform.checkpoint.store import tensor_chunks
from isoform.checkpoint.tensors import state_of
from isoform.checkpoint.versions import LAYOUT, upgrade_tensors
from isoform.config import from_dict, kind_of, to_dict
from isoform.files import write_chunks
from isoform.model.baseline_config import Model
from isoform.model.config import ModelConfig
from isoform.model.cost import num_parameters
from isoform.model.network import Network
from isoform.reading import check_safetensors, read_json

FORMAT = 4
MODEL_TYPE = "isoform"


def is_own_folder(path: Path) -> bool:
    """Whether this is such a folder."""
    return (path / CONFIG).is_file() and read_json(path / CONFIG).get("model_type") == MODEL_TYPE


def describe_model(model: Model, *, answers_source: bool, format: int = FORMAT) -> dict[str, Any]:
    """The content of config.json."""
    return {
        "model_type": MODEL_TYPE,
        "format": format,
        "answers_source": answers_source,
        "model": {"kind": kind_of(type(model)), **to_dict(model)},
    }


def read_config(path: Path) -> tuple[dict[str, Any], Model]:
    """A config.json, and the model that it describes. Raises ValueError naming the file."""
    config = read_json(path)
    version, model = config.get("format", 0), config.get("model")
    if not isinstance(version, int) or not isinstance(model, dict):
        raise ValueError(f"{path} is damaged: it needs a number 'format' and a table 'model'; copy it again")
    if version > FORMAT:
        raise ValueError(f"{path} was written in format {version}, this isoform reads up to {FORMAT}; upgrade it")
    kind = {"kind": kind_of(ModelConfig)}  # which older runs omit
    try:
        return config, from_dict(Model, {**kind, **model})
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def write_weights(path: Path, model: Network) -> None:
    """Write model.safetensors."""
    write_chunks(path, tensor_chunks("model", state_of(model), {"layout": str(LAYOUT)}))


def check_size(config: Path, model: Model, weights: Path) -> None:
    """Raises ValueError, before memory is taken, for weights too small for the parameters that a config describes."""
    if (size := num_parameters(model)) > (num_bytes := weights.stat().st_size):
        raise ValueError(f"{config} describes {size:,} parameters, but {weights} has {num_bytes:,} bytes; they differ")


def read_weights(path: Path, model: Network, *, layout: int = 1) -> dict[str, Tensor]:
    """The tensors of model.safetensors, in today's layout; layout: of a file that states none. Raises ValueError."""
    check_safetensors(path)
    try:
        with safe_open(path, "pt") as file:
            layout = int((file.metadata() or {}).get("layout", layout))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return upgrade_tensors(tensors, layout, model)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}); copy it again or train it again") from error
