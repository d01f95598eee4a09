"""`fastselfie export`: each format gives the same outputs in the other tool, or an error."""

from __future__ import annotations

import importlib.util
import json
import shutil

import pytest
import torch
from conftest import TINY, refused, tiny_config
from safetensors import safe_open
from safetensors.torch import load_file

from fastselfie.config.load import load_config
from fastselfie.errors import UserError
from fastselfie.export import to_onnx
from fastselfie.models.resnet import ResNetV2
from fastselfie.models.selfie import build_classifier, build_selfie
from fastselfie.runs.load import load_run
from fastselfie.system.files import write_atomically
from fastselfie.training.checkpoint import load_checkpoint, save_checkpoint


def summary(result):
    assert result.status == 0, result.err
    return json.loads(result.out.splitlines()[-1])


def outputs(run, stage, images):
    network = load_run(run, stage).network().eval()
    with torch.no_grad():
        return network(images)


def images_of(count):
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def longer(run, tmp_path):
    """The same run, in which finetuning is to continue to step 9."""
    copy = tmp_path / "longer"
    shutil.copytree(run, copy)
    config = load_config(copy / "config.yaml", ["finetune.steps=9"])
    write_atomically(copy / "config.yaml", config.to_yaml())
    return copy


@pytest.fixture
def imagenet_stem(tmp_path):
    """A run of fresh networks that timm can express: width 8, 7x7 stem."""
    config = tiny_config(
        data={"image_size": 64},
        model={"stem": "imagenet", "width": 8, "blocks": [1, 2, 1, 1], "patch_size": 16},
    )
    run = tmp_path / "large"
    write_atomically(run / "config.yaml", config.to_yaml())
    for kind, model, step in (("pretrain", build_selfie(config), 4),
                              ("finetuned", build_classifier(config, 3), 2)):  # fmt: skip
        state = {"kind": kind, "step": step, "images": "none", "model": model.state_dict(),
                 "config": config.model_dump_json()}  # fmt: skip
        save_checkpoint(run / kind / "latest.pt", state)
    return run


def test_timm_gets_plain_tensors_and_its_arguments(cli, imagenet_stem, tmp_path):
    figures = summary(cli("export", imagenet_stem, "--format", "timm", "--out", tmp_path / "x.pt"))
    assert figures["stage"] == "finetuned"
    assert figures["timm"] == {
        "model": "resnetv2_50",
        "arguments": {"layers": [1, 2, 1, 1], "channels": [32, 64, 128, 256], "stem_chs": 8,
                      "num_classes": 3},
    }  # fmt: skip
    weights = torch.load(tmp_path / "x.pt", weights_only=True)
    network = ResNetV2((1, 2, 1, 1), 8, classes=3)  # whose names test_resnet.py holds to timm's
    network.load_state_dict(weights)
    x = images_of(2)
    with torch.no_grad():
        assert torch.equal(network.eval()(x), outputs(imagenet_stem, None, x))


def test_timm_gets_p_without_a_head(cli, imagenet_stem, tmp_path):
    command = ("export", imagenet_stem, "--format", "timm", "--stage", "pretrain")
    figures = summary(cli(*command, "--out", tmp_path / "p.pt"))
    assert figures["timm"]["arguments"] == {
        "layers": [1, 2, 1], "channels": [32, 64, 128], "stem_chs": 8, "num_classes": 0
    }  # fmt: skip
    weights = torch.load(tmp_path / "p.pt", weights_only=True)
    assert not [name for name in weights if name.startswith("head")]
    ResNetV2((1, 2, 1), 8).load_state_dict(weights)


def test_timm_refuses_what_it_cannot_express(cli, tiny_run, imagenet_stem, tmp_path):
    out = tmp_path / "x.pt"
    refused(cli("export", tiny_run, "--format", "timm", "--out", out), "model.stem is cifar",
            "safetensors or onnx")  # fmt: skip
    config = load_config(imagenet_stem / "config.yaml", ["model.width=12"])
    write_atomically(imagenet_stem / "config.yaml", config.to_yaml())
    model = {"model": build_classifier(config, 3).state_dict()}
    state = load_checkpoint(imagenet_stem / "finetuned" / "latest.pt")
    save_checkpoint(imagenet_stem / "finetuned" / "latest.pt", {**state, **model})
    refused(cli("export", imagenet_stem, "--format", "timm", "--out", out), "model.width is 12")
    assert not out.exists()
    assert not list(tmp_path.glob(".x*"))


@pytest.mark.parametrize("stage", ["finetuned", "supervised", "pretrain"])
def test_safetensors_hold_the_weights_and_what_they_are_of(cli, tiny_run, tmp_path, stage):
    out = tmp_path / "new" / "x.safetensors"
    command = ("export", tiny_run, "--format", "safetensors", "--out", out)
    figures = summary(cli(*command, "--stage", stage))
    assert figures["step"] == (4 if stage == "pretrain" else 2)
    with safe_open(out, "pt") as file:
        notes = file.metadata()
    assert notes["format"] == "pt"
    assert notes["kind"] == stage
    names = [] if stage == "pretrain" else ["cat", "dog"]
    assert json.loads(notes["classes"]) == names
    assert json.loads(notes["mean"]) == [0.485, 0.456, 0.406]
    assert json.loads(notes["image_size"]) == 32
    state = load_checkpoint(tiny_run / stage / "latest.pt")
    assert notes["images"] == state["images"]
    metrics = json.loads(notes["metrics"])
    assert metrics == {"step": state["step"], **state["metrics"]}
    data = json.loads(notes["config"])["data"]
    assert data["train"] == "images"  # not where it lies on this machine
    blocks = TINY["model"]["blocks"]
    classes = 2 if names else None
    network = ResNetV2(blocks[: 4 if names else 3], 4, "cifar", classes).eval()
    network.load_state_dict(load_file(out))
    x = images_of(2)
    with torch.no_grad():
        assert torch.equal(network(x), outputs(tiny_run, stage, x))
    card = (tmp_path / "new" / "x.safetensors.md").read_text(encoding="utf-8")
    assert str(tiny_run.parent) not in card
    shown = {"pretrain": "pretext_accuracy", "finetuned": "top1", "supervised": "top1"}[stage]
    assert f"| {shown} | {metrics[shown]:.4f} |" in card
    assert ("8 of 16 images" in card) == (stage != "pretrain")


@pytest.mark.extra
@pytest.mark.parametrize("stage", ["finetuned", "pretrain"])
def test_onnx_gives_our_outputs_for_any_batch(cli, tiny_run, tmp_path, stage):
    import onnx
    import onnxruntime

    out = tmp_path / "x.onnx"
    command = ("export", tiny_run, "--format", "onnx", "--out", out, "--stage", stage)
    figures = summary(cli(*command))
    output = "features" if stage == "pretrain" else "logits"
    assert (figures["input"], figures["output"]) == ("images", output)
    assert 0 <= figures["difference"] <= to_onnx.TOLERANCE
    session = onnxruntime.InferenceSession(out, providers=["CPUExecutionProvider"])
    for count in (1, 5):
        x = images_of(count)
        (found,) = session.run([output], {"images": x.numpy()})
        assert torch.allclose(torch.from_numpy(found), outputs(tiny_run, stage, x), atol=1e-5)
    model = onnx.load(out)
    assert {node.domain for node in model.graph.node} <= {""}  # nothing of ours in the graph
    notes = {entry.key: entry.value for entry in model.metadata_props}
    assert "divided by 255, minus mean, divided by std" in notes["input"]
    assert notes["kind"] == stage


@pytest.mark.extra
def test_an_onnx_file_that_differs_is_refused(tiny_run, tmp_path, monkeypatch, capsys):
    network = load_run(tiny_run).network().eval()
    data, figures = to_onnx.onnx_bytes(load_run(tiny_run), network, {})
    assert figures["difference"] <= to_onnx.TOLERANCE
    with torch.no_grad():  # as if the graph had blue first
        network.stem.conv.weight.copy_(network.stem.conv.weight.flip(1))
    with pytest.raises(UserError, match=r"differs from torch .* nothing was written"):
        to_onnx.difference(data, network, images_of(2))
    missing(monkeypatch, "onnxruntime")  # which only checks
    assert to_onnx.difference(data, network, images_of(2)) is None
    assert "was not checked: pip install 'fastselfie[export]'" in capsys.readouterr().err


def missing(monkeypatch, package):
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == package else real(name)
    )


@pytest.mark.extra
@pytest.mark.parametrize("package", ["onnx", "onnxscript"])
def test_without_what_onnx_needs(cli, tiny_run, tmp_path, monkeypatch, package):
    missing(monkeypatch, package)
    (tmp_path / "x.onnx").write_text("before")
    result = cli("export", tiny_run, "--format", "onnx", "--out", tmp_path / "x.onnx")
    refused(result, f"needs {package}", "pip install 'fastselfie[export]'")
    assert (tmp_path / "x.onnx").read_text() == "before"
    assert len(list(tmp_path.iterdir())) == 1


def test_an_unfinished_stage_is_taken_only_where_it_is_asked_for(cli, tiny_run, tmp_path):
    run = longer(tiny_run, tmp_path)
    command = ("export", run, "--format", "safetensors", "--out", tmp_path / "x.safetensors")
    refused(cli(*command), "finetuned is at step 2 of 9", "--allow-unfinished")
    assert not (tmp_path / "x.safetensors").exists()
    assert summary(cli(*command, "--allow-unfinished"))["step"] == 2
    assert "| steps | 2 of 9," in (tmp_path / "x.safetensors.md").read_text(encoding="utf-8")
    assert summary(cli(*command, "--stage", "pretrain"))["stage"] == "pretrain"


def test_runs_that_are_none(cli, tiny_run, tmp_path):
    def export(run, *more):
        return cli("export", run, "--format", "timm", "--out", tmp_path / "x", *more)

    refused(export(tmp_path), "not a run: it has no config.yaml")
    empty = tmp_path / "empty"
    write_atomically(empty / "config.yaml", (tiny_run / "config.yaml").read_bytes())
    refused(export(empty), "holds no checkpoint yet")
    shutil.copytree(tiny_run / "pretrain", empty / "pretrain")
    for name in ("finetuned", "finetune"):
        refused(export(empty, "--stage", name), "no checkpoint of finetuned, but of pretrain")


def test_a_run_that_kept_no_names_numbers_its_classes(tiny_run, tmp_path):
    run = tmp_path / "old"
    shutil.copytree(tiny_run, run)
    assert load_run(run).classes() == ["cat", "dog"]
    (run / "classes.json").unlink()
    assert load_run(run).classes() == ["0", "1"]


def test_damaged_notes_of_a_run(cli, tiny_run, tmp_path):
    """A summary is left out of the card, as a report leaves it out; names are not guessed."""
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    (run / "summary.json").write_text('{"seco', encoding="utf-8")
    with open(run / "finetuned" / "log.jsonl", "a", encoding="utf-8") as file:
        file.write("[1]\n")
    command = ("export", run, "--format", "safetensors", "--out")
    assert cli(*command, tmp_path / "a.safetensors").status == 0
    assert (tmp_path / "a.safetensors.md").exists()
    (run / "classes.json").write_text('["cat", "do', encoding="utf-8")
    refused(cli(*command, tmp_path / "b.safetensors"), "classes.json: is damaged")
    assert not list(tmp_path.glob("b.*"))


def test_an_out_that_cannot_be_written(cli, tiny_run, tmp_path):
    (tmp_path / "file").write_text("in the way")
    for out in (tmp_path, tmp_path / "file" / "x", tmp_path / "file" / "y" / "x"):
        refused(cli("export", tiny_run, "--format", "safetensors", "--out", out), str(out))
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_an_unknown_format(cli, tiny_run, tmp_path):
    result = cli("export", tiny_run, "--format", "keras", "--out", tmp_path / "x")
    assert result.status == 2
    assert "keras" in result.err
    assert "Traceback" not in result.err
    assert "safetensors" in result.err
