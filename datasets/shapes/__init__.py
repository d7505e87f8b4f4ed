"""Parametric shapes with part labels: the source of the built-in data."""
