"""Rounding methods, one a file: from a weight to a QTensor. Files with a leading underscore are no methods.

Each file defines

    Options      frozen dataclass of what a recipe may set; raises ValueError for impossible values
    NEEDS_GRAM   whether `fit` needs the Gram matrix X^T X of the layer's inputs
    fit(weight [n k], spec, gram [k k] | None, options) -> QTensor

Weight and Gram matrix are those of prepared (balanced, rotated) inputs.
"""
