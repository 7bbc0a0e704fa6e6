"""Flows: models with an exact likelihood and an exact inverse, made of transforms that know their log-determinant."""
