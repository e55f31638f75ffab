"""Attention as message passing, in plain loops over a directed graph.

Nodes are tokens of a sequence. Each has a query (what it looks for), a key (what it offers) and a value (its
message). An edge j -> i lets node i attend to node j; a mask is the set of edges.
`isoform` computes the same with matrix products; a test checks that they are equal.
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
    """The dot product of a query and a key."""
    return sum(x * y for x, y in zip(a, b, strict=True))


def message_pass(nodes: list[Node], edges: set[tuple[int, int]]) -> list[list[float]]:
    """One round: every node receives the mean of the values it attends to, weighted by softmax of the scores.

    edges: pairs (receiver, sender); a node without edges receives zeros.
    """
    messages = []
    for i, node in enumerate(nodes):
        senders = [j for j in range(len(nodes)) if (i, j) in edges]
        scores = [dot(node.query, nodes[j].key) / math.sqrt(len(node.query)) for j in senders]
        highest = max(scores, default=0.0)
        weights = [math.exp(score - highest) for score in scores]
        total = sum(weights) or 1.0
        message = [0.0] * len(node.value)
        for j, weight in zip(senders, weights, strict=True):
            for d, x in enumerate(nodes[j].value):
                message[d] += weight / total * x
        messages.append(message)
    return messages


def decoder_edges(length: int) -> set[tuple[int, int]]:
    """Every node attends to itself and to earlier nodes: causal."""
    return {(i, j) for i in range(length) for j in range(i + 1)}


def encoder_edges(length: int) -> set[tuple[int, int]]:
    """Every node attends to every node: bidirectional."""
    return {(i, j) for i in range(length) for j in range(length)}


if __name__ == "__main__":
    words = ["to", "be", "or", "not"]
    nodes = [Node([1.0, i % 2], [1.0, (i + 1) % 2], [float(i)]) for i in range(len(words))]
    for name, edges in (("encoder", encoder_edges(4)), ("decoder", decoder_edges(4))):
        for word, message in zip(words, message_pass(nodes, edges), strict=True):
            print(f"{name}: {word!r} receives {message[0]:.3f}")
