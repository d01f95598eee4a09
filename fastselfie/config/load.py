"""From a YAML file and `key=value` overrides to one frozen `Config`.

An unknown key or a wrong type is a `UserError` of one line that names the key, where it was
written and the nearest valid name.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from fastselfie.config import Config, leaves
from fastselfie.errors import UserError


class _Loader(yaml.SafeLoader):
    """YAML's safe loader with two traps removed: 1e-4 is a number, and a key stands once."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                line = node.start_mark.line + 1
                raise yaml.YAMLError(f"key '{key}' stands twice in the section at line {line}")
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


_MOST_VALUES = 10_000  # a config has about a hundred


def parse_yaml(text: str, origin: str) -> Any:
    """Parse YAML with the safe loader; a fault is a `UserError` that names `origin`."""
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is not None and _size(node, {}) > _MOST_VALUES:
            raise yaml.YAMLError(f"its aliases stand for more than {_MOST_VALUES:,} values")
        return None if node is None else loader.construct_document(node)
    except RecursionError as error:
        raise UserError(f"{origin}: not valid YAML: nested too deeply") from error
    except (yaml.YAMLError, ValueError) as error:  # a date that there is not is a ValueError
        raise UserError(f"{origin}: not valid YAML: {' '.join(str(error).split())}") from error


def _size(node: yaml.Node, known: dict[int, int]) -> int:
    """Values in `node` with each alias written out, which some lines can make billions."""
    if id(node) not in known:
        known[id(node)] = _MOST_VALUES + 1  # found again inside itself, it has no end
        inner: list[yaml.Node] = []
        if isinstance(node, yaml.MappingNode):
            inner = [part for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            inner = node.value
        known[id(node)] = 1 + sum(_size(part, known) for part in inner)
    return known[id(node)]


def shipped_configs() -> dict[str, Path]:
    """The configs that come with the package, by their names."""
    folder = Path(__file__).parent.parent / "configs"
    return dict(sorted((path.stem, path) for path in folder.glob("*.yaml")))


def find_config(config: str | Path) -> Path:
    """The file that `config` means: a path, else a name of a shipped config.

    A file of that name here, with or without .yaml, comes before a shipped one.

    Raises:
        UserError: neither, with the names of those that are shipped.
    """
    shipped = shipped_configs()
    for path in (Path(config), Path(f"{config}.yaml"), shipped.get(str(config))):
        if path is not None and path.is_file():
            return path
    path = Path(config)
    if path.exists():  # a folder, which reading it will say
        return path
    raise UserError(
        f"{path}: no such file, and no shipped config of that name: give a YAML file or one of "
        f"{', '.join(shipped)}"
    )


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a config, apply `key=value` overrides, validate.

    Args:
        path: a YAML file, or the name of a shipped config, see `find_config`.
        overrides: from the command line.

    Raises:
        UserError: no such file, broken YAML, an unknown key, a value of the wrong type.
    """
    path = find_config(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not a text file"
        raise UserError(f"{path}: cannot read the config: {reason}") from error
    values = parse_yaml(text, str(path))
    if not isinstance(values, dict):
        raise UserError(
            f"{path}: a config is a mapping of keys, see `fastselfie configs quickstart`"
        )
    overridden = [_apply(values, override) for override in overrides]
    try:
        return Config.model_validate_json(json.dumps(values, default=str))
    except TypeError as error:
        raise UserError(f"{path}: a key that is not text: {error}") from error
    except ValidationError as error:
        raise UserError(_one_line(error, path, overridden)) from None


_TEXTS = frozenset({"name", "data.train", "data.test"})


def _apply(values: dict[str, Any], override: str) -> str:
    """Set the dotted key of `key=value` in the nested `values`; return the key."""
    key, equals, text = override.partition("=")
    key = key.strip()
    if not equals or not key:
        raise UserError(f"'{override}' is not key=value, for example pretrain.steps=1000")
    *sections, last = key.split(".")
    for section in sections:
        if values.get(section) is None:  # absent, or written without keys
            values[section] = {}
        values = values[section]
        if not isinstance(values, dict):
            raise UserError(f"{key}: '{section}' is a value, not a section (command line)")
    # A path may hold what YAML gives a meaning to: ' #', ': ', or nothing but digits.
    values[last] = text if key in _TEXTS and text != "null" else parse_yaml(text, key)
    return key


def _one_line(error: ValidationError, path: Path, overridden: Sequence[str]) -> str:
    """The first fault as one line; `extra_forbidden` gets the nearest valid name."""
    faults = error.errors(include_url=False)
    # A misspelt key is the likeliest cause of whatever else is wrong: name it first.
    fault = min(faults, key=lambda f: f["type"] != "extra_forbidden")
    key = ".".join(str(part) for part in fault["loc"])
    from_line = any(key == o or key.startswith(o + ".") for o in overridden)
    origin = "command line" if from_line else str(path)
    if fault["type"] == "extra_forbidden":
        nearest = _nearest(key)
        text = f"unknown key '{key}' ({origin}): did you mean '{nearest}'?"
    elif fault["type"] == "missing":
        text = f"{origin}: the key '{key}' is missing"
    elif fault["type"] == "value_error":
        text = f"{origin}: {'.'.join([key, '']) if key in ('pretrain', 'finetune') else ''}"
        text += fault["msg"].removeprefix("Value error, ")
    else:
        text = f"{key} is {json.dumps(fault['input'])} ({origin}): {_lower(fault['msg'])}"
    return text if len(faults) == 1 else f"{text} (and {len(faults) - 1} more)"


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]


def _nearest(key: str) -> str:
    """The valid key most like `key`: the same section first, then the same name anywhere."""
    known = [name for name, _ in leaves(Config)]
    section, _, name = key.rpartition(".")
    siblings = [k for k in known if k.rpartition(".")[0] == section]
    near = difflib.get_close_matches(key, siblings, n=1, cutoff=0.6)
    namesakes = [k for k in known if k.rpartition(".")[2] == name]
    return (near or namesakes or difflib.get_close_matches(key, known, n=1, cutoff=0.0))[0]
