"""Which columns of a parquet file hold the images and the labels."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastselfie.errors import UserError

# In lower case, the likeliest first. Names decide where several columns could be meant.
_IMAGE_NAMES = ("image", "img", "jpg")
_LABEL_NAMES = ("label", "labels", "fine_label", "cls")


@dataclass(frozen=True)
class Columns:
    """Names of the columns that are read; label is None where there is none.

    classes: names of the classes, () where the file names none
    left_out: a line about columns that might have been meant too, or ""
    """

    image: str
    label: str | None
    classes: Sequence[str]
    left_out: str


def choose_columns(file: Path, schema: Any) -> Columns:
    """Choose from the note that Hugging Face's datasets leave in the schema, then by name and type.

    Raises:
        UserError: no column of images, or several columns of images or labels without a known name.
    """
    features = _features(schema)
    # A name that two columns share reads neither.
    types = {
        name: schema.field(name).type for name in schema.names if schema.names.count(name) == 1
    }
    images = [name for name, kind in types.items() if _holds_images(kind)]
    noted = [name for name in images if _is_noted(features.get(name), "Image")]
    image = _choose(file, "images", _IMAGE_NAMES, noted, images)
    if image is None:
        found = ", ".join(f"{name} ({kind})" for name, kind in types.items())
        raise UserError(f"{file}: no column of image bytes, one image a row, among {found}")
    classes = {name: _class_names(features.get(name)) for name in types}
    noted = [name for name in types if classes[name]]
    called = [name for name in types if name.lower() in _LABEL_NAMES]
    whole = [name for name in called if holds_integers(types[name])]
    # Where only a column of another type is called a label, that is told of it.
    label = _choose(file, "labels", _LABEL_NAMES, noted, whole or ([] if noted else called))
    left_out = ""
    others = [name for name in images if name != image]
    if others:
        left_out = f"column {image} is read, other images left out: {', '.join(others)}"
    elif label is None and len(types) > 1:
        rest = ", ".join(name for name in types if name != image)
        left_out = f"no column of labels ({', '.join(_LABEL_NAMES)}): left out are {rest}"
    return Columns(image, label, classes[label] if label is not None else (), left_out)


def holds_integers(kind: Any) -> bool:
    """Whether a column of this type holds integers, also as a dictionary."""
    import pyarrow as pa

    return bool(pa.types.is_integer(_plain(kind)))


def _choose(
    file: Path, what: str, names: Sequence[str], noted: Sequence[str], able: Sequence[str]
) -> str | None:
    """Choose the column that both the note and its name, or one of them, call what is looked for.

    Args:
        file: for messages.
        what: is looked for, for messages.
        names: known ones, the likeliest first.
        noted: columns that Hugging Face's note calls so.
        able: columns whose type allows it.

    Raises:
        UserError: several columns have the same right.
    """
    # Of two names that differ in capitals the one without comes first.
    named = [column for name in names for column in sorted(able, reverse=True)
             if column.lower() == name]  # fmt: skip
    both = [column for column in named if column in noted]
    found = both[:1] or ([*noted, *named] if noted else named[:1] or able)
    if len(found) > 1:
        raise UserError(
            f"{file}: columns {', '.join(found)} may all hold the {what}: write the file with "
            "one of them"
        )
    return found[0] if found else None


def _plain(kind: Any) -> Any:
    import pyarrow as pa

    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _holds_images(kind: Any) -> bool:
    """Whether the type is of bytes, or of Hugging Face's {bytes, path}."""
    import pyarrow as pa

    kind = _plain(kind)
    if pa.types.is_struct(kind):
        at = kind.get_field_index("bytes")
        # Of the type null: no row has any bytes, only a path.
        return at >= 0 and (
            _holds_images(kind.field(at).type) or pa.types.is_null(kind.field(at).type)
        )
    # By its name: older versions of pyarrow lack a test for binary_view.
    return not pa.types.is_nested(kind) and "binary" in str(kind)


def _features(schema: Any) -> dict[str, Any]:
    """What each column is, by Hugging Face's note; {} without one."""
    note = (schema.metadata or {}).get(b"huggingface", b"{}")
    try:
        features = json.loads(note)["info"]["features"]
    except (ValueError, KeyError, TypeError):
        return {}
    return features if isinstance(features, dict) else {}


def _is_noted(feature: Any, kind: str) -> bool:
    return isinstance(feature, dict) and feature.get("_type") == kind


def _class_names(feature: Any) -> Sequence[str]:
    """Names of a ClassLabel; () for any other feature."""
    if not isinstance(feature, dict) or feature.get("_type", "ClassLabel") != "ClassLabel":
        return ()
    names = feature.get("names")
    if isinstance(names, dict):  # {"0": NAME}, in any order
        numbers = [str(i) for i in range(len(names))]
        names = [names[i] for i in numbers] if set(names) == set(numbers) else None
    if isinstance(names, list):
        return [str(name) for name in names]
    count = feature.get("num_classes")
    return [str(i) for i in range(count)] if isinstance(count, int) else ()
