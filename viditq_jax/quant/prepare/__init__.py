"""Input transforms that leave the product unchanged, one a file; a rule names them under `prepare`."""
