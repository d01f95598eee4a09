"""Training as a whole: it learns, it repeats itself, it resumes where it was."""

from __future__ import annotations

import json
import math
import os
import signal
import sys
from contextlib import closing

import pytest
import torch
from conftest import REPOSITORY, picture, tiny_config

from fastselfie.config import RuntimeConfig
from fastselfie.data.dataset import open_dataset
from fastselfie.data.inputs import draw_masks
from fastselfie.data.loaders import build_loader
from fastselfie.errors import UserError
from fastselfie.evaluation.metrics import pretext_accuracy
from fastselfie.kernels.reference import patchify
from fastselfie.models.selfie import Selfie
from fastselfie.system.accelerator import choose_accelerator
from fastselfie.system.signals import Interrupted, deferred_signals
from fastselfie.training.checkpoint import Checkpoint, load_checkpoint
from fastselfie.training.finetune import few_labels, finetune
from fastselfie.training.metrics_log import read_log
from fastselfie.training.pretrain import pretrain
from fastselfie.training.stage_state import restore
from fastselfie.training.step import TrainStep

GOLDEN = REPOSITORY / "tests" / "golden" / "losses.json"


def run(folder, out, accelerator, **sections):
    sections["data"] = {"train": str(folder), **sections.get("data", {})}
    config = tiny_config(**sections)
    dataset = open_dataset(config.data, config.seed)
    return pretrain(config, dataset, out, accelerator)


def losses(out):
    return [line["loss"] for line in read_log(out / "log.jsonl") if "loss" in line]


def golden_losses(folder, accelerator):
    """Losses of 10 steps in float64, where every machine agrees to many digits."""
    config = tiny_config(data={"train": str(folder)}, model={"dropout": 0.0})
    model = Selfie(config).double()
    loader = build_loader(open_dataset(config.data).train, config.data, 0, accelerator.device)
    mean, std = torch.tensor(config.data.mean), torch.tensor(config.data.std)
    seen = []

    def objective(batch):
        order = draw_masks(batch, 0, config.patches)
        patches = patchify(batch.images, batch.flip, order, 8, mean, std, torch.float64)
        loss, correct = model(patches, order)
        seen.append(loss.item())
        return loss, correct, len(batch.images) * model.masked

    step = TrainStep(model, objective, config.pretrain, accelerator, 8)
    with closing(loader.stream(0, 8)) as batches:
        for number in range(10):
            step(number, next(batches))
    return seen


def test_ten_golden_losses(image_folder, accelerator):
    """Made by `python tests/test_training.py`, to be made again only where a change is meant."""
    expected = json.loads(GOLDEN.read_text(encoding="utf-8"))["losses"]
    # Rounding of 1e-16 grows with every update; 1e-9 leaves six digits for that and no more.
    assert golden_losses(image_folder, accelerator) == pytest.approx(expected, rel=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_tiny_net_learns_eight_images_by_heart(tmp_path, precision):
    accelerator = choose_accelerator(RuntimeConfig(device="cpu", precision=precision))
    for i in range(10):
        (tmp_path / f"c{i % 2}").mkdir(exist_ok=True)
        picture(i).save(tmp_path / f"c{i % 2}" / f"{i}.png")
    _, _ = run(
        tmp_path,
        tmp_path / "out",
        accelerator,
        data={"held_out": 0.2, "pad_mode": "none", "flip": False},
        model={"dropout": 0.0, "width": 16},
        pretrain={"steps": 150, "lr": 0.05, "log_every": 10, "warmup_steps": 10, "eval_every": 150},
    )
    accuracy = [x["accuracy"] for x in read_log(tmp_path / "out" / "log.jsonl") if "accuracy" in x]
    assert accuracy[-1] == 1.0


def test_pretraining_may_pad_in_a_way_of_its_own(image_folder, tmp_path, accelerator):
    modes = {"both": {"data": {"pad_mode": "zero"}}, "own": {"pretrain": {"pad_mode": "zero"}}}
    for name, options in {**modes, "neither": {}}.items():
        run(image_folder, tmp_path / name, accelerator, **options)
    assert losses(tmp_path / "own") == losses(tmp_path / "both")
    assert losses(tmp_path / "own") != losses(tmp_path / "neither")


def test_one_seed_gives_identical_losses(image_folder, tmp_path, accelerator):
    for name in ("a", "b"):
        run(image_folder, tmp_path / name, accelerator)
    run(image_folder, tmp_path / "c", accelerator, pretrain={"lr": 0.2})
    assert losses(tmp_path / "a") == losses(tmp_path / "b")
    assert losses(tmp_path / "a") != losses(tmp_path / "c")


@pytest.mark.parametrize("loader", ["resident", "folder"])
def test_a_resumed_run_equals_a_straight_one(
    image_folder, tmp_path, accelerator, loader, monkeypatch
):
    """Stopped in the middle of an epoch (16 images, batches of 6) and bit for bit the same."""
    options = {"data": {"loader": loader}, "pretrain": {"steps": 6, "batch_size": 6}}
    network, final = run(image_folder, tmp_path / "straight", accelerator, **options)

    class Stop(Exception):
        pass

    def fail_at(self, step, batch, original=TrainStep.__call__):
        if step == 5:
            raise Stop
        original(self, step, batch)

    with monkeypatch.context() as patch:
        patch.setattr(TrainStep, "__call__", fail_at)
        with pytest.raises(Stop):
            run(image_folder, tmp_path / "resumed", accelerator, **options)
    assert load_checkpoint(tmp_path / "resumed" / "latest.pt")["step"] == 4
    again, measured = run(image_folder, tmp_path / "resumed", accelerator, **options)
    assert measured == final
    assert losses(tmp_path / "resumed") == losses(tmp_path / "straight")
    for name, value in network.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


def test_a_finished_stage_is_not_run_again(image_folder, tmp_path, accelerator, monkeypatch):
    _, first = run(image_folder, tmp_path, accelerator)
    monkeypatch.setattr(TrainStep, "__call__", lambda *_: pytest.fail("trained again"))
    _, second = run(image_folder, tmp_path, accelerator)
    assert second == first


def test_another_precision_is_named_when_a_run_goes_on(image_folder, tmp_path, accelerator, capsys):
    run(image_folder, tmp_path / "out", accelerator, checkpoint={"keep": 9})
    for path in (tmp_path / "out").glob("*.pt"):
        if path.name != "step-0000002.pt":
            path.unlink()
    half = choose_accelerator(RuntimeConfig(device="cpu", precision="bf16"))
    run(image_folder, tmp_path / "out", half)
    said = capsys.readouterr().err.replace("\n", " ")
    assert "was trained in fp32, resumes in bf16" in said
    assert "runtime.precision=fp32" in said


def test_another_config_is_not_resumed(image_folder, tmp_path, accelerator):
    run(image_folder, tmp_path, accelerator)
    with pytest.raises(
        UserError, match=r"pretrain\.steps \(4 -> 9\), pretrain\.lr \(0\.1 -> 0\.3\)"
    ):
        run(image_folder, tmp_path, accelerator, pretrain={"lr": 0.3, "steps": 9})


def test_micro_batches_add_up_to_the_batch(image_folder, accelerator):
    """With batch norm in eval mode the gradients are those of one large pass."""
    config = tiny_config(data={"train": str(image_folder)}, model={"dropout": 0.0})
    loader = build_loader(open_dataset(config.data).train, config.data, 0, accelerator.device)
    with closing(loader.stream(0, 12)) as batches:
        batch = next(batches)
    mean, std = torch.tensor(config.data.mean), torch.tensor(config.data.std)
    weights = []
    for micro in (12, 5):  # 5 leaves a smaller rest
        torch.manual_seed(0)
        model = Selfie(config).double().eval()

        def objective(part, model=model):
            order = draw_masks(part, 0, config.patches)
            patches = patchify(part.images, part.flip, order, 8, mean, std, torch.float64)
            loss, correct = model(patches, order)
            return loss, correct, len(part.images) * 4

        step = TrainStep(model, objective, config.pretrain, accelerator, micro)
        step(0, batch)
        weights.append((torch.cat([p.flatten() for p in model.parameters()]), step.read()))
    assert torch.allclose(weights[0][0], weights[1][0], rtol=1e-10, atol=1e-12)
    assert weights[0][1].loss == pytest.approx(weights[1][1].loss, rel=1e-6)
    assert weights[0][1].accuracy == weights[1][1].accuracy


def test_gradients_are_clipped_to_the_asked_norm(image_folder, accelerator):
    config = tiny_config(
        data={"train": str(image_folder)},
        pretrain={"clip_grad_norm": 0.01, "warmup_steps": 0, "lr": 1.0, "momentum": 0.0,
                  "weight_decay": 0.0},
    )  # fmt: skip
    model = Selfie(config)
    loader = build_loader(open_dataset(config.data).train, config.data, 0, accelerator.device)
    mean, std = torch.tensor(config.data.mean), torch.tensor(config.data.std)

    def objective(batch):
        order = draw_masks(batch, 0, config.patches)
        return *model(patchify(batch.images, batch.flip, order, 8, mean, std), order), 1

    before = torch.cat([p.detach().flatten().clone() for p in model.parameters()])
    with closing(loader.stream(0, 8)) as batches:
        TrainStep(model, objective, config.pretrain, accelerator, 8)(0, next(batches))
    after = torch.cat([p.detach().flatten() for p in model.parameters()])
    assert (after - before).norm().item() == pytest.approx(0.01, rel=1e-3)


def first_weights(monkeypatch):
    """What each stage's model holds before its first step, in order."""
    held = []
    original = TrainStep.__init__

    def remember(self, model, *rest):
        original(self, model, *rest)
        held.append({k: v.clone() for k, v in model.state_dict().items()})

    monkeypatch.setattr(TrainStep, "__init__", remember)
    return held


def test_finetuning_starts_from_p_and_the_control_does_not(
    image_folder, tmp_path, accelerator, monkeypatch
):
    config = tiny_config(data={"train": str(image_folder)})
    dataset = open_dataset(config.data)
    network, _ = pretrain(config, dataset, tmp_path / "pretrain", accelerator)
    held = first_weights(monkeypatch)
    for name, start in (("finetuned", network), ("supervised", None)):
        measures = finetune(
            config, few_labels(config, dataset), tmp_path / name, accelerator, start
        )
        assert 0 <= measures["top1"] <= measures["top5"] <= 1
        assert math.isfinite(measures["heldout_loss"])
        assert load_checkpoint(tmp_path / name / "latest.pt")["kind"] == name
    finetuned, supervised = held
    for name, value in network.patch_network.state_dict().items():
        same = name.replace("norm.", "stages.3.blocks.0.norm1.", 1) if name[:5] == "norm." else name
        assert torch.equal(finetuned[same], value), name
    for name in ("stem.conv.weight", "stages.2.blocks.0.conv3.weight"):
        assert not torch.equal(supervised[name], finetuned[name])
    # What P does not bring begins alike in both arms.
    assert torch.equal(supervised["head.fc.weight"], finetuned["head.fc.weight"])


def test_both_arms_see_the_labelled_images_and_are_measured_on_the_others(
    image_folder, tmp_path, accelerator, monkeypatch
):
    config = tiny_config(data={"train": str(image_folder)})
    dataset = open_dataset(config.data)
    built = []

    def remember(source, *rest):
        built.append(source)
        return build_loader(source, *rest)

    monkeypatch.setattr("fastselfie.training.finetune.build_loader", remember)
    finetune(config, few_labels(config, dataset), tmp_path, accelerator, None)
    train, held_out = built
    assert len(train) == 8  # half of 16
    assert set(train.paths) < set(dataset.train.paths)
    assert held_out.paths == dataset.held_out.paths


def test_pretraining_is_measured_on_held_out_images(
    image_folder, tmp_path, accelerator, monkeypatch
):
    built = []

    def remember(source, *rest):
        built.append(build_loader(source, *rest))
        return built[-1]

    monkeypatch.setattr("fastselfie.training.pretrain.build_loader", remember)
    measured = []

    def measure(model, loader, *rest):
        measured.append(loader)
        return pretext_accuracy(model, loader, *rest)

    monkeypatch.setattr("fastselfie.training.pretrain.pretext_accuracy", measure)
    run(image_folder, tmp_path, accelerator)
    train, held_out = built
    assert (len(train), len(held_out)) == (16, 8)
    assert set(map(id, measured)) == {id(held_out)}


def test_the_control_has_its_own_learning_rate(image_folder, tmp_path, accelerator, monkeypatch):
    rates = []
    original = TrainStep.__init__

    def remember(self, model, objective, settings, *rest):
        original(self, model, objective, settings, *rest)
        rates.append(self.stage.lr)

    monkeypatch.setattr(TrainStep, "__init__", remember)
    config = tiny_config(
        data={"train": str(image_folder)}, finetune={"lr": 0.02, "scratch_lr": 0.3}
    )
    dataset = open_dataset(config.data)
    network, _ = pretrain(config, dataset, tmp_path / "p", accelerator)
    finetune(config, few_labels(config, dataset), tmp_path / "a", accelerator, network)
    finetune(config, few_labels(config, dataset), tmp_path / "b", accelerator, None)
    assert rates == [0.1, 0.02, 0.3]
    # Another rate for the control is no reason to refuse the finetuned arm, and the other way.
    changed = tiny_config(
        data={"train": str(image_folder)}, finetune={"lr": 0.02, "scratch_lr": 0.4}
    )
    finetune(changed, few_labels(changed, dataset), tmp_path / "a", accelerator, network)
    with pytest.raises(UserError, match=r"finetune\.scratch_lr"):
        finetune(changed, few_labels(changed, dataset), tmp_path / "b", accelerator, None)


def test_seeds_differ_in_both_stages(image_folder, tmp_path, accelerator, monkeypatch):
    held = first_weights(monkeypatch)
    for seed in (0, 1):
        config = tiny_config(data={"train": str(image_folder)}).model_copy(update={"seed": seed})
        dataset = open_dataset(config.data)
        pretrain(config, dataset, tmp_path / f"p{seed}", accelerator)
        finetune(config, few_labels(config, dataset), tmp_path / f"f{seed}", accelerator, None)
    assert not torch.equal(held[0]["pooling.u0"], held[2]["pooling.u0"])
    assert not torch.equal(held[1]["stem.conv.weight"], held[3]["stem.conv.weight"])


def test_the_micro_batch_of_a_checkpoint_is_kept(image_folder, tmp_path, accelerator):
    """Another machine may have other memory; batch norm must still see as many images."""
    run(
        image_folder, tmp_path / "a", accelerator, pretrain={"save_every": 1, "micro_batch_size": 4}
    )
    state = load_checkpoint(tmp_path / "a" / "latest.pt")
    assert state["micro_batch"] == 4
    config = tiny_config(data={"train": str(image_folder)})
    model = Selfie(config)
    step = TrainStep(model, lambda _: None, config.pretrain, accelerator, 8)
    restore(step, Checkpoint(tmp_path, state))
    assert step.micro_batch == 4


def test_a_loss_that_is_not_finite_stops_and_saves_nothing(image_folder, tmp_path, accelerator):
    with pytest.raises(UserError, match=r"pretrain: the loss is (nan|inf) at step .*pretrain\.lr"):
        run(
            image_folder, tmp_path, accelerator, pretrain={"lr": 1e12, "steps": 12, "save_every": 1}
        )
    path = tmp_path / "latest.pt"
    if path.exists():
        weights = load_checkpoint(path)["model"]
        assert all(torch.isfinite(w).all() for w in weights.values() if w.is_floating_point())
    assert "NaN" not in (tmp_path / "log.jsonl").read_text()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_finishes_the_step_saves_and_leaves(
    image_folder, tmp_path, accelerator, monkeypatch, number
):
    options = {"pretrain": {"steps": 6, "save_every": 6}}
    network, final = run(image_folder, tmp_path / "straight", accelerator, **options)
    original = TrainStep.__call__

    def signalled(self, step, batch):
        if step == 2:
            os.kill(os.getpid(), number)
        original(self, step, batch)

    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    with monkeypatch.context() as patch:
        patch.setattr(TrainStep, "__call__", signalled)
        with pytest.raises(Interrupted) as caught:
            run(image_folder, tmp_path / "left", accelerator, **options)
    assert caught.value.number == number
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert load_checkpoint(tmp_path / "left" / "latest.pt")["step"] == 3
    again, measured = run(image_folder, tmp_path / "left", accelerator, **options)
    assert measured == final
    weights = [n.patch_network.norm.weight for n in (again, network)]
    assert torch.equal(*weights)


def test_a_second_signal_acts_at_once():
    with deferred_signals() as pending:
        os.kill(os.getpid(), signal.SIGINT)
        assert pending.number == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_finetuning_one_class_is_refused(tmp_path, accelerator):
    (tmp_path / "data" / "only").mkdir(parents=True)
    for i in range(20):
        picture(i).save(tmp_path / "data" / "only" / f"{i}.png")
    config = tiny_config(data={"train": str(tmp_path / "data")})
    dataset = open_dataset(config.data)
    pretrain(config, dataset, tmp_path / "pretrain", accelerator)  # needs no classes
    with pytest.raises(UserError, match="one class, 'only'"):
        finetune(config, few_labels(config, dataset), tmp_path / "f", accelerator, None)


if __name__ == "__main__":
    import tempfile
    from pathlib import Path

    from fastselfie.system.accelerator import choose_accelerator

    with tempfile.TemporaryDirectory() as root:
        for part, count in (("train", 8), ("test", 4)):
            for label, name in enumerate(("cat", "dog")):
                folder = Path(root) / part / name
                folder.mkdir(parents=True)
                for i in range(count):
                    image = picture(1000 * label + 100 * (part == "test") + i)
                    image.save(folder / f"{i}.png")
        torch.manual_seed(0)
        values = golden_losses(Path(root), choose_accelerator(tiny_config().runtime))
    about = "losses of 10 steps of the tiny net in float64; made by python tests/test_training.py"
    GOLDEN.write_text(json.dumps({"about": about, "losses": values}, indent=1) + "\n")
    sys.exit(0)
