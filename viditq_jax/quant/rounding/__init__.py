"""Rounding methods, one a file: each defines `fit(weight, spec, stats) -> QTensor`."""
