"""Weights of a PyTorch reference, put into a Net whose modules are named as in the reference.

The reference models of parity tests are tiny, and every one of their weights is random and non-zero: as they
are initialized, gates and biases are zero, and faults in what they multiply pass.
"""

from collections.abc import Mapping

import jax.numpy as jnp
import torch

from viditq_jax.net import Net, Weight


def randomize(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Give every parameter a random value: norm scales about 1, vectors 0.1, matrices 1/sqrt(fan-in)."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            values = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim > 1:
                parameter.copy_(values / parameter[0].numel() ** 0.5)
            else:
                parameter.copy_(0.1 * values + (1.0 if "norm" in name and name.endswith("weight") else 0.0))
    return module.eval()


def load_state_dict(net: Net, state_dict: Mapping[str, torch.Tensor]) -> Net:
    """The net, which may be abstract, with the values of `state_dict`: "a.0.weight" becomes "a/0/weight".

    A convolution [o, i, h, w] becomes "a/0/kernel" [h, w, i, o]; it is flattened where the net is linear.
    Raises KeyError with all names that only one side has, ValueError for a shape that does not fit.
    """
    values = {}
    slots = {name: variable for name, variable in net.variables()}
    for key, tensor in state_dict.items():
        name, value = key.replace(".", "/"), tensor.detach().float().numpy()
        if value.ndim == 4 and isinstance(slots.get(name), Weight):
            value = value.reshape(len(value), -1)
        elif value.ndim == 4:
            name, value = name.removesuffix("weight") + "kernel", value.transpose(2, 3, 1, 0)
        values[name] = value
    if values.keys() != slots.keys():
        raise KeyError(
            f"without a value: {slots.keys() - values.keys()}; unused: {values.keys() - slots.keys()}."
        )
    wrong = [name for name in slots if values[name].shape != slots[name].get_value().shape]
    if wrong:
        raise ValueError(f"shapes differ: {wrong}.")
    return net.map_variables(lambda name, variable: jnp.asarray(values[name], variable.get_value().dtype))
