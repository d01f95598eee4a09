"""The training loop, once for both stages: data, step, log, evaluation, checkpoint, resume."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fastselfie.checkpoint import load_checkpoint, load_weights, save_checkpoint
from fastselfie.config import Config, StageConfig, differing_keys
from fastselfie.data.loaders import Loader
from fastselfie.errors import UserError
from fastselfie.log import RunLog
from fastselfie.step import TrainStep

LATEST = "latest.pt"

# Numbers to log after a step that is due for it.
Evaluate = Callable[[int], dict[str, float]]


@dataclass(frozen=True)
class Stage:
    """What makes one stage of a run.

    kind: pretrain, finetuned or supervised, kept in the checkpoint so that none is taken for
    another. sections: of the config, whose keys must not change over a resume. patches: N, or 1
    for whole images. also_at: steps to evaluate after, beside every eval_every-th and the last.
    """

    kind: str
    folder: Path
    config: Config
    settings: StageConfig
    sections: Sequence[str]
    patches: int
    also_at: frozenset[int] = frozenset()


def fit(stage: Stage, step: TrainStep, loader: Loader, evaluate: Evaluate) -> dict[str, float]:
    """Train to the last step, from the newest checkpoint in the stage's folder if there is one.

    Returns what `evaluate` said after the last step.

    Raises:
        UserError: the checkpoint is damaged, or of another experiment.
    """
    settings, path = stage.settings, stage.folder / LATEST
    state = load_checkpoint(path) if path.exists() else None
    start, consumed, final = 0, 0, {}
    if state is not None:
        _restore(stage, step, state, path)
        start, consumed, final = state["step"], state["consumed"], state["metrics"]
    if start >= settings.steps:
        return final
    with RunLog(stage.folder, stage.kind, settings.steps, start) as log:
        if start == 0:
            log.write(0, **evaluate(0))
        batches = loader.train(consumed, settings.batch_size, stage.patches)
        with closing(batches):
            waited, since, last = 0.0, time.perf_counter(), start
            for done in range(start + 1, settings.steps + 1):
                asked = time.perf_counter()
                batch = next(batches)
                waited += time.perf_counter() - asked
                step(done - 1, batch)
                log.advance(done)
                ends = done == settings.steps
                if done % settings.log_every == 0 or ends:
                    means = step.read()  # waits for the device, so the clock below is honest
                    spent = time.perf_counter() - since
                    log.write(
                        done,
                        loss=means.loss,
                        accuracy=means.accuracy,
                        images_per_s=(done - last) * settings.batch_size / spent,
                        waiting=waited / spent,
                        **({"skipped": loader.skipped} if loader.skipped else {}),
                    )
                    waited, since, last = 0.0, time.perf_counter(), done
                if done % settings.eval_every == 0 or done in stage.also_at or ends:
                    paused = time.perf_counter()
                    final = evaluate(done)
                    log.write(done, **final)
                    since += time.perf_counter() - paused  # evaluation is not training
                if done % settings.save_every == 0 or ends:
                    save_checkpoint(path, _state(stage, step, done, final))
    return final


def _state(stage: Stage, step: TrainStep, done: int, final: dict[str, float]) -> dict[str, Any]:
    random: dict[str, Any] = {"cpu": torch.get_rng_state()}
    if step.machine.device.type == "cuda":
        random["cuda"] = torch.cuda.get_rng_state(step.machine.device)
    return {
        "kind": stage.kind,
        "step": done,
        "consumed": done * stage.settings.batch_size,
        "micro_batch": step.micro_batch,
        "config": json.dumps(stage.config.model_dump(mode="json")),
        "model": step.model.state_dict(),
        "optimizer": step.optimizer.state_dict(),
        "scaler": step.scaler.state_dict(),
        "random": random,
        "metrics": final,
    }


def _restore(stage: Stage, step: TrainStep, state: dict[str, Any], path: Path) -> None:
    """Put `state` into the step: weights, optimiser, scaler and torch's own random state."""
    if state["kind"] != stage.kind:
        raise UserError(f"{path}: a checkpoint of stage {state['kind']}, not of {stage.kind}")
    differing = differing_keys(
        json.loads(state["config"]), stage.config.model_dump(mode="json"), stage.sections
    )
    if differing:
        raise UserError(
            f"{path}: was trained with another config: {', '.join(differing)}: set them back, or "
            "use --resume never or another --out"
        )
    load_weights(step.model, state["model"], path)
    step.optimizer.load_state_dict(state["optimizer"])
    step.scaler.load_state_dict(state["scaler"])
    step.micro_batch = state["micro_batch"]
    torch.set_rng_state(state["random"]["cpu"])
    if step.machine.device.type == "cuda" and "cuda" in state["random"]:
        torch.cuda.set_rng_state(state["random"]["cuda"], step.machine.device)
