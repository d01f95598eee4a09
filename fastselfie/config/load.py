"""Load a `Config` from a YAML file and `key=value` overrides.

An unknown key or a wrong type raises a `UserError` of one line that names the key, where it was
written and the nearest valid name.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from fastselfie.config import Config, leaves
from fastselfie.config.removed import drop_removed, effective_removed
from fastselfie.errors import UserError


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with two changes: 1e-4 is a number, and duplicate keys are errors."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                line = node.start_mark.line + 1
                raise yaml.YAMLError(f"duplicate key '{key}' in the section at line {line}")
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


_MAX_VALUES = 10_000  # a config has about a hundred


def parse_yaml(text: str, origin: str) -> Any:
    """Parse YAML.

    Args:
        text: One YAML document.
        origin: Where it comes from, for error messages.

    Raises:
        UserError: The text is not valid YAML, or its aliases expand to too many values.
    """
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is not None and _size(node, {}) > _MAX_VALUES:
            raise yaml.YAMLError(f"its aliases expand to more than {_MAX_VALUES:,} values")
        return None if node is None else loader.construct_document(node)
    except RecursionError as error:
        raise UserError(f"{origin}: not valid YAML: nested too deeply") from error
    except (yaml.YAMLError, ValueError) as error:  # an impossible date is a ValueError
        raise UserError(f"{origin}: not valid YAML: {' '.join(str(error).split())}") from error


def _size(node: yaml.Node, known: dict[int, int]) -> int:
    """Count the values in `node` with aliases expanded: a few lines can make billions."""
    if id(node) not in known:
        known[id(node)] = _MAX_VALUES + 1  # for a node that contains itself
        inner: list[yaml.Node] = []
        if isinstance(node, yaml.MappingNode):
            inner = [part for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            inner = node.value
        known[id(node)] = 1 + sum(_size(part, known) for part in inner)
    return known[id(node)]


def shipped_configs() -> dict[str, Path]:
    """Return the paths of the configs that come with the package, by name."""
    folder = Path(__file__).parent.parent / "configs"
    return dict(sorted((path.stem, path) for path in folder.glob("*.yaml")))


def find_config(config: str | Path) -> Path:
    """Return the path of a config.

    Args:
        config: A path, with or without .yaml, or the name of a shipped config. An existing file
            takes precedence over a shipped config.

    Raises:
        UserError: `config` is neither. The message lists the shipped configs.
    """
    shipped = shipped_configs()
    for path in (Path(config), Path(f"{config}.yaml"), shipped.get(str(config))):
        if path is not None and path.is_file():
            return path
    path = Path(config)
    if path.exists():  # a folder: reading it raises the error
        return path
    raise UserError(
        f"{path}: no such file or shipped config: pass a YAML file or one of {', '.join(shipped)}"
    )


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a config, apply `key=value` overrides and validate the result.

    Args:
        path: A YAML file or the name of a shipped config; see `find_config`.
        overrides: Strings such as "pretrain.lr=0.2".

    Raises:
        UserError: A missing file, invalid YAML, an unknown key or an invalid value.
    """
    path = find_config(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not a text file"
        raise UserError(f"{path}: cannot read the config: {reason}") from error
    values = parse_yaml(text, str(path))
    if not isinstance(values, dict):
        raise UserError(f"{path}: a config must be a mapping: see `fastselfie configs quickstart`")
    overridden = [_apply(values, override) for override in overrides]
    for key, _, reason in effective_removed(values):
        where = f"{key} (command line)" if _is_within(key, overridden) else f"{path}: {key}"
        raise UserError(
            f"{where} was removed, because {reason}: remove this key, or use an older version of "
            "fastselfie"
        )
    drop_removed(values)
    try:
        return Config.model_validate_json(json.dumps(values, default=str))
    except TypeError as error:
        raise UserError(f"{path}: a key is not a string: {error}") from error
    except ValidationError as error:
        raise UserError(_one_line(error, path, overridden)) from None


def recorded_config(text: str, path: Path) -> Config:
    """Read a config that a run recorded as JSON in `path`, possibly a run of an older version.

    Raises:
        UserError: A removed key has an effect in it.
    """
    values = json.loads(text)
    refuse_removed(values, path)
    drop_removed(values)
    return Config.model_validate_json(json.dumps(values))


def refuse_removed(values: Mapping[str, Any], path: Path) -> None:
    """Raise UserError if a removed key has an effect in what a run recorded in `path`."""
    for key, found, reason in effective_removed(values):
        raise UserError(
            f"{path}: was made with {key}={json.dumps(found)}, which was removed, because "
            f"{reason}: use the version of fastselfie that made it"
        )


_TEXTS = frozenset({"name", "data.train", "data.test"})


def _apply(values: dict[str, Any], override: str) -> str:
    """Apply one `key=value` override to the nested `values` and return its dotted key."""
    key, equals, text = override.partition("=")
    key = key.strip()
    if not equals or not key:
        raise UserError(f"'{override}': not KEY=VALUE, for example pretrain.steps=1000")
    *sections, last = key.split(".")
    for section in sections:
        if values.get(section) is None:  # absent or empty
            values[section] = {}
        values = values[section]
        if not isinstance(values, dict):
            raise UserError(f"{key} (command line): '{section}' is a value, not a section")
    # Not parsed as YAML: a path may contain ' #' or ': ', or consist of digits. A list is.
    plain = key in _TEXTS and text != "null" and (text[:1], text[-1:]) != ("[", "]")
    values[last] = text if plain else parse_yaml(text, key)
    return key


def _one_line(error: ValidationError, path: Path, overridden: Sequence[str]) -> str:
    """Return the first fault as one line; for an unknown key, with the nearest valid name."""
    faults = error.errors(include_url=False)
    # Prefer a misspelt key: it may be the cause of the other faults.
    fault = min(faults, key=lambda f: f["type"] != "extra_forbidden")
    key = ".".join(str(part) for part in fault["loc"])
    origin = "command line" if _is_within(key, overridden) else str(path)
    if fault["type"] == "extra_forbidden":
        nearest = _nearest(key)
        text = f"unknown key '{key}' ({origin}): did you mean '{nearest}'?"
    elif fault["type"] == "missing":
        text = f"{origin}: missing key '{key}'"
    elif fault["type"] == "value_error":
        section = f"{key}." if key in ("pretrain", "finetune") else ""
        text = f"{origin}: {section}{fault['msg'].removeprefix('Value error, ')}"
    else:
        why = fault["msg"][:1].lower() + fault["msg"][1:]
        text = f"{key} is {json.dumps(fault['input'])} ({origin}): {why}"
    return text if len(faults) == 1 else f"{text} (and {len(faults) - 1} more)"


def _is_within(key: str, overridden: Sequence[str]) -> bool:
    """Return whether an override set `key` or a section that it is in."""
    return any(key == other or key.startswith(other + ".") for other in overridden)


def _nearest(key: str) -> str:
    """Return the most similar valid key: first in the same section, then by the same name."""
    known = [name for name, _ in leaves(Config)]
    section, _, name = key.rpartition(".")
    siblings = [k for k in known if k.rpartition(".")[0] == section]
    near = difflib.get_close_matches(key, siblings, n=1, cutoff=0.6)
    namesakes = [k for k in known if k.rpartition(".")[2] == name]
    return (near or namesakes or difflib.get_close_matches(key, known, n=1, cutoff=0.0))[0]
