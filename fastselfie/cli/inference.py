"""Commands that use a trained network: export, features, predict."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from fastselfie.cli.app import app
from fastselfie.cli.options import AsJson, Part, RunFolder, checked_by
from fastselfie.cli.output import echo_json, print_result, print_table
from fastselfie.stage_names import StageName


class Format(str, Enum):
    """A file format that `export` writes."""

    timm = "timm"
    safetensors = "safetensors"
    onnx = "onnx"


Stage = Annotated[
    str | None,
    typer.Option(
        metavar=f"[{'|'.join(StageName)}]",
        callback=checked_by(StageName),
        help="Default: finetuned if it exists, else supervised, else pretrain.",
    ),
]
Unfinished = Annotated[
    bool, typer.Option("--allow-unfinished", help="Accept a stage that is still training.")
]


@app.command()
def export(
    run: RunFolder,
    form: Annotated[
        Format,
        typer.Option(
            "--format",
            metavar="FORMAT",
            help="timm: a state dict for timm's resnetv2_50. safetensors: weights and a model "
            "card, FILE.md. onnx: from images to logits or features, checked with onnxruntime.",
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="FILE", help="The file to write or replace.")],
    stage: Stage = None,
    allow_unfinished: Unfinished = False,
    as_json: AsJson = False,
) -> None:
    """Export a trained network for other tools.

    Of the pretraining stage only P is exported, a feature extractor.
    """
    from fastselfie import export as exporting
    from fastselfie.runs.load import load_run

    trained = load_run(run, stage, allow_unfinished)
    print_result(exporting.export(trained, form.value, out), as_json)


@app.command()
def features(
    run: RunFolder,
    data: Annotated[Path, typer.Option(help="A dataset of any kind that data.train takes.")],
    out: Annotated[
        Path, typer.Option(metavar="FILE.npy", help="The file to write: (n, D) float32.")
    ],
    labels: Annotated[
        Path | None, typer.Option(metavar="FILE.npy", help="Also write the labels: (n,) int64.")
    ] = None,
    part: Annotated[Part, typer.Option(help="Which part, if the dataset has both.")] = Part.train,
    stage: Stage = None,
    allow_unfinished: Unfinished = False,
    as_json: AsJson = False,
) -> None:
    """Write the features of every image of a dataset, in its order.

    These are the classifier's input or, of the pretraining stage, P's pooled output.
    """
    from fastselfie.inference.features import write_features
    from fastselfie.runs.load import load_run

    trained = load_run(run, stage, allow_unfinished)
    print_result(write_features(trained, data, part.value, out, labels), as_json)


@app.command()
def predict(
    run: RunFolder,
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Image files.")],
    out: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="A .png file or a folder; default: RUN/predictions."),
    ] = None,
    stage: Stage = None,
    allow_unfinished: Unfinished = False,
    as_json: AsJson = False,
) -> None:
    """Print the most likely classes of images.

    Of the pretraining stage, write pictures in which the network has filled the masked patches
    instead.
    """
    from fastselfie.inference.predict import predict as predict_images
    from fastselfie.runs.load import load_run

    found = predict_images(load_run(run, stage, allow_unfinished), images, out)
    if not as_json:
        print_table([row for answer in found for row in answer.rows()], found[0].columns)
    echo_json([answer.summary() for answer in found], as_json)
