"""Train a small classifier with the loader alone: a training loop of your own, in one page.

python examples/supervised.py DATA    # DATA/train/CLASS/*.jpg, or a .beton of `fastselfie prepare`

Stopped and started again it goes on in the middle of the epoch.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from fastselfie import Loader, UserError

EPOCHS, STATE = 2, Path("state.pt")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def main() -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    loader = Loader(
        sys.argv[1], batch_size=32, size=64, dtype=torch.float32, mean=MEAN, std=STD, device=device
    )
    model = nn.Sequential(
        nn.Conv2d(3, 32, 5, stride=4), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(),
        nn.Linear(32 * 16, len(loader.classes)),
    )  # fmt: skip
    model.to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    if STATE.exists():
        state = torch.load(STATE, map_location=device)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        loader.load_state_dict(state["loader"])

    def save() -> None:
        parts = {"model": model, "optimizer": optimizer, "loader": loader}
        torch.save({name: part.state_dict() for name, part in parts.items()}, "state.new")
        os.replace("state.new", STATE)  # so that a kill leaves the old state or the new one

    with loader:
        for epoch in range(loader.epoch, EPOCHS):
            for images, labels in loader:
                loss = F.cross_entropy(model(images), labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                print(f"epoch {epoch}: loss {loss.item():.3f}")
                save()


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
