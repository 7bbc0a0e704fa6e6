"""Optimal transport between sequences of token vectors: distances, bounds, explanations and an exact index."""
