"""Predictors that ship with the package, a folder each; found by method and by the fingerprint of their model."""
