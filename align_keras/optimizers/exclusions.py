import collections
import re

# Biases, normalisation parameters and the temperature are neither decayed nor
# adapted: a variable that starts at zero would hardly move if its step were
# proportional to its norm. The same holds for LoRA's factors, one of which
# starts at zero.
DEFAULT_EXCLUSIONS = (
    r"(^|/)bias$",
    r"(^|/)(gamma|beta)$",
    r"(^|/)(log_)?temperature$",
    r"(^|/)lora_(kernel|embeddings)_[ab]$",
)


def is_excluded(patterns, variable):
    """Tell whether one of the patterns matches in the variable's path."""
    return any(re.search(pattern, variable.path) for pattern in patterns)


def describe_exclusions(optimizer, variables):
    """Describe which variables the optimizer neither decays nor adapts.

    Args:
        optimizer: `keras.optimizers.Optimizer`. Need not be built.
        variables: list of `keras.Variable`. The trainable variables.

    Returns:
        A string of one or two lines, without a trailing line break.

    Example:

    ```python
    print(describe_exclusions(model.optimizer, model.trainable_variables))
    # Weight decay 1e-05 on 28 of 70 variables, not on 14 beta, 27 bias, ...
    ```
    """
    # Mixed precision wraps the optimizer.
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)
    rate = getattr(optimizer, "decay_rate", optimizer.weight_decay)
    if rate:
        exclusions = getattr(optimizer, "decay_exclusions", ())
        lines = [
            f"Weight decay {rate:g} on "
            + _describe_split(exclusions, variables)
        ]
    else:
        lines = ["There is no weight decay."]
    exclusions = getattr(optimizer, "adaptation_exclusions", None)
    if exclusions is not None:
        lines.append(
            "Layer adaptation on " + _describe_split(exclusions, variables)
        )
    return "\n".join(lines)


def _describe_split(patterns, variables):
    excluded = collections.Counter(
        variable.path.rpartition("/")[2]
        for variable in variables
        if is_excluded(patterns, variable)
    )
    count = len(variables) - excluded.total()
    text = f"{count} of {len(variables)} variables"
    if not excluded:
        return f"{text}."
    names = (f"{number} {name}" for name, number in sorted(excluded.items()))
    return f"{text}, not on {', '.join(names)}."
