"""The candidates of recipe.py: a name, and the keys of the config that it changes."""

from __future__ import annotations

_ONE_RATE = ["reproduce.grid=[0.06]"]
_ALONE = [*_ONE_RATE, "finetune.control=false"]
_POOLED = [*_ALONE, "model.query=pooled"]
_GAP = ["pretrain.patch_gap=2"]
_COLOUR = ["pretrain.patch_grey=0.5", "pretrain.patch_contrast=0.4"]
_HALF = ["model.mask_fraction=0.5"]

_THREE_QUARTERS = ["model.mask_fraction=0.75"]
_COSINE = ["model.logit_scale=cosine"]
# The recipe of docs/results.md, and the name of its candidate.
CONTEXT = ["model.query=pooled", *_GAP, *_COLOUR, *_HALF, *_COSINE]
_CONTEXT = [*_ALONE, *CONTEXT]
CONTEXT_NAME = "pooled gap colour half cosine"
PAPER_NAME = "paper"  # the only one with the supervised arm of the default form

CANDIDATES: dict[str, list[str]] = {
    PAPER_NAME: _ONE_RATE,
    "paper gap colour half": [*_ALONE, *_GAP, *_COLOUR, *_HALF],
    "pooled": _POOLED,
    "pooled gap": [*_POOLED, *_GAP],
    "pooled gap colour": [*_POOLED, *_GAP, *_COLOUR],
    "pooled gap half": [*_POOLED, *_GAP, *_HALF],
    "pooled gap colour half": [*_POOLED, *_GAP, *_COLOUR, *_HALF],
    "pooled gap colour threequarters": [*_POOLED, *_GAP, *_COLOUR, *_THREE_QUARTERS],
    "pooled colour half": [*_POOLED, *_COLOUR, *_HALF],
    "pooled colour threequarters": [*_POOLED, *_COLOUR, *_THREE_QUARTERS],
    CONTEXT_NAME: _CONTEXT,
    "cosine lr 0.1": [*_CONTEXT, "pretrain.lr=0.1"],
    "cosine lr 0.6": [*_CONTEXT, "pretrain.lr=0.6"],
    "cosine threequarters": [*_CONTEXT, *_THREE_QUARTERS],
    "cosine strong colours": [
        *_CONTEXT,
        *(
            "pretrain.patch_grey=0.8",
            "pretrain.patch_contrast=0.6",
            "pretrain.patch_brightness=0.2",
        ),
    ],
    "cosine 4 layers": [*_CONTEXT, "model.layers=4"],
    "cosine no shift": [*_CONTEXT, "pretrain.pad_mode=none"],
    # Each with one switch of docs/method-switches.md turned.
    "cosine centred windows": [*_CONTEXT, "pretrain.patch_jitter=false"],
    "cosine growing finetuning": [*_CONTEXT, "finetune.progressive=[24]"],
    # They cost as much, in FLOPs, as 400 steps of which 200 have 24 of 32 pixels.
    "cosine shorter pretraining": [*_CONTEXT, "pretrain.steps=312"],
    "cosine shorter finetuning": [*_CONTEXT, "finetune.steps=312", "finetune.eval_every=312"],
    "cosine finer grid": [*_CONTEXT, "model.patch_size=4", "pretrain.patch_gap=0"],
    # Another network is finetuned, so its control is another one too.
    "cosine second form": [*_ONE_RATE, *CONTEXT, "finetune.form=attention_pooling"],
    "paper raw scores": [*_ALONE, "model.logit_scale=none"],
}
