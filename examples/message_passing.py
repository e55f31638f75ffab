"""Attention as message passing, in plain loops over a directed graph.

Nodes are tokens of a sequence. Each emits a query (what it looks for), a key (what it has) and a value (what
it says). An edge j -> i lets node i listen to node j; which edges exist is the only thing a mask decides.
`isoform` computes the same with matrix products; a test holds the two equal.
"""

import math
from dataclasses import dataclass


@dataclass
class Node:
    """One token: three vectors, as lists of floats."""

    query: list[float]
    key: list[float]
    value: list[float]


def dot(a: list[float], b: list[float]) -> float:
    """How well what one node looks for fits what the other has."""
    return sum(x * y for x, y in zip(a, b, strict=True))


def message_pass(nodes: list[Node], edges: set[tuple[int, int]]) -> list[list[float]]:
    """One round: every node takes the average of the values it may listen to, weighted by the fit.

    edges holds (listener, speaker); a node without edges hears nothing and gets zeros.
    """
    heard = []
    for i, node in enumerate(nodes):
        speakers = [j for j in range(len(nodes)) if (i, j) in edges]
        scores = [dot(node.query, nodes[j].key) / math.sqrt(len(node.query)) for j in speakers]
        highest = max(scores, default=0.0)
        weights = [math.exp(score - highest) for score in scores]
        total = sum(weights) or 1.0
        message = [0.0] * len(node.value)
        for j, weight in zip(speakers, weights, strict=True):
            for d, x in enumerate(nodes[j].value):
                message[d] += weight / total * x
        heard.append(message)
    return heard


def decoder_edges(length: int) -> set[tuple[int, int]]:
    """Everyone listens to themselves and to those before them."""
    return {(i, j) for i in range(length) for j in range(i + 1)}


def encoder_edges(length: int) -> set[tuple[int, int]]:
    """Everyone listens to everyone: the decoder without its causal rule."""
    return {(i, j) for i in range(length) for j in range(length)}


if __name__ == "__main__":
    words = ["to", "be", "or", "not"]
    nodes = [Node([1.0, i % 2], [1.0, (i + 1) % 2], [float(i)]) for i in range(len(words))]
    for name, edges in (("encoder", encoder_edges(4)), ("decoder", decoder_edges(4))):
        for word, heard in zip(words, message_pass(nodes, edges), strict=True):
            print(f"{name}: {word!r} hears {heard[0]:.3f}")
