"""Measure the largest difference between timm's outputs of an exported network and ours.

python benchmarks/timm_parity.py --out benchmarks/results/timm.json        # needs timm

The network comes from `fastselfie export --format timm`. Its weights are freshly drawn. Its batch
statistics and norms are random too, so that no difference hides behind a zero or a one.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from support import conditions
from torch import nn

from fastselfie.config import Config
from fastselfie.export import export
from fastselfie.models.selfie import build_classifier, build_selfie
from fastselfie.runs.load import load_run
from fastselfie.stage_names import FINETUNED, PRETRAIN
from fastselfie.system.files import write_atomically
from fastselfie.training.checkpoint import save_checkpoint

_CLASSES, _IMAGES = 1000, 2
_PAPER: dict[str, Any] = {}  # the defaults of ModelConfig
_SLIM: dict[str, Any] = {"width": 16, "blocks": [1, 2, 1, 1], "heads": 8}


def _stir(model: nn.Module) -> nn.Module:
    """The model with norms as if it had been trained."""
    generator = torch.Generator().manual_seed(1)
    for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
        for tensor, low, high in (
            (norm.weight, 0.5, 1.5), (norm.bias, -0.5, 0.5),
            (norm.running_mean, -0.5, 0.5), (norm.running_var, 0.5, 2.0),
        ):  # fmt: skip
            assert tensor is not None
            with torch.no_grad():
                tensor.uniform_(low, high, generator=generator)
    return model


def _fresh_run(run: Path, model: dict[str, Any]) -> None:
    """A run's folder with networks that were drawn, not trained."""
    values = {"name": run.name, "model": model, "runtime": {"precision": "fp32"}}
    config = Config.model_validate_json(json.dumps(values))
    write_atomically(run / "config.yaml", config.to_yaml())
    torch.manual_seed(0)
    networks = {PRETRAIN: build_selfie(config), FINETUNED: build_classifier(config, _CLASSES)}
    for kind, network in networks.items():
        state = {"kind": kind, "step": 0, "images": "", "model": _stir(network).state_dict()}
        save_checkpoint(run / kind / "latest.pt", state)


def compare(run: Path, kind: str) -> dict[str, Any]:
    """Export, load into timm, give both the same images."""
    import timm

    trained = load_run(run, kind, allow_unfinished=True)
    file = run / f"{kind}.pt"
    arguments = export(trained, "timm", file)["timm"]["arguments"]
    theirs = timm.create_model("resnetv2_50", **arguments)
    theirs.load_state_dict(torch.load(file, weights_only=True), strict=True)
    side = trained.config.data.image_size
    images = torch.randn(_IMAGES, 3, side, side, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        ours = trained.network().eval()(images)
        difference = (theirs.eval()(images) - ours).abs().max()
    return {
        "network": f"{run.name}, {'P' if kind == PRETRAIN else 'classifier'}",
        "arguments": arguments,
        "output": list(ours.shape),
        "largest_output": float(ours.abs().max()),
        "largest_difference": float(difference),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out
    import timm

    results = []
    with tempfile.TemporaryDirectory() as folder:
        for name, model in (("paper", _PAPER), ("slim", _SLIM)):
            _fresh_run(Path(folder) / name, model)
            results += [compare(Path(folder) / name, kind) for kind in (FINETUNED, PRETRAIN)]
    worst = max(x["largest_difference"] for x in results)
    result = {
        "claim": f"timm's outputs differ from ours by at most {worst:.1e}, in float32 on a CPU",
        "command": conditions.command(),
        "timm": timm.__version__,
        "images": _IMAGES,
        "results": results,
        "environment": conditions.environment(torch.get_num_threads()),
    }
    write_atomically(out, json.dumps(result, indent=1) + "\n")
    print(json.dumps({"worst": worst, "out": str(out)}))
    if not worst <= 1e-5:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
