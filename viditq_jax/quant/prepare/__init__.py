"""Input transforms that leave the product unchanged, one a file; a rule names them under `prepare`.

Each file defines

    Options       frozen dataclass of what a recipe may set; raises ValueError for impossible values
    NEEDS_STATS   whether `fit` needs the statistics of the layer's inputs
    misfit(k, options) -> str | None        why a layer of k inputs cannot have it
    fit(weight [n k], stats | None, options, *, path) -> step

and a step, a frozen pytree dataclass, has

    inputs(x [... k]) -> [... k] float32    linear in x
    weight(w [n k]) -> [n k] float32        inputs(x) @ weight(w).T == x @ w.T
    elementwise                             whether it keeps channels apart, so that their statistics follow
"""
