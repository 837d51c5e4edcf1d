"""Plan a training run for a model, a recipe and devices."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import keras

from align_keras.io.memory import peak_memory
from align_keras.planning.chips import parse_topology
from align_keras.planning.compile import DoesNotFit
from align_keras.planning.compile import compile_step
from align_keras.planning.local_devices import local_capacity
from align_keras.planning.local_devices import measure_device
from align_keras.planning.lowered_step import lower_step
from align_keras.planning.program import Program
from align_keras.planning.program import transfer_seconds
from align_keras.planning.topology import hush_libtpu
from align_keras.planning.topology import topology_devices
from align_keras.training.recipes import Recipe
from align_keras.training.recipes import load_recipe


class DoesNotDivide(ValueError):
    """Cores or microbatches cannot share the batch evenly."""


def plan(
    model: str | Callable,
    recipe: str | Recipe = "align",
    topology: str | None = None,
    batch_per_core: int | None = None,
    vocabulary_size: int | None = None,
    shard_state: bool = False,
    microbatch_size: int | None = None,
    **overrides: Any,
) -> dict:
    """Predict the memory and time of a training run without the hardware.

    Compiles the step that `train` runs on the JAX backend for the devices,
    with shapes instead of weights and data. A core is what JAX calls a device:
    half a v3 chip, or a whole chip of v4 and later.

    Args:
        model: string or callable. Name or directory of a preset, or a
            function that takes the size of the vocabulary and returns an
            `AlignDualEncoder`.
        recipe: string or `Recipe`. See `align_keras.training.load_recipe`.
        topology: string. A topology such as `"v3:16x32"`, see
            `parse_topology`. Defaults to `None`: the devices of this machine.
        batch_per_core: int. Number of pairs on each core. Defaults to `None`:
            the batch of the recipe, divided among the cores.
        vocabulary_size: int. Number of tokens. Defaults to `None`: that of
            the preset.
        shard_state: bool. Whether to shard the weights and the optimizer's
            state over the cores, see `align_keras.training.train`. Defaults to
            `False`.
        microbatch_size: int. Number of pairs that a core embeds at a time, a
            divisor of its batch. Defaults to `None`: that of the recipe.
        **overrides: Fields of the recipe to replace, such as `remat`.

    Returns:
        A dict, see docs/planning.md. Bytes and FLOPs are ints, times are in
        seconds.

    Raises:
        DoesNotFit: The step needs more memory than a core has.
        ImportError: libtpu is needed but not installed.
        ValueError: The topology is unknown, the cores cannot share the batch
            evenly, or the Keras backend is not JAX.

    Example:

    ```python
    found = plan("align_b1_bert_mini", topology="v5e:2x2", batch_per_core=64)
    found["memory"]["total"], found["seconds"]["step"]
    ```
    """
    if keras.config.backend() != "jax":
        raise ValueError(
            "Plans are compiled on the JAX backend of Keras. Set the "
            "environment variable KERAS_BACKEND to `jax` before Python "
            f"starts. Received: backend={keras.config.backend()!r}"
        )
    if vocabulary_size is not None and vocabulary_size < 1:
        raise ValueError(
            "`vocabulary_size` must be at least 1. Received: "
            f"vocabulary_size={vocabulary_size}"
        )
    settings = load_recipe(recipe, **overrides).in_steps()
    pairs = (settings.steps or 0) * settings.batch_size
    if topology is None:
        hush_libtpu()
        devices = jax.devices()
    else:
        devices = topology_devices(topology)
    settings = _with_batch(
        settings, batch_per_core, microbatch_size, len(devices)
    )
    step = lower_step(model, settings, devices, vocabulary_size, shard_state)
    compiled = compile_step(step.lowered)
    machine = _Machine.of(topology, devices, settings)
    memory = _memory(step, compiled)
    memory["capacity"] = machine.capacity
    # For a TPU, the compiler has already refused a step that does not fit.
    if topology is None and memory["total"] > machine.capacity:
        raise DoesNotFit.by(memory["total"], machine.capacity)
    # Without the text of the program, its collectives are unknown.
    collectives, cycles = None, (0, 0)
    if compiled.text is not None:
        program = Program(compiled.text)
        collectives, cycles = program.collectives(), program.cycles()
    flops, traffic, expected = _with_loops(step, compiled, cycles, devices)
    seconds = machine.seconds(
        flops, traffic, collectives, expected, cycles[0], len(devices)
    )
    return {
        "preset": model if isinstance(model, str) else "custom",
        "topology": topology or f"{len(devices)} x {devices[0].device_kind}",
        "cores": len(devices),
        "batch_per_core": settings.batch_size // len(devices),
        "batch_size": settings.batch_size,
        "recipe": dataclasses.asdict(settings),
        "vocabulary_size": step.vocabulary_size,
        "shard_state": shard_state,
        "parameters": step.parameters,
        "memory": memory,
        "flops": {
            "model": step.model_flops,
            "compiled": int(flops * len(devices)),
        },
        "bytes": int(traffic * len(devices)),
        "collectives": collectives,
        "seconds": seconds,
        "schedule": _schedule(
            pairs, settings.batch_size, seconds["step"], len(devices)
        ),
        "planning": {
            "compile_seconds": compiled.compile_seconds,
            "host_peak_bytes": peak_memory(),
            "jax": jax.__version__,
        },
    }


def add_price(plan: dict, price_per_core_hour: float) -> None:
    """Add the price of the whole run to a plan.

    Args:
        plan: dict. The result of `plan`, which is changed.
        price_per_core_hour: float. The price that you pay, in any currency.
    """
    check_price(price_per_core_hour)
    schedule = plan["schedule"]
    schedule["price"] = schedule["core_hours"] * price_per_core_hour


def check_price(price_per_core_hour: float | None) -> None:
    """Refuse a negative price, before a long compilation."""
    if price_per_core_hour is not None and not price_per_core_hour >= 0:
        raise ValueError(
            "`price_per_core_hour` must be at least 0. Received: "
            f"price_per_core_hour={price_per_core_hour}"
        )


def _schedule(pairs, batch_size, step_seconds, cores):
    """Calculate the length of a run over `pairs` pairs."""
    steps = -(-pairs // batch_size)
    hours = steps * step_seconds / 3600
    return {
        "pairs": pairs,
        "steps": steps,
        "days": hours / 24,
        "core_hours": hours * cores,
    }


def _with_batch(recipe, batch_per_core, microbatch_size, cores):
    for name, value in (
        ("batch_per_core", batch_per_core),
        ("microbatch_size", microbatch_size),
    ):
        if value is not None and value < 1:
            raise ValueError(
                f"`{name}` must be at least 1. Received: {name}={value}"
            )
    if microbatch_size is None:
        microbatch_size = recipe.microbatch_size
    if batch_per_core is None:
        if recipe.batch_size % cores:
            raise DoesNotDivide(
                f"{cores} cores cannot share a batch of {recipe.batch_size} "
                "evenly. Give the batch of one core with `--batch-per-core`."
            )
        batch_per_core = recipe.batch_size // cores
    if batch_per_core % (microbatch_size or batch_per_core):
        raise DoesNotDivide(
            "`microbatch_size` must divide the batch of a core. Received: "
            f"batch_per_core={batch_per_core}, "
            f"microbatch_size={microbatch_size}"
        )
    return dataclasses.replace(
        recipe,
        batch_size=batch_per_core * cores,
        microbatch_size=microbatch_size,
    )


@dataclasses.dataclass(frozen=True)
class _Machine:
    """The peak rates and the memory of one core."""

    peak_flops: float
    bandwidth: float
    interconnect: float | None
    clock: float | None
    capacity: int

    @classmethod
    def of(cls, topology, devices, recipe):
        if topology is None:
            policy = keras.dtype_policies.get(recipe.precision)
            peaks = measure_device(policy.compute_dtype)
            return cls(*peaks, None, None, local_capacity(devices[0]))
        chip, _ = parse_topology(topology)
        rates = chip.peak_flops, chip.bandwidth, chip.interconnect
        capacity = int(chip.capacity * 2**30)
        rates = (rate / chip.devices for rate in rates)
        return cls(*rates, chip.clock, capacity)

    def seconds(self, flops, traffic, collectives, expected, cycles, devices):
        """Estimate the time of a step in all ways that are possible."""
        seconds = {
            "compute": flops / self.peak_flops,
            "memory": traffic / self.bandwidth,
        }
        if self.interconnect is not None and collectives is not None:
            seconds["interconnect"] = transfer_seconds(
                collectives, devices, self.interconnect
            )
        seconds["roofline"] = max(seconds.values())
        # For local devices, the compiler gives no estimates.
        if self.clock is not None:
            if expected is not None:
                seconds["compiler"] = expected
            if cycles:
                seconds["cycles"] = cycles / self.clock
        seconds["step"] = max(seconds.values())
        return seconds


def _memory(step, compiled):
    """Split the memory of a core by use."""
    found = compiled.memory
    known = sum(step.bytes.values())
    arguments = found.argument_size_in_bytes
    memory = {
        **step.bytes,
        # TPUs store arrays in tiles, which small arrays do not fill.
        "padding": max(0, arguments - known),
        "activations": found.temp_size_in_bytes,
        "results": found.output_size_in_bytes - found.alias_size_in_bytes,
        "code": found.generated_code_size_in_bytes,
    }
    memory["total"] = sum(memory.values())
    return memory


def _with_loops(step, compiled, cycles, devices):
    """Count all iterations of loops, which the compiler counts only once.

    Returns:
        A tuple of floats for one core: operations, bytes of memory traffic,
        and the compiler's estimate of seconds or `None`. The last two are
        scaled by the loops' share of the cycles, or of the matrix products if
        there are no cycles.
    """
    whole, once = cycles
    repeats = whole / once if once else step.repeats
    seconds = compiled.seconds
    return (
        compiled.flops + step.repeated_flops / len(devices),
        compiled.bytes * repeats,
        seconds and seconds * repeats,
    )
