"""Model architectures, one a file: each defines `Config`, `CONFIGS` and `build`."""
