"""Time of a training step, compared with transformers' AlignModel.

    python benchmarks/training_step.py --case b0 --batch 32

A step is a forward pass, a backward pass and LAMB. The first table times fresh
processes from their start to the end of their first steps, in turns. PyTorch
has no LAMB; the one here works on lists of tensors at once, like the fastest
variants of PyTorch's own optimizers.
"""

import os

import networks
import tables
import turns


def ours(backend, case, batch_size, image_size):
    """Prepare a step of `fit`."""
    os.environ["KERAS_BACKEND"] = backend

    from align_keras import Lamb

    model = networks.keras_model(case)
    model.compile(Lamb(1e-3, weight_decay=1e-5))
    batch = networks.batch_of(batch_size, image_size)
    data = networks.over_and_over(batch)

    def run():
        model.fit(data, steps_per_epoch=STEPS, verbose=0)

    return run


# Steps of a turn: several, because `fit` has a cost at its start and end.
STEPS = 2


def theirs(form, case, batch_size, image_size):
    """Prepare a step in PyTorch."""
    import torch

    model = networks.torch_model(case, image_size).train()
    batch = networks.torch_batch(batch_size, image_size)
    networks.set_layout(model, batch, "channels last" in form)
    call = torch.compile(model) if "compiled" in form else model
    lamb = Lamb(model.named_parameters())

    def run():
        for _ in range(STEPS):
            call(**batch, return_loss=True).loss.backward()
            lamb.step()

    return run


class Lamb:
    """LAMB in PyTorch, the published algorithm on lists of tensors."""

    def __init__(self, parameters, rate=1e-3, decay=1e-5):
        import torch

        adapted, plain = [], []
        for _, parameter in parameters:
            (adapted if parameter.ndim > 1 else plain).append(parameter)
        self.groups = [
            (
                group,
                [torch.zeros_like(p) for p in group],
                [torch.zeros_like(p) for p in group],
                is_adapted,
            )
            for group, is_adapted in ((adapted, True), (plain, False))
        ]
        self.rate, self.decay, self.steps = rate, decay, 0

    def step(self):
        import torch

        self.steps += 1
        with torch.no_grad():
            for group in self.groups:
                self._update(torch, *group)

    def _update(self, torch, parameters, momentums, velocities, adapted):
        # BERT's pooler has no gradient, because ALIGN does not use it.
        used = [i for i, p in enumerate(parameters) if p.grad is not None]
        parameters, momentums, velocities = (
            [values[i] for i in used]
            for values in (parameters, momentums, velocities)
        )
        gradients = [p.grad for p in parameters]
        torch._foreach_lerp_(momentums, gradients, 0.1)
        torch._foreach_mul_(velocities, 0.999)
        torch._foreach_addcmul_(velocities, gradients, gradients, 0.001)
        roots = torch._foreach_div(velocities, 1 - 0.999**self.steps)
        torch._foreach_sqrt_(roots)
        torch._foreach_add_(roots, 1e-6)
        updates = torch._foreach_div(momentums, 1 - 0.9**self.steps)
        torch._foreach_div_(updates, roots)
        if adapted:
            torch._foreach_add_(updates, parameters, alpha=self.decay)
            ratios = [
                torch.where((w > 0) & (u > 0), w / u, 1.0)
                for w, u in zip(
                    torch._foreach_norm(parameters),
                    torch._foreach_norm(updates),
                    strict=True,
                )
            ]
            torch._foreach_mul_(updates, ratios)
        torch._foreach_add_(parameters, updates, alpha=-self.rate)
        for parameter in parameters:
            parameter.grad = None


FORMS = ("eager", "eager, channels last", "compiled, channels last")


def sides(args):
    work = {
        "case": args.case,
        "batch_size": args.batch,
        "image_size": args.image_size,
    }
    for backend in args.backends:
        yield turns.Side(
            f"align_keras, {backend}",
            "training_step:ours",
            {"backend": backend, **work},
        )
    for form in args.forms:
        yield turns.Side(
            f"transformers, {form}",
            "training_step:theirs",
            {"form": form, **work},
        )


def measure_starts(args):
    """Start every side `--starts` times, in turns, each in a fresh process.

    Returns:
        Pair: what `turns.in_turns` returns, for the time from the start of a
        process to the end of its first steps; and the sides of the last turn,
        which are still running.
    """
    seconds, processor = {}, {}
    for start in range(args.starts):
        last = []
        for side in sides(args):
            side.take_turn()
            seconds.setdefault(side.name, []).append(
                side.seconds_to_prepare + side.seconds[0]
            )
            processor.setdefault(side.name, []).append(
                side.processor_to_prepare + side.processor[0]
            )
            if start + 1 < args.starts:
                side.close()
            else:
                last.append(side)
    return (seconds, processor), last


def main():
    parser = tables.parser(__doc__)
    parser.add_argument("--case", choices=networks.CASES, default="b0")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--image-size", type=int, default=289)
    parser.add_argument("--forms", nargs="*", default=FORMS, choices=FORMS)
    parser.add_argument("--backends", nargs="*", default=["tensorflow", "jax"])
    parser.add_argument("--starts", type=int, default=3)
    args = parser.parse_args()
    first, all_sides = measure_starts(args)
    ours = [name for name in first[0] if name.startswith("align_keras")]
    tables.publish(
        args,
        f"From the start of the process to the end of {STEPS} steps:",
        tables.HEAD + tables.rows(first, ours, 1, "s"),
        f"{args.case}-first-step",
    )
    times = turns.in_turns(all_sides, args.rounds, warm_up=0)
    tables.publish(
        args,
        f"{STEPS} training steps of {args.batch} pairs at {args.image_size}:",
        tables.HEAD + tables.rows(times, ours, 1, "s"),
        f"{args.case}-training-step",
    )


if __name__ == "__main__":
    main()
