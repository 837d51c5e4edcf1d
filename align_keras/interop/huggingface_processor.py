"""Read and write tokenizers and image processors in Hugging Face's layout."""

from pathlib import Path

import numpy as np

from align_keras.interop.foreign_weights import read_json
from align_keras.interop.foreign_weights import require_values
from align_keras.io.json_files import check_form
from align_keras.io.json_files import is_count
from align_keras.io.json_files import is_number
from align_keras.io.json_files import read_object
from align_keras.io.json_files import unfit_field
from align_keras.io.json_files import write_json
from align_keras.io.word_pieces import read_vocabulary
from align_keras.preprocessing import AlignImageConverter
from align_keras.preprocessing import AlignTokenizer

# The length to which `AlignProcessor` pads texts, whatever the tokenizer says.
SEQUENCE_LENGTH = 64

_SPECIAL = {
    "unk_token": "[UNK]",
    "sep_token": "[SEP]",
    "pad_token": "[PAD]",
    "cls_token": "[CLS]",
    "mask_token": "[MASK]",
}
# The optional fields of `tokenizer_config.json`.
_SETTINGS = {
    "do_lower_case?": bool,
    "strip_accents?": lambda value: value in (None, True, False),
    "tokenize_chinese_chars?": bool,
    "split_special_tokens?": bool,
}
_BILINEAR = 2
# The defaults of `EfficientNetImageProcessor`, which files may leave out.
_DOWNLOAD = "Download it again."
_IMAGE_DEFAULTS = {
    "do_resize": True,
    "size": {"height": 346, "width": 346},
    "resample": 3,
    "do_center_crop": False,
    "crop_size": {"height": 289, "width": 289},
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "rescale_offset": False,
    "do_normalize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "include_top": True,
}


def parts(directory):
    """List the parts of a preprocessor that a directory describes."""
    names = ("vocab.txt", "tokenizer.json")
    described = {
        "tokenizer": any((Path(directory) / n).is_file() for n in names),
        "image_converter": _image_settings(directory)[1] is not None,
    }
    return [name for name, there in described.items() if there]


# === Tokenizers ===


def read_tokenizer(directory, **kwargs):
    """Read `tokenizer.json`, or `vocab.txt`, with `tokenizer_config.json`.

    Args:
        directory: string or `pathlib.Path`.
        **kwargs: Arguments of `AlignTokenizer` that replace those read.

    Returns:
        An `AlignTokenizer` with the same token ids. As there, special tokens
        such as `[MASK]` are recognised in a text, unless
        `split_special_tokens` is set.

    Raises:
        ValueError: There is no vocabulary, or the tokenizer is not like
            BERT's.
    """
    directory = Path(directory)
    settings = {"do_lower_case": True}
    path = directory / "tokenizer_config.json"
    if path.is_file():
        settings.update(read_json(path))
        check_form(
            settings, _SETTINGS, path, "config of a tokenizer", "Copy it again."
        )
    for name, token in _SPECIAL.items():
        # Older files store a token as a dict.
        given = settings.get(name, token)
        given = given.get("content") if isinstance(given, dict) else given
        require_values(
            {name: given}, {name: token}, f"`{path}`", "it is BERT's"
        )
    path = directory / "tokenizer.json"
    if path.is_file():
        vocabulary = _read_fast_tokenizer(path, settings)
    elif (directory / "vocab.txt").is_file():
        vocabulary = read_vocabulary(directory / "vocab.txt")
    else:
        raise ValueError(
            f"`{directory}` holds no vocabulary: neither tokenizer.json nor "
            "vocab.txt."
        )
    lowercase = bool(settings["do_lower_case"])
    strip_accents = settings.get("strip_accents")
    return AlignTokenizer(
        vocabulary,
        **{
            "lowercase": lowercase,
            "strip_accents": (
                lowercase if strip_accents is None else strip_accents
            ),
            "split_on_cjk": settings.get("tokenize_chinese_chars", True),
            "special_tokens_in_strings": not settings.get(
                "split_special_tokens", False
            ),
            **kwargs,
        },
    )


def _read_fast_tokenizer(path, settings):
    """Return the vocabulary of a tokenizer.json and update `settings`."""
    form = {"added_tokens?": _are_tokens}
    content = read_object(path, form, "tokenizer of BERT's kind", _DOWNLOAD)
    model, normalizer, pre_tokenizer = (
        _part(content, name, path)
        for name in ("model", "normalizer", "pre_tokenizer")
    )
    reason = "`AlignTokenizer` is BERT's"
    require_values(
        model,
        {
            "type": "WordPiece",
            "unk_token": "[UNK]",
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
        },
        f"`model` of `{path}`",
        reason,
    )
    require_values(
        normalizer,
        {"type": "BertNormalizer", "clean_text": True},
        f"`normalizer` of `{path}`",
        reason,
    )
    require_values(
        pre_tokenizer,
        {"type": "BertPreTokenizer"},
        f"`pre_tokenizer` of `{path}`",
        reason,
    )
    for theirs, ours in (
        ("lowercase", "do_lower_case"),
        ("strip_accents", "strip_accents"),
        ("handle_chinese_chars", "tokenize_chinese_chars"),
    ):
        if theirs in normalizer:
            settings[ours] = normalizer[theirs]
    ids = dict(_part(model, "vocab", path))
    for token in content.get("added_tokens") or ():
        if token["content"] not in _SPECIAL.values():
            raise ValueError(
                f"`added_tokens` in `{path}` must be among "
                f"{', '.join(_SPECIAL.values())}: `AlignTokenizer` splits "
                "words by its vocabulary alone. Received: "
                f"{token['content']!r}."
            )
        ids.setdefault(token["content"], token["id"])
    are_counts = all(map(is_count, ids.values()))
    vocabulary = sorted(ids, key=ids.get) if are_counts else []
    if [ids[token] for token in vocabulary] != list(range(len(ids))):
        raise ValueError(
            f"The token ids in `{path}` must be 0 to {len(ids) - 1}, each once."
        )
    return vocabulary


def _are_tokens(value):
    form = [{"content": str, "id": is_count}]
    return unfit_field(value or [], form) is None


def _part(content, name, path):
    part = content.get(name)
    if not isinstance(part, dict) or not part:
        raise ValueError(
            f"`{name}` in `{path}` must be a non-empty object, as in a BERT "
            f"tokenizer. Received: {part!r}."
        )
    return part


# === Image processors ===

# The fields that are used in computations here; the converter checks the rest.
_IMAGE_FORM = {
    "image_processor_type?": str,
    "rescale_factor?": is_number,
    "image_mean?": [is_number, ...],
    "image_std?": [is_number, ...],
}
_IMAGE_ABOUT = (
    "description of how images are prepared",
    _DOWNLOAD,
)


def read_image_converter(directory, **kwargs):
    """Read `preprocessor_config.json`, or `processor_config.json`.

    Args:
        directory: string or `pathlib.Path`.
        **kwargs: Arguments of `AlignImageConverter` that replace those read.
            `antialias=False` resizes as the public checkpoints were trained.

    Returns:
        An `AlignImageConverter` that gives the pixels of the
        `EfficientNetImageProcessor` there.

    Raises:
        ValueError: There is no such file, or our converter cannot do what it
            says.
    """
    path, settings = _image_settings(directory)
    if settings is None:
        raise ValueError(
            f"`{directory}` does not describe how images are prepared: "
            "there is no preprocessor_config.json."
        )
    kind = settings.get("image_processor_type", "EfficientNetImageProcessor")
    if not kind.startswith("EfficientNetImageProcessor"):
        raise ValueError(
            f"`image_processor_type` in `{path}` must be "
            f"'EfficientNetImageProcessor'. Received: {kind!r}."
        )
    settings = {**_IMAGE_DEFAULTS, **settings}
    require_values(
        settings,
        {"do_resize": True, "resample": _BILINEAR},
        f"`{path}`",
        "`AlignImageConverter` resizes, bilinearly",
    )
    size = _side_lengths(settings, "size", path)
    crop = size
    if settings["do_center_crop"]:
        crop = _side_lengths(settings, "crop_size", path)
        if any(c > s for c, s in zip(crop, size, strict=True)):
            raise ValueError(
                f"`crop_size` in `{path}` must fit into `size`, {size}. "
                f"Received: {crop}."
            )
    scale, offset = _scale_and_offset(settings)
    return AlignImageConverter(
        **{
            "image_size": crop,
            "resize_size": size,
            "antialias": settings.get("antialias", True),
            "scale": scale,
            "offset": offset,
            **kwargs,
        }
    )


def _image_settings(directory):
    """Return the path and content of the file, or `None` for the content."""
    directory = Path(directory)
    path = directory / "preprocessor_config.json"
    if path.is_file():
        return path, read_object(path, _IMAGE_FORM, *_IMAGE_ABOUT)
    # Since its version 5, transformers writes one file for both parts.
    path = directory / "processor_config.json"
    if path.is_file():
        form = {"image_processor?": _IMAGE_FORM}
        content = read_object(path, form, *_IMAGE_ABOUT)
        return path, content.get("image_processor")
    return path, None


def _side_lengths(settings, name, path):
    size = settings[name]
    if isinstance(size, int):
        return (size, size)
    if isinstance(size, dict) and {"height", "width"} <= set(size):
        return (size["height"], size["width"])
    raise ValueError(
        f"`{name}` in `{path}` must have a height and a width. "
        f"Received: {size!r}."
    )


def _scale_and_offset(settings):
    """Combine rescaling and normalisations into one scale and one offset."""
    scale, offset = 1.0, 0.0
    if settings["do_rescale"]:
        scale = settings["rescale_factor"]
        offset = -1.0 if settings["rescale_offset"] else 0.0
    std = np.asarray(settings["image_std"], "float64")
    if settings["do_normalize"]:
        mean = np.asarray(settings["image_mean"], "float64")
        scale, offset = scale / std, (offset - mean) / std
    if settings["include_top"]:
        scale, offset = scale / std, offset / std
    return _plain(scale), _plain(offset)


def _plain(numbers):
    return np.asarray(numbers, "float64").tolist()


# === Writing ===


def write_processor(preprocessor, directory):
    """Write the files of an `AlignProcessor`.

    Args:
        preprocessor: `AlignPreprocessor`. Parts that are `None` are left out.
        directory: string or `pathlib.Path`.

    Raises:
        ValueError: An `EfficientNetImageProcessor` or a BERT tokenizer cannot
            do the same.
    """
    files = {}
    if preprocessor.image_converter is not None:
        files["preprocessor_config.json"] = _image_processor(
            preprocessor.image_converter
        )
    if preprocessor.tokenizer is not None:
        tokenizer = preprocessor.tokenizer
        if not isinstance(tokenizer, AlignTokenizer) or preprocessor.packer:
            raise ValueError(
                "Hugging Face's `AlignProcessor` can hold only a BERT "
                "tokenizer, without a packer. Received: "
                f"tokenizer={tokenizer!r}, packer={preprocessor.packer!r}"
            )
        files["tokenizer.json"] = _fast_tokenizer(tokenizer)
        files["tokenizer_config.json"] = {
            "tokenizer_class": "BertTokenizer",
            "processor_class": "AlignProcessor",
            "model_max_length": preprocessor.sequence_length,
            "do_lower_case": tokenizer.lowercase,
            "strip_accents": tokenizer.strip_accents,
            "tokenize_chinese_chars": tokenizer.split_on_cjk,
            "split_special_tokens": not tokenizer.special_tokens_in_strings,
            **_SPECIAL,
        }
        text = "".join(f"{token}\n" for token in tokenizer.get_vocabulary())
        (Path(directory) / "vocab.txt").write_text(text, "utf-8")
    for name, content in files.items():
        write_json(Path(directory) / name, content)


def _image_processor(converter):
    settings = {
        "image_processor_type": "EfficientNetImageProcessor",
        "processor_class": "AlignProcessor",
        "do_resize": True,
        "size": dict(
            zip(("height", "width"), converter.resize_size, strict=True)
        ),
        "resample": _BILINEAR,
        "do_center_crop": True,
        "crop_size": dict(
            zip(("height", "width"), converter.image_size, strict=True)
        ),
        "do_rescale": True,
        "do_normalize": False,
        "include_top": False,
        # Only this package reads it; transformers always averages.
        "antialias": converter.antialias,
    }
    scale = np.broadcast_to(np.asarray(converter.scale, "float64"), 3)
    offset = np.broadcast_to(np.asarray(converter.offset, "float64"), 3)
    same = (scale == scale[0]).all() and (offset == offset[0]).all()
    if same and offset[0] in (0.0, -1.0):
        settings["rescale_factor"] = float(scale[0])
        settings["rescale_offset"] = bool(offset[0])
        return settings
    std = 1 / (255 * scale)
    return {
        **settings,
        "rescale_factor": 1 / 255,
        "rescale_offset": False,
        "do_normalize": True,
        "image_std": std.tolist(),
        "image_mean": (-offset * std).tolist(),
    }


def _fast_tokenizer(tokenizer):
    """Describe a tokenizer in the format of Hugging Face's `tokenizers`."""

    def special(token, type_id):
        return {"SpecialToken": {"id": token, "type_id": type_id}}

    def sequence(name, type_id):
        return {"Sequence": {"id": name, "type_id": type_id}}

    vocabulary = tokenizer.get_vocabulary()
    single = [special("[CLS]", 0), sequence("A", 0), special("[SEP]", 0)]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": token_id,
                "content": token,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for token_id, token in enumerate(vocabulary)
            if token in _SPECIAL.values()
        ],
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": tokenizer.split_on_cjk,
            "strip_accents": tokenizer.strip_accents,
            "lowercase": tokenizer.lowercase,
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": single,
            "pair": [*single, sequence("B", 1), special("[SEP]", 1)],
            "special_tokens": {
                token: {
                    "id": token,
                    "ids": [tokenizer.token_to_id(token)],
                    "tokens": [token],
                }
                for token in ("[CLS]", "[SEP]")
            },
        },
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {
            "type": "WordPiece",
            "unk_token": "[UNK]",
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": {token: i for i, token in enumerate(vocabulary)},
        },
    }
