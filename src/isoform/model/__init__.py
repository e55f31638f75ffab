"""The Transformer in all its forms. It knows shapes, never modalities.

Shape letters, used in signatures and as suffixes where the rank changes: B batch, T query length,
S key length, D model width, N query heads, K key/value heads (groups of heads), G heads of a group, H head width,
C chunks, W width of a chunk's keys, F feed-forward width, V vocabulary, L layers.
"""
