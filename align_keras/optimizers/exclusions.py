import collections
import re

# Biases, normalisation parameters and the temperature are neither decayed nor
# adapted: a variable that starts at zero would hardly move under a step that
# is proportional to its norm.
DEFAULT_EXCLUSIONS = (
    r"(^|/)bias$",
    r"(^|/)(gamma|beta)$",
    r"(^|/)(log_)?temperature$",
)


def is_excluded(patterns, variable):
    """Tell whether one of the regular expressions is found in the path."""
    return any(re.search(pattern, variable.path) for pattern in patterns)


def describe_exclusions(optimizer, variables):
    """Describe which variables the optimizer neither decays nor adapts.

    Args:
        optimizer: `keras.optimizers.Optimizer`. Need not be built.
        variables: list of `keras.Variable`, those that are trained.

    Returns:
        A string of one or two lines, without a line break at the end.

    Example:

    ```python
    print(describe_exclusions(model.optimizer, model.trainable_variables))
    # Weight decay 1e-05 holds for 28 of 70 variables, not for 27 bias (such
    # as text_projection/bias), 14 beta (such as ...), ...
    ```
    """
    # Mixed precision wraps the optimizer.
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)
    rate = getattr(optimizer, "decay_rate", optimizer.weight_decay)
    if rate:
        exclusions = getattr(optimizer, "decay_exclusions", ())
        lines = [
            f"Weight decay {rate:g} holds for "
            + _describe_split(exclusions, variables)
        ]
    else:
        lines = ["There is no weight decay."]
    exclusions = getattr(optimizer, "adaptation_exclusions", None)
    if exclusions is not None:
        lines.append(
            "Layer adaptation holds for "
            + _describe_split(exclusions, variables)
        )
    return "\n".join(lines)


def _describe_split(patterns, variables):
    groups = collections.defaultdict(list)
    for variable in variables:
        if is_excluded(patterns, variable):
            groups[variable.path.rpartition("/")[2]].append(variable.path)
    excluded = sum(map(len, groups.values()))
    text = f"{len(variables) - excluded} of {len(variables)} variables"
    if not groups:
        return f"{text}."
    parts = (
        f"{len(paths)} {name} (such as {paths[0]})"
        for name, paths in sorted(groups.items())
    )
    return f"{text}, not for {', '.join(parts)}."
