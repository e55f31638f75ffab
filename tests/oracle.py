"""Attention once more, edge by edge in float64 and in plain numbers: what every fast way is held against."""

import cmath
import math

import torch
from torch import Tensor

from isoform.mask import Coordinates, Mask
from isoform.model.mixers.attention import MultiHeadAttention
from isoform.model.parts import (
    ALiBi,
    Buckets,
    LinearExtension,
    Llama3Extension,
    NTKExtension,
    Position,
    Rotary,
    Shaw,
    YaRNExtension,
)


def at(coordinates: Coordinates, row: int, slot: int) -> Coordinates:
    """One token's coordinates, as (1, 1) tensors."""
    return coordinates.map(lambda t: t[row : row + 1, slot : slot + 1])


def sees(mask: Mask, coordinates: Coordinates, row: int, query: int, key: int) -> bool:
    """The rule for one pair."""
    q, k = at(coordinates, row, query), at(coordinates, row, key)
    if int(q.document) < 0 or int(q.document) != int(k.document):
        return False
    return bool(torch.as_tensor(mask.allows(q, k)).all())


def place(coordinates: Coordinates, row: int, slot: int, *, axes: int) -> list[int]:
    """Where a token stands, one number per axis; along one axis that is its index."""
    tensor = coordinates.index if axes == 1 else coordinates.position
    return tensor[row, slot].reshape(-1).tolist()


def turned(vector: Tensor, where: list[int], scheme: Rotary) -> Tensor:
    """Rotary as multiplication by a complex number, pair by pair (Su et al. 2021, eq. 12)."""
    size = round(len(vector) * scheme.fraction)
    half, per_axis = size // 2, size // scheme.axes
    numbers = vector.tolist()
    for axis in range(scheme.axes):
        for pair in range(per_axis // 2):
            frequency, factor = slowed(scheme, pair, per_axis)
            i = axis * per_axis // 2 + pair
            z = complex(numbers[i], numbers[i + half]) * cmath.exp(1j * frequency * where[axis]) * factor
            numbers[i], numbers[i + half] = z.real, z.imag
    return torch.tensor(numbers, dtype=torch.float64)


def slowed(scheme: Rotary, pair: int, dim: int) -> tuple[float, float]:
    """Radians per place of a pair, and the factor of its length, under the extension."""
    base, extension = scheme.base, scheme.extension
    plain = base ** (-2 * pair / dim)
    match extension:
        case None:
            return plain, 1.0
        case LinearExtension(factor=s):
            return plain / s, 1.0
        case NTKExtension(factor=s):
            return (base * s ** (dim / (dim - 2))) ** (-2 * pair / dim), 1.0
        case Llama3Extension(factor=s, low_frequency_factor=low, high_frequency_factor=high, original_length=length):
            wavelength = 2 * math.pi / plain
            if wavelength < length / high:
                return plain, 1.0
            if wavelength > length / low:
                return plain / s, 1.0
            smooth = (length / wavelength - low) / (high - low)
            return (1 - smooth) * plain / s + smooth * plain, 1.0
        case YaRNExtension(factor=s, original_length=length) as e:

            def where(turns: float) -> float:
                return dim * math.log(length / (turns * 2 * math.pi)) / (2 * math.log(base))

            low, high = max(math.floor(where(e.beta_fast)), 0), min(math.ceil(where(e.beta_slow)), dim - 1)
            ramp = min(max((pair - low) / max(high - low, 0.001), 0.0), 1.0)
            given = e.attention_factor
            return plain / s * ramp + plain * (1 - ramp), 0.1 * math.log(s) + 1 if given is None else given


def bucket(distance: int, scheme: Buckets) -> int:
    """T5's bucket of a distance (key minus query), by the words of Raffel et al. 2020, section 2.1."""
    count, first = scheme.num_buckets, 0
    if scheme.bidirectional:
        count //= 2
        first, distance = (count if distance > 0 else 0), abs(distance)
    else:
        distance = max(0, -distance)
    if distance < count // 2:
        return first + distance
    ratio = math.log(distance / (count // 2)) / math.log(scheme.max_distance / (count // 2))
    return first + min(count // 2 + int(ratio * (count - count // 2)), count - 1)


def slope(head: int, num_heads: int) -> float:
    """ALiBi's slope of a head, for powers of two (Press et al. 2022, section 3)."""
    return 2 ** (-8 * (head + 1) / num_heads)


def attention(
    module: MultiHeadAttention,
    x: Tensor,
    coordinates: Coordinates,
    mask: Mask,
    scheme: Position | None,
    owner: torch.nn.Module,
) -> Tensor:
    """What an attention module makes of x (B, T, D); `owner` holds the scheme's learned tables."""
    weight = module.query_key_value.weight.double()
    num_heads, groups, h = module.num_heads, module.num_kv_heads, module.head_dim
    per_group = num_heads // groups  # each group's queries, its key and its value lie side by side
    heads = (x.double() @ weight.T).view(*x.shape[:2], groups, per_group + 2, h)
    out = torch.zeros(*x.shape[:2], num_heads, h, dtype=torch.float64)
    for row in range(x.shape[0]):
        for i in range(x.shape[1]):
            keys = [j for j in range(x.shape[1]) if sees(mask, coordinates, row, i, j)]
            for n in range(num_heads if keys else 0):
                group = n // per_group
                scores, values = [], []
                for j in keys:
                    q, k = heads[row, i, group, n % per_group], heads[row, j, group, per_group]
                    v = heads[row, j, group, per_group + 1]
                    axes = scheme.axes if isinstance(scheme, Rotary) else 1
                    here, there = place(coordinates, row, i, axes=axes), place(coordinates, row, j, axes=axes)
                    bias, distance = 0.0, there[0] - here[0]
                    if isinstance(scheme, Rotary):
                        q, k = turned(q, here, scheme), turned(k, there, scheme)
                    elif isinstance(scheme, ALiBi):
                        bias = -slope(n, num_heads) * abs(distance)
                    elif isinstance(scheme, Buckets):
                        bias = float(owner.table[bucket(distance, scheme), n])
                    elif isinstance(scheme, Shaw):
                        clipped = max(-scheme.distance, min(scheme.distance, distance)) + scheme.distance
                        k = k + owner.key_table[clipped].double()
                        v = v + owner.value_table[clipped].double() if scheme.values else v
                    scores.append(float(q @ k) / math.sqrt(h) + bias)
                    values.append(v)
                weights = torch.softmax(torch.tensor(scores, dtype=torch.float64), 0)
                out[row, i, n] = weights @ torch.stack(values)
    return out.flatten(2) @ module.output.weight.double().T
