"""A finished reproduction for tests, and the table of one."""

from __future__ import annotations

import json

from conftest import picture, tiny_config

from fastselfie.reproduce.execute import reproduce
from fastselfie.reproduce.protocol import make_protocol

ARGUMENTS = ("--labels", "50", "--seeds", "2")


def make_reproduction(root):
    """Return (config file, folder of its finished reproduction); 20 + 6 images per class."""
    for part, count in (("train", 20), ("test", 6)):
        for label, name in enumerate(("cat", "dog")):
            folder = root / "images" / part / name
            folder.mkdir(parents=True)
            for i in range(count):
                picture(1000 * label + 100 * (part == "test") + i).save(folder / f"{i}.png")
    config = tiny_config(
        data={"train": str(root / "images")},
        reproduce={"grid": [0.05, 0.1]},
        runtime={"threads": 1},
    )
    (root / "tiny.yaml").write_text(config.to_yaml(), encoding="utf-8")
    reproduce(make_protocol(config, "50", 2, 1.0), root / "one", jobs=1)
    return root / "tiny.yaml", root / "one"


def table(out):
    return json.loads((out / "table.json").read_text(encoding="utf-8"))
