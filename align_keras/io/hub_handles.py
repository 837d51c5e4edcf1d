"""Handles of repositories on Hugging Face's hub."""

HUGGING_FACE = "hf://"


def hub_repository(handle: str) -> str:
    """Return the repository to publish to.

    Args:
        handle: string, such as `"hf://user/name"`.

    Returns:
        A string, such as `"user/name"`.

    Raises:
        ValueError: The handle is not one of Hugging Face.
    """
    repository = handle.removeprefix(HUGGING_FACE)
    if repository == handle or repository.count("/") != 1:
        raise ValueError(
            "A model is published as `hf://user/name`; for Kaggle, see "
            f"`keras_hub.upload_preset`. Received: {handle!r}"
        )
    return repository
