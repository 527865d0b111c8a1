"""Low-bit math for linear layers: arrays in, arrays out.

Each op is a folder. Its `__init__.py` holds the one public function, whose docstring is the contract;
`reference.py` is the definition in plain `jax.numpy`; every other file but `cases.py` is an implementation.
`dispatch.py` picks one.
"""
