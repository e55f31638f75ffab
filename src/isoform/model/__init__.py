"""The Transformer in all its forms. It knows shapes, never modalities.

Shape letters, used in signatures and as suffixes where the rank changes: B batch, T query length,
S key length, D model width, N query heads, K key/value heads, H head width, F feed-forward width,
V vocabulary, L layers.
"""
