"""Images as patches: squares of pixels, row by row, each one token of features (ViT, Dosovitskiy et al. 2021).

A class token, the only one with an id, may come first. Positions are (row, column); with a class token the
patches' rows count from 1, and the class token is at (0, 0).
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from isoform.batch import Encoding
from isoform.codecs.codec import Codec
from isoform.codecs.config import Patches
from isoform.codecs.origin import PREPROCESSING, Origin
from isoform.config import from_dict, kind_of


class PatchCodec(Codec):
    """A record {"image", "label"} to patches; `decode` restores the image."""

    def __init__(self, config: Patches) -> None:
        self.config, self.num_classes = config, config.num_classes
        self.num_features = config.size**2 * config.channels
        first = int(config.class_token)
        rows, columns = config.height // config.size, config.width // config.size
        is_grid = config.positions == "grid"
        self.num_positions = (first + rows, columns) if is_grid else ()
        positions = np.stack(np.meshgrid(np.arange(rows) + first, np.arange(columns), indexing="ij"), -1).reshape(-1, 2)
        self._positions = np.concatenate([np.zeros((first, 2), np.int64), positions]) if is_grid else None
        self._ids = np.concatenate([np.zeros(first, np.int64), np.full(rows * columns, -1)])

    @property
    def vocab_size(self) -> int:
        return int(self.config.class_token)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of an image: (height, width), and channels if there are several."""
        config = self.config
        return (config.height, config.width, config.channels)[: 2 if config.channels == 1 else 3]

    def definition(self) -> dict[str, object]:
        fields = asdict(self.config)  # without the default of a newer field, so that earlier fingerprints stay valid
        return {"kind": kind_of(Patches), **{k: v for k, v in fields.items() if (k, v) != ("positions", "grid")}}

    def files(self) -> dict[str, bytes]:
        """The codec as ViTImageProcessor has it, unless it came with a file of its own."""
        config = self.config
        halves = [0.5] * config.channels
        own = {
            "image_processor_type": "ViTImageProcessor",
            "do_resize": True,
            "size": {"height": config.height, "width": config.width},
            "do_rescale": True,
            "rescale_factor": 1 / config.maximum,
            "do_normalize": True,
            "image_mean": halves,
            "image_std": halves,
        }
        return {PREPROCESSING: (json.dumps(own, indent=2) + "\n").encode(), **super().files()}

    def encode(self, record: Mapping[str, Any]) -> Encoding:
        """A record {"image"}, an array of the codec's shape, and optionally {"label"}, a whole number.

        Raises ValueError for other records, other shapes, values out of range and unknown labels.
        """
        if "image" not in record:
            raise ValueError(f"a record has the keys {sorted(record)}; it needs 'image', and 'label' to learn from")
        image, config, label = np.asarray(record["image"], np.float32), self.config, record.get("label")
        if image.shape != self.shape:
            raise ValueError(f"an image of shape {image.shape}, but this codec reads {self.shape}; resize it")
        if not (image.min() >= 0 and image.max() <= config.maximum):  # also rejects NaN
            raise ValueError(
                f"an image with values from {image.min():g} to {image.max():g}; this codec reads 0 to "
                f"{config.maximum:g}: scale it, or set codec.maximum"
            )
        if label is not None and not (int(label) == label and 0 <= label < config.num_classes):
            raise ValueError(f"the label {label} is not among 0 .. {config.num_classes - 1}; set codec.num_classes")
        size, first = config.size, int(config.class_token)
        grid = image.reshape(config.height // size, size, config.width // size, size, config.channels)
        features = np.zeros((len(self._ids), self.num_features), np.float32)
        features[first:] = grid.swapaxes(1, 2).reshape(-1, self.num_features) / config.maximum * 2 - 1
        return Encoding(
            self._ids, features=features, positions=self._positions, label=None if label is None else int(label)
        )

    def decode(self, encoding: Encoding) -> np.ndarray:
        """The image (height, width) or (height, width, channels), float32. Raises ValueError for tokens that aren't an
        image."""
        if encoding.features is None or encoding.features.shape != (len(self._ids), self.num_features):
            raise ValueError(
                f"an image has {len(self._ids)} tokens of {self.num_features} features; decode whole images"
            )
        size = self.config.size
        rows, columns = self.config.height // size, self.config.width // size
        grid = encoding.features[int(self.config.class_token) :].reshape(rows, columns, size, size, -1)
        return ((grid.swapaxes(1, 2) + 1) / 2 * self.config.maximum).reshape(self.shape)


def load_patches(form: Mapping[str, Any], path: Path) -> PatchCodec:
    """The codec of a definition that was read from `path`. Raises ValueError if it is damaged."""
    try:
        return PatchCodec(from_dict(Patches, {key: value for key, value in form.items() if key != "kind"}))
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}); copy it again or train once more") from None


def patches_of(origin: Origin, *, size: int, side: int, channels: int, num_classes: int) -> PatchCodec:
    """The codec of a folder's square images, scaled as its preprocessor_config.json says, or else from 0 .. 255 to
    -1 .. 1; warns if it says what isn't such a scaling."""
    maximum = _maximum(origin.preprocessing)
    if maximum is None:
        warnings.warn(
            f"{PREPROCESSING}: its rescale_factor, image_mean and image_std don't scale a range from 0 to -1 .. 1; "
            f"images are scaled from 0 .. 255 to -1 .. 1 instead: normalise them before, to what the model expects",
            stacklevel=5,
        )
    codec = PatchCodec(
        Patches(
            size=size,
            height=side,
            width=side,
            channels=channels,
            maximum=255.0 if maximum is None else maximum,
            num_classes=max(num_classes, 1),
            positions="order",
        )
    )
    codec.origin = origin
    return codec


def _maximum(settings: Mapping[str, Any]) -> float | None:
    """The value that becomes 1, where 0 becomes -1; None for another scaling. The defaults are ViTImageProcessor's."""
    factor = settings.get("rescale_factor", 1 / 255) if settings.get("do_rescale", True) is True else 1.0
    normalizes = settings.get("do_normalize", True) is True
    mean, spread = (settings.get(name) if normalizes else None for name in ("image_mean", "image_std"))
    mean, spread = ([0.5] if value is None and normalizes else value for value in (mean, spread))
    if not isinstance(mean, list) or not isinstance(spread, list) or not isinstance(factor, float | int):
        return None
    numbers = {*mean, *spread} if all(isinstance(n, float | int) for n in (*mean, *spread)) else set()
    if len(numbers) != 1 or not (half := numbers.pop()) > 0 or not factor > 0:
        return None
    return 2 * half / factor
