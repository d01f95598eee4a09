"""Keys that older versions had. Configs and runs of those load if the keys were off."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

# (section, key): the value without an effect, and why the key was removed.
_REMOVED: dict[tuple[str, str], tuple[Any, str]] = {
    ("finetune", "recalibrate"): (0, "it changed no weight"),
    ("model", "encoder_positions"): (True, "nobody measured a network without positions"),
    ("model", "end_norm"): (True, "P without a norm at its end was no better"),
    ("pretrain", "ema"): (None, "the average of the weights was no better than the last ones"),
    ("pretrain", "progressive"): ([], "it was no better than fewer steps of the same cost"),
}
# They had an effect only beside one of those.
_DEPENDENT = (("pretrain", "progressive_until"),)


def effective_removed(values: Mapping[str, Any]) -> Iterator[tuple[str, Any, str]]:
    """Yield the removed keys with an effect in `values`: the dotted key, its value, the reason."""
    for (name, key), (neutral, reason) in _REMOVED.items():
        section = values.get(name)
        found = section.get(key, neutral) if isinstance(section, Mapping) else neutral
        if found != neutral:
            yield f"{name}.{key}", found, reason


def drop_removed(values: dict[str, Any]) -> None:
    """Delete the removed keys from `values`: older versions wrote all keys of their time."""
    for name, key in (*_REMOVED, *_DEPENDENT):
        section = values.get(name)
        if isinstance(section, dict):
            section.pop(key, None)
