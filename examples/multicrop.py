"""Several crops of each image for one read of it, as DINO and SwAV take them.

python examples/multicrop.py DIR
"""

from __future__ import annotations

import sys

from fastselfie import Loader, View


def main() -> None:
    views = [View(96, area=(0.4, 1.0), count=2), View(48, area=(0.05, 0.4), count=6)]
    with Loader(sys.argv[1], batch_size=8, views=views) as loader:
        for images, labels in loader:
            sizes = [tuple(view.shape) for view in images]
            print(f"{len(labels)} images in {len(images)} views: {sizes}")
            break


if __name__ == "__main__":
    main()
