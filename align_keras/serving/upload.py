"""Publish a model and its card on Hugging Face's hub."""

from pathlib import Path

from align_keras.io.file_names import glob_visible
from align_keras.io.folders import check_links
from align_keras.io.hub_handles import hub_repository
from align_keras.io.lists import check_list
from align_keras.io.optional import OptionalModule
from align_keras.io.text import read_text
from align_keras.models import AlignDualEncoder
from align_keras.models.handles import no_network
from align_keras.models.presets import check_weights
from align_keras.models.presets import find_preset
from align_keras.models.presets import foreign_weights
from align_keras.models.presets import has_weights
from align_keras.models.presets import require_class
from align_keras.serving.model_card import model_card

huggingface_hub = OptionalModule("huggingface_hub", extra="huggingface")
hub_errors = OptionalModule("huggingface_hub.errors", extra="huggingface")

CARD = "README.md"


def upload(
    directory: str | Path,
    handle: str,
    license: str | None = None,
    language: list[str] | None = None,
    private: bool = False,
) -> str:
    """Publish a preset with a model card, in one commit.

    The card explains how to use the model and, for a run, how it was trained
    and its metrics on the held-out images, with intervals. If the preset
    directory contains a `README.md`, that is published instead, and must
    itself state licence and languages.

    Args:
        directory: string or `pathlib.Path`. Working directory of a run, whose
            best model is published; or a preset directory.
        handle: string. `"hf://user/name"`. The repository is created if it
            does not exist.
        license: string. The hub's name of a licence, such as `"apache-2.0"`.
            Defaults to `None`: the card says that none was stated.
        language: list of strings. Codes of the languages of the texts.
            Defaults to `None`.
        private: bool. Whether the repository must be private. An existing
            public repository is then refused. Defaults to `False`.

    Returns:
        string. The URL of the commit.

    Raises:
        ValueError: The directory has no weights, or damaged ones, or those of
            a single tower; they are of another library, without a
            `README.md`; the handle is not one of Hugging Face; `license` or
            `language` is given although there is a `README.md`; the
            repository is public and `private` is true; or the hub refuses.
        ConnectionError: The hub does not answer.

    Example:

    ```python
    upload("run", "hf://me/birds", license="apache-2.0", language=["en"])
    ```
    """
    check_list(language, "language")
    repository = hub_repository(handle)
    preset, run = _find(Path(directory))
    card = preset / CARD
    if card.is_file():
        for name, value in (("license", license), ("language", language)):
            if value is not None:
                raise ValueError(
                    f"`{card}` is published as it is: state `{name}` in its "
                    "front matter and leave the argument out, or remove the "
                    f"file. Received: {name}={value!r}"
                )
        contents = read_text(card)
    elif foreign_weights(str(preset)) is not None:
        raise ValueError(
            f"`{preset}` holds the files of another library, for which no "
            "model card is written: add a README.md, or make a preset with "
            "`align-keras convert`."
        )
    else:
        contents = model_card(handle, preset, run, license, language)
    reason = no_network()
    if reason:
        raise ConnectionError(f"The hub cannot be reached: {reason}.")
    files = [
        path
        for path in glob_visible(preset, "**/*")
        if path.is_file() and path != card
    ]
    operations = [
        huggingface_hub.CommitOperationAdd(
            path_in_repo=path.relative_to(preset).as_posix(),
            path_or_fileobj=path,
        )
        for path in files
    ]
    operations.append(
        huggingface_hub.CommitOperationAdd(
            path_in_repo=CARD, path_or_fileobj=contents.encode()
        )
    )
    hub = huggingface_hub.HfApi(library_name="align_keras")
    try:
        hub.create_repo(repository, private=private, exist_ok=True)
        # An existing repository keeps its visibility.
        if private and not hub.model_info(repository).private:
            raise ValueError(
                f"`{repository}` already exists and is public, so everybody "
                "would see what is uploaded. Make it private in its settings, "
                "choose another name, or leave `private` out."
            )
        commit = hub.create_commit(
            repository, operations, commit_message="Upload an ALIGN model"
        )
    except hub_errors.HfHubHTTPError as error:
        raise ValueError(
            f"The hub refused `{repository}`: "
            f"{' '.join(str(error).split())[:300]} Log in with "
            "`hf auth login` as a user who may write there."
        ) from error
    return str(commit.commit_url)


def _find(directory):
    """Return the preset directory, and the directory of its run or `None`."""
    run = None
    if (directory / "recipe.json").is_file():
        run, directory = directory, directory / "model"
        if not directory.is_dir():
            raise ValueError(
                f"`{run}` holds a run that has no model yet: it has not "
                "reached its first checkpoint."
            )
    path = Path(find_preset(str(directory)))
    if not path.is_dir() or not has_weights(str(path)):
        raise ValueError(f"`{directory}` is not a directory with weights.")
    check_links(path)
    require_class(str(path), AlignDualEncoder)
    check_weights(str(path))
    return path, run
