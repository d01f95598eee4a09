"""The candidates of recipe.py: a name, and the keys of the config that it changes."""

from __future__ import annotations

_ONE_RATE = ["reproduce.grid=[0.06]"]
_ALONE = [*_ONE_RATE, "finetune.control=false"]
_POOLED = [*_ALONE, "model.query=pooled"]
_GAP = ["pretrain.patch_gap=2"]
_COLOUR = ["pretrain.patch_grey=0.5", "pretrain.patch_contrast=0.4"]
_HALF = ["model.mask_fraction=0.5"]

CANDIDATES: dict[str, list[str]] = {
    "paper": _ONE_RATE,  # the only one with the supervised arm, which is the same for all
    "paper gap colour half": [*_ALONE, *_GAP, *_COLOUR, *_HALF],
    "pooled": _POOLED,
    "pooled gap": [*_POOLED, *_GAP],
    "pooled gap colour": [*_POOLED, *_GAP, *_COLOUR],
    "pooled gap half": [*_POOLED, *_GAP, *_HALF],
    "pooled gap colour half": [*_POOLED, *_GAP, *_COLOUR, *_HALF],
    "pooled colour half": [*_POOLED, *_COLOUR, *_HALF],
    "pooled colour threequarters": [*_POOLED, *_COLOUR, "model.mask_fraction=0.75"],
    "pooled gap colour half cosine": [
        *_POOLED,
        *_GAP,
        *_COLOUR,
        *_HALF,
        "model.logit_scale=cosine",
    ],
    "pooled gap colour threequarters": [*_POOLED, *_GAP, *_COLOUR, "model.mask_fraction=0.75"],
}
