from library_fixtures import dual_encoder  # noqa: F401
from library_fixtures import library  # noqa: F401
from library_fixtures import model  # noqa: F401
from library_fixtures import saved_model  # noqa: F401
from library_fixtures import site  # noqa: F401
