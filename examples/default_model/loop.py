"""A training loop that survives being killed: state in Orbax, the log in JSONL, the schedule on the clock.

The budget is minutes of training, so the learning rate follows the share of the budget that is spent: a
machine of any speed ends at zero, and a run goes on where its last checkpoint left it. It may be steps
instead, which a machine that is stopped for a while does not lose.
"""

import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from viditq_jax.net import Net

Arrays = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Plan:
    """How one part is trained. rate: the peak learning rate. minutes: of training, compilation not
    counted. steps: the budget instead of the minutes, where given."""

    name: str
    minutes: float
    batch: int
    rate: float
    warmup: float = 0.02  # share of the budget
    decay: float = 0.01  # weight decay
    average: float = 0.995  # EMA at full length; shorter at the start
    save_every: float = 180.0  # seconds
    steps: int | None = None

    def spent(self, seconds: float, step: int) -> float:
        """The share of the budget that is used up."""
        return seconds / (60 * self.minutes) if self.steps is None else step / self.steps


# Parameters that touch pixels, tokens or latents, and tables: left to AdamW.
OUTER = (
    "shared/",
    "relative_attention_bias",
    "table",
    "conv_in/",
    "conv_out/",
    "x_embedder/",
    "final_layer/",
)


def values(net: Net) -> Arrays:
    """The arrays of a model by name."""
    return {name: variable.get_value() for name, variable in net.variables()}


def filled(net: Net, arrays: Arrays) -> Net:
    """The model with these arrays."""
    return net.map_variables(lambda name, _: arrays[name])


def rate(plan: Plan, spent: float) -> float:
    """Warm-up, then cosine decay to zero. spent: share of the budget, 0 to 1."""
    if spent < plan.warmup:
        return plan.rate * spent / plan.warmup
    share = min(1.0, (spent - plan.warmup) / (1 - plan.warmup))
    return plan.rate * 0.5 * (1 + float(np.cos(np.pi * share)))


def muon(plan: Plan) -> optax.GradientTransformation:
    """Muon for matrices and convolution kernels, AdamW for the rest; clipped gradients; no rate of its own.

    A thousand steps is all that a CPU has time for, and orthogonal updates need fewer of them.
    Source: optax.contrib.muon; the spread of an update is 0.3, so that one rate suits both parts.
    """
    dimensions = optax.contrib.MuonDimensionNumbers

    def hidden(params: Arrays) -> dict[str, Any]:
        return {name: _matrix(name, value, dimensions) for name, value in params.items()}

    return optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.contrib.muon(
            1.0, weight_decay=plan.decay, adam_b2=0.99, adam_weight_decay=0.0, consistent_rms=0.3,
            muon_weight_dimension_numbers=hidden,
        ),
    )  # fmt: skip


def _matrix(name: str, value: jax.Array, dimensions: Any) -> Any:
    if any(part in name for part in OUTER) or not hasattr(value, "ndim"):  # what optax masked has none
        return None
    if name.endswith("kernel"):
        return dimensions(reduction_axis=(0, 1, 2), output_axis=3)
    return dimensions(reduction_axis=1, output_axis=0) if value.ndim == 2 else None


def train(
    plan: Plan,
    params: Arrays,
    loss: Callable[[Arrays, Any, jax.Array], tuple[jax.Array, Arrays]],
    data: Any,
    folder: Path,
    *,
    optimizer: optax.GradientTransformation | None = None,
    watch: Callable[[Arrays, int], dict[str, float]] | None = None,
    watch_every: float = 300.0,
) -> Arrays:
    """Minimize `loss(params, data, key) -> (value, parts)` in the minutes of the plan; gives averaged params.

    data: arrays that stay on the device; the loss draws its own batch from them with the key. watch: called
    now and then with the averaged params, for held-out losses and pictures.
    """
    folder.mkdir(parents=True, exist_ok=True)
    optimizer = optimizer or muon(plan)
    state = {
        "params": jax.tree.map(jnp.copy, params),  # an update takes the place of what it is given
        "average": jax.tree.map(jnp.copy, params),
        "optimizer": optimizer.init(params),
        "step": jnp.int32(0),
        "seconds": np.float64(0),
    }
    manager = ocp.CheckpointManager(
        (folder / "checkpoints").absolute(), options=ocp.CheckpointManagerOptions(max_to_keep=2)
    )
    if manager.latest_step() is not None:
        state = manager.restore(manager.latest_step(), args=ocp.args.StandardRestore(state))

    def update(params: Arrays, average: Arrays, memory: Any, step: jax.Array, rate: jax.Array, data: Any):
        key = jax.random.fold_in(jax.random.key(1), step)
        (value, parts), slope = jax.value_and_grad(loss, has_aux=True)(params, data, key)
        change, memory = optimizer.update(slope, memory, params)
        params = jax.tree.map(lambda p, c: p + rate * c, params, change)
        keep = jnp.minimum(plan.average, (1.0 + step) / (10.0 + step))
        average = jax.tree.map(lambda a, p: keep * a + (1 - keep) * p, average, params)
        return params, average, memory, step + 1, {"loss": value, **parts}

    update = jax.jit(update, donate_argnums=(0, 1, 2))
    seconds, step = float(state["seconds"]), int(state["step"])
    spent = plan.spent(seconds, step)
    params, average, memory, i = state["params"], state["average"], state["optimizer"], state["step"]
    sums, count, compiled = {}, 0, False
    saved = watched = logged = time.monotonic()
    columns = [TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn()]
    with Progress(*columns) as bar, (folder / "log.jsonl").open("a") as log:
        task = bar.add_task(plan.name, total=1.0, completed=spent)
        while spent < 1:
            start = time.monotonic()
            params, average, memory, i, parts = update(
                params, average, memory, i, np.float32(rate(plan, spent)), data
            )
            parts = jax.device_get(parts)
            if compiled:
                seconds += time.monotonic() - start
            compiled, step, count = True, step + 1, count + 1
            spent = plan.spent(seconds, step)
            sums = {name: sums.get(name, 0.0) + float(value) for name, value in parts.items()}
            now, last = time.monotonic(), spent >= 1
            if now - logged > 10 or last:
                means = {name: round(value / count, 5) for name, value in sums.items()}
                line = {
                    "step": step,
                    "seconds": round(seconds, 1),
                    "per_second": round(count * plan.batch / (now - logged), 2),
                }
                print(json.dumps(line | {"rate": rate(plan, spent)} | means), file=log, flush=True)
                bar.update(
                    task, completed=spent, description=f"{plan.name} step {step} loss {means['loss']:.4f}"
                )
                sums, count, logged = {}, 0, now
            if now - saved > plan.save_every or last:
                state = {
                    "params": params,
                    "average": average,
                    "optimizer": memory,
                    "step": i,
                    "seconds": np.float64(seconds),
                }
                manager.save(step, args=ocp.args.StandardSave(state))
                manager.wait_until_finished()
                saved = time.monotonic()
            if watch and (now - watched > watch_every or last):
                print(
                    json.dumps({"step": step, "seconds": round(seconds, 1), "watch": watch(average, step)}),
                    file=log,
                    flush=True,
                )
                watched = logged = time.monotonic()
    manager.close()
    return average


def last_average(folder: Path) -> Arrays:
    """The averaged params of the last checkpoint that `train` left in this folder."""
    manager = ocp.CheckpointManager((folder / "checkpoints").absolute())
    state = manager.restore(manager.latest_step(), args=ocp.args.StandardRestore())
    return {name: jnp.asarray(value) for name, value in state["average"].items()}
