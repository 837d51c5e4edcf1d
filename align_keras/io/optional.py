"""Import optional packages when they are first used."""

import importlib
from types import ModuleType
from typing import Any


class OptionalModule:
    """A module of an optional package that is imported when first used.

    Modules can declare it at the top, and can still be imported if the package
    is not installed.

    Args:
        name: string. The module, such as `"pyarrow.parquet"`.
        extra: string. The extra of this package that installs it.

    Raises:
        ImportError: An attribute is accessed and the package is not
            installed. The message names the extra.

    Example:

    ```python
    parquet = OptionalModule("pyarrow.parquet", extra="parquet")

    def read(path):
        return parquet.read_table(path)
    ```
    """

    def __init__(self, name: str, extra: str):
        self._name, self._extra = name, extra

    def __getattr__(self, attribute: str) -> Any:
        # `copy`, `pickle` and `inspect` look up special names.
        if attribute.startswith("__"):
            raise AttributeError(attribute)
        return getattr(require(self._name, self._extra), attribute)

    def __repr__(self):
        return f"OptionalModule({self._name!r}, extra={self._extra!r})"


def require(name: str, extra: str) -> ModuleType:
    """Import a module of an optional package.

    Args:
        name: string. The module.
        extra: string. The extra of this package that installs it.

    Returns:
        The module.

    Raises:
        ImportError: It is not installed. The message names the extra.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        raise ImportError(
            f"This needs the package `{package}`: pip install "
            f'"align-keras[{extra}]" ({error}).'
        ) from error
