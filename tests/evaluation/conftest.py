from dark_and_bright import folders  # noqa: F401
