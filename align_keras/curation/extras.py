"""Optional packages, and what to install where one is missing."""

import importlib


def require(name, extra):
    """Import an optional module.

    Args:
        name: string. The module.
        extra: string. The extra of this package that installs it.

    Returns:
        The module.

    Raises:
        ImportError: It is not installed; the message names the extra.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        raise ImportError(
            f"Curation needs `{package}`: pip install "
            f'"align-keras[{extra}]" ({error}).'
        ) from error
