"""Chooses the columns of a parquet file that hold the images and the labels."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fastselfie.errors import UserError

# In lower case, the most likely first. They decide between several possible columns.
_IMAGE_NAMES = ("image", "img", "jpg")
_LABEL_NAMES = ("label", "labels", "fine_label", "cls")


@dataclass(frozen=True)
class Columns:
    """The columns to read.

    Attributes:
        image: Name of the image column.
        label: Name of the label column, or None.
        classes: Names of the classes; empty if the file names none.
        ignored: A line about ignored columns that may have been meant, or "".
    """

    image: str
    label: str | None
    classes: Sequence[str]
    ignored: str


def choose_columns(file: str, schema: Any) -> Columns:
    """Choose the columns by Hugging Face's metadata in the schema, then by name and type.

    Args:
        file: The parquet file, for messages.
        schema: Its pyarrow schema.

    Raises:
        UserError: There is no image column, or there are several possible columns.
    """
    features = _features(schema)
    # Columns with the same name are not read.
    types = {
        name: schema.field(name).type for name in schema.names if schema.names.count(name) == 1
    }
    images = [name for name, kind in types.items() if _holds_images(kind)]
    noted = [name for name in images if features.get(name, {}).get("_type") == "Image"]
    image = _choose(file, "images", _IMAGE_NAMES, noted, images)
    if image is None:
        found = ", ".join(f"{name} ({kind})" for name, kind in types.items())
        raise UserError(f"{file}: no column of image bytes, one image a row, among {found}")
    classes = {name: _class_names(features.get(name, {})) for name in types}
    noted = [name for name in types if classes[name]]
    called = [name for name in types if name.lower() in _LABEL_NAMES]
    whole = [name for name in called if holds_integers(types[name])]
    # A column of another type is chosen only without alternatives: its type is then the error.
    label = _choose(file, "labels", _LABEL_NAMES, noted, whole or ([] if noted else called))
    ignored = ""
    others = [name for name in images if name != image]
    if others:
        ignored = f"column {image} is read, other image columns ignored: {', '.join(others)}"
    elif label is None and len(types) > 1:
        rest = ", ".join(name for name in types if name != image)
        ignored = f"no column of labels ({', '.join(_LABEL_NAMES)}), ignored: {rest}"
    return Columns(image, label, classes[label] if label is not None else (), ignored)


def holds_integers(kind: Any) -> bool:
    """Return whether a column of this pyarrow type holds integers, also dictionary-encoded ones."""
    import pyarrow as pa

    return bool(pa.types.is_integer(_plain(kind)))


def _choose(
    file: str, what: str, names: Sequence[str], noted: Sequence[str], candidates: Sequence[str]
) -> str | None:
    """Choose a column by metadata and name, else by either, else the only one of a fitting type.

    Args:
        file: For messages.
        what: What the column holds, for messages.
        names: Known names, the most likely first.
        noted: Columns that the metadata marks.
        candidates: Columns whose type fits.

    Raises:
        UserError: Several columns are equally likely.
    """
    # Lower case comes before upper case.
    named = [column for name in names for column in sorted(candidates, reverse=True)
             if column.lower() == name]  # fmt: skip
    both = [column for column in named if column in noted]
    found = both[:1] or ([*noted, *named] if noted else named[:1] or candidates)
    if len(found) > 1:
        raise UserError(
            f"{file}: columns {', '.join(found)} may all hold the {what}: write the file with only "
            "one of them"
        )
    return found[0] if found else None


def _plain(kind: Any) -> Any:
    import pyarrow as pa

    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _holds_images(kind: Any) -> bool:
    """Return whether the type is bytes, or Hugging Face's struct of bytes and path."""
    import pyarrow as pa

    kind = _plain(kind)
    if pa.types.is_struct(kind):
        at = kind.get_field_index("bytes")
        # Null type: all rows have only a path.
        return at >= 0 and (
            _holds_images(kind.field(at).type) or pa.types.is_null(kind.field(at).type)
        )
    # Compared by name, because older versions of pyarrow have no is_binary_view.
    return not pa.types.is_nested(kind) and "binary" in str(kind)


def _features(schema: Any) -> dict[str, dict[str, Any]]:
    """Return Hugging Face's description of each column; {} without metadata."""
    metadata = (schema.metadata or {}).get(b"huggingface", b"{}")
    try:
        features = json.loads(metadata)["info"]["features"]
        return {name: each for name, each in features.items() if isinstance(each, dict)}
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}


def _class_names(feature: dict[str, Any]) -> Sequence[str]:
    """Return the class names of a ClassLabel; () for any other feature."""
    if feature.get("_type", "ClassLabel") != "ClassLabel":
        return ()
    names = feature.get("names")
    if isinstance(names, dict):  # {"0": NAME}, in any order
        numbers = [str(i) for i in range(len(names))]
        names = [names[i] for i in numbers] if set(names) == set(numbers) else None
    if isinstance(names, list):
        return [str(name) for name in names]
    count = feature.get("num_classes")
    return [str(i) for i in range(count)] if isinstance(count, int) else ()
