"""Whitening: the statistics of vectors, the linear map made from them, its files, and the choice of its parameters."""
