"""Corruption of texts for denoising objectives: single tokens (BERT), spans (T5), mixtures of denoisers (UL2).

The amount of corruption is a function of the length alone and only its positions are random, so that rows can be
planned before any text is read.
"""

from __future__ import annotations

import numpy as np

from isoform.batch import Encoding, Example
from isoform.codecs.codec import MASK, TextCodec, mode_token, span_token
from isoform.objectives.config import Corruption, Denoiser, DenoiserMixture, Masked, SpanCorruption

SHORTEST = 3
"""The shortest text that can be corrupted: two tokens, one of which remains, and the end-of-text token."""


def special_tokens(config: object) -> list[str]:
    """The special tokens that an objective needs, in the order in which they are added to a codec."""
    match config:
        case Masked():
            return [MASK]
        case SpanCorruption(num_special=number):
            return [span_token(i) for i in range(number)]
        case DenoiserMixture(num_special=number, denoisers=denoisers):
            modes = dict.fromkeys(mode_token(denoiser.mode) for denoiser in denoisers)
            return [*(span_token(i) for i in range(number)), *modes]
        case _:
            return []


class Masking:
    """BERT's view of a text (Devlin et al. 2019, section 3.1)."""

    def __init__(self, config: Masked, codec: TextCodec) -> None:
        self.config, self.codec, self.mask = config, codec, codec.special_token(MASK)
        self.is_special = np.zeros(codec.vocab_size, bool)
        self.is_special[list(codec.special)] = True
        self.ordinary = np.flatnonzero(~self.is_special)

    def __call__(self, encoding: Encoding, rng: np.random.Generator) -> Example:
        """A text with some tokens masked, which are the targets: at least one, and never special ones."""
        check_plain(encoding)
        ids, config = encoding.ids.astype(np.int64), self.config
        chosen = np.zeros(len(ids), bool)
        units = self._units(ids)
        count = min(len(units), max(1, round(config.rate * len(units))))
        for unit in rng.permutation(len(units))[:count]:
            chosen[units[unit]] = True
        uniform = rng.random(len(ids))
        masked, random = chosen & (uniform < config.mask_rate), chosen & (config.mask_rate <= uniform)
        random &= uniform < config.mask_rate + config.random
        inputs = np.where(masked, self.mask, ids)
        inputs[random] = rng.choice(self.ordinary, int(random.sum()))
        return Example(Encoding(inputs), ids, chosen.astype(np.float32))

    def pair(self, encoding: Encoding, rng: np.random.Generator) -> Encoding:
        """The masked text and a separator, as the prefix, and the original after them."""
        masked = self(encoding, rng).inputs.ids
        return Encoding(np.concatenate([masked, [self.codec.separator], encoding.ids]), prefix=len(masked) + 1)

    def _units(self, ids: np.ndarray) -> list[np.ndarray]:
        """The units of masking: positions (1,) of single tokens, or (n,) of whole words, without special tokens."""
        positions = np.flatnonzero(~self.is_special[ids])
        if not self.config.whole_words or not len(positions):
            return list(positions[:, None])
        begins, ends = self.codec.word_edges
        continues = begins[ids[positions[1:]]] & ends[ids[positions[:-1]]] & (np.diff(positions) == 1)
        return np.split(positions, np.flatnonzero(~continues) + 1)


class Denoising:
    """Texts to pairs of a corrupted text and its corrupted spans (Raffel et al. 2020; Tay et al. 2022)."""

    def __init__(self, config: Corruption, codec: TextCodec) -> None:
        self.codec = codec
        self.spans = np.array([codec.special_token(span_token(i)) for i in range(config.num_special)])
        match config:
            case SpanCorruption(rate=rate, span=span):
                self.denoisers, self.modes = (Denoiser(mode="any", rate=rate, span=span),), None
            case DenoiserMixture(denoisers=denoisers):
                self.denoisers = denoisers
                self.modes = [codec.special_token(mode_token(denoiser.mode)) for denoiser in denoisers]
        weights = np.array([denoiser.weight for denoiser in self.denoisers])
        self.probabilities = weights / weights.sum()

    def __call__(self, encoding: Encoding, rng: np.random.Generator) -> Encoding:
        """The corrupted text and a separator, as the prefix; then each span after its special token, and end-of-text.

        As in T5's code, a text begins with an uncorrupted token and ends with a corrupted one.
        """
        check_plain(encoding)
        ids, codec = encoding.ids.astype(np.int64), self.codec
        if ids[-1] == codec.end_of_text:
            ids = ids[:-1]
        if len(ids) < 2:
            raise ValueError(f"a text of {len(ids)} tokens has no span to corrupt; give longer ones")
        number = int(rng.choice(len(self.denoisers), p=self.probabilities))
        num_corrupted, spans = self._amounts(self.denoisers[number], len(ids))
        lengths = np.stack([_parts(len(ids) - num_corrupted, spans, rng), _parts(num_corrupted, spans, rng)], 1)
        runs = np.split(ids, np.cumsum(lengths.ravel())[:-1])
        names = self.spans[:spans, None]
        source = np.concatenate([part for pair in zip(runs[::2], names, strict=True) for part in pair])
        target = np.concatenate([part for pair in zip(names, runs[1::2], strict=True) for part in pair])
        mode = [] if self.modes is None else [self.modes[number]]
        whole = np.concatenate([mode, source, [codec.separator], target, [codec.end_of_text]]).astype(np.int64)
        return Encoding(whole, prefix=len(mode) + len(source) + 1)

    def lengths(self, length: int) -> tuple[int, int]:
        """The most tokens of source and of target that a text of `length` tokens, end-of-text included, yields; 0 for
        one that is too short."""
        if length < SHORTEST:
            return 0, 0
        each = [self._amounts(denoiser, length) for denoiser in self.denoisers]
        extra = 1 if self.modes is None else 2
        return max(length - out + spans for out, spans in each) + extra, max(out + spans for out, spans in each) + 1

    def total(self, length: int) -> int:
        """The most tokens of both together; 0 for a text that is too short."""
        if length < SHORTEST:
            return 0
        most_spans = max(self._amounts(denoiser, length)[1] for denoiser in self.denoisers)
        return length + 2 * most_spans + 2 + (self.modes is not None)

    def _amounts(self, denoiser: Denoiser, length: int) -> tuple[int, int]:
        """The number of corrupted tokens of a text, and of spans."""
        corrupted = min(max(1, round(denoiser.rate * length)), length - 1)
        spans = 1 if denoiser.span is None else max(1, round(corrupted / denoiser.span))
        return corrupted, min(spans, corrupted, length - corrupted, len(self.spans))


def _parts(total: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """`count` positive integers that sum to `total`, uniformly among all such sequences."""
    cuts = np.sort(rng.choice(total - 1, count - 1, replace=False)) + 1
    return np.diff(np.concatenate([[0], cuts, [total]]))


def check_plain(encoding: Encoding) -> None:
    """Raises ValueError for what isn't a plain text."""
    if encoding.prefix or encoding.features is not None or encoding.is_target is not None:
        raise ValueError("this objective is for plain texts; this record is a pair, a conversation, or no text at all")
