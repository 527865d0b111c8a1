"""Methods that train the rounding of whole blocks, one a file; a recipe names one under `tuning`."""
