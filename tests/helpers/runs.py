"""Folders of runs that look finished, for tests of reports, without training."""

from __future__ import annotations

import io
import json
import math
import time
from pathlib import Path
from typing import Any

from conftest import textured, tiny_config

from fastselfie.config import Config

ENVIRONMENT = {"fastselfie": "0.1.0", "device": "cpu", "torch": "2.13.0"}


def make_run(
    folder: Path, steps: int = 400, done: bool = True, every: int = 20, **sections: Any
) -> Config:
    """Write a finished run, or one that is in the middle of its pretraining now."""
    training = {"steps": steps, "log_every": every, "eval_every": 5 * every}
    sections["pretrain"] = {**training, **sections.get("pretrain", {})}
    config = tiny_config(finetune=training, **sections)
    write(folder / "config.yaml", config.to_yaml())
    write(folder / "environment.json", json.dumps(ENVIRONMENT))
    at = time.time()
    reached = (steps, at - 3600) if done else (steps // 2, at)
    log(folder / "pretrain", steps, every, *reached, pretraining)
    pictures(folder / "pretrain" / "pictures", [steps * i // 10 for i in range(6)])
    write(folder / "pretrain" / f"step-{steps // 2:07d}.pt", "")
    if done:
        for name in ("finetuned", "supervised"):
            log(folder / name, steps, every, steps, at, finetuning)
        write(folder / "labels.txt", "# 10 of 20 images, 10 classes, seed 0\n")
        write(folder / "summary.json", json.dumps({"seconds": 5_000.0}))
    return config


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def log(folder: Path, steps: int, every: int, done: int, end: float, kind: Any) -> None:
    """Write a line every `every` steps up to `done`, one second apart; each fifth evaluates."""
    lines = []
    for step in range(0, done + 1, every):
        trained, measured = kind(step / steps)
        moment = {"step": step, "time": end - (done - step) / every}
        lines += [{**moment, **trained}] if step else []
        lines += [{**moment, **measured}] if step % (5 * every) == 0 or step == steps else []
    write(folder / "log.jsonl", "".join(json.dumps(line) + "\n" for line in lines))


def pretraining(far: float) -> tuple[dict[str, float], dict[str, float]]:
    """Return what training and an evaluation log at the share `far` of the steps."""
    noise = 0.03 * math.sin(1e6 * far)
    accuracy = 0.25 + 0.6 * far**0.3
    return (
        {"loss": 1.4 - far + noise, "accuracy": accuracy + noise,
         "images_per_s": 480.0 + 99 * noise, "waiting": 0.01 + noise / 9, "grad_norm": 0.8 - noise},
        {"heldout_loss": 1.4 - far, "pretext_accuracy": accuracy,
         "pretext_accuracy_other_context": 0.7 * accuracy,
         "pretext_accuracy_no_context": 0.75 * accuracy, "knn": 0.4 + far / 5,
         "linear_probe": 0.45 + far / 5, **({} if far else {"knn_pixels": 0.5})},
    )  # fmt: skip


def finetuning(far: float) -> tuple[dict[str, float], dict[str, float]]:
    return {"loss": 2.3 - 2 * far}, {"heldout_loss": 2.3 - far, "top1": 0.1 + 0.7 * far**0.5}


def pictures(folder: Path, steps: list[int]) -> None:
    """Write pictures with grain, as large as those of photographs."""
    folder.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    textured(0, 104, 6 * 110 - 6).save(buffer, "PNG")
    for name in (*(f"{step:07d}" for step in steps), "original"):
        (folder / f"{name}.png").write_bytes(buffer.getvalue())
