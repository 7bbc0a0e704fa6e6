"""Nearest neighbours and what follows from them: geodesic distances, summaries, hubness."""
