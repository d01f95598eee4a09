"""The training step: when it waits for the device, and switches that change only its speed."""

from __future__ import annotations

import math
from contextlib import closing
from dataclasses import replace
from itertools import islice

import pytest
import torch
from conftest import tiny_config
from torch.utils._python_dispatch import TorchDispatchMode

from fastselfie.data.dataset import open_dataset
from fastselfie.data.inputs import draw_masks
from fastselfie.data.loaders import build_loader
from fastselfie.errors import UserError
from fastselfie.kernels.reference import patchify
from fastselfie.models.selfie import build_selfie
from fastselfie.system import compilation
from fastselfie.system.accelerator import choose_accelerator
from fastselfie.training.memory import estimate_pretraining
from fastselfie.training.pretrain import build_pretraining
from fastselfie.training.step import TrainStep


def train(folder, accelerator, steps, dtype=torch.float32, **sections):
    """Return the losses of some steps, and the weights after them."""
    config = tiny_config(data={"train": str(folder)}, **sections)
    built = build_pretraining(config, accelerator)
    model, pixels, step = built.model, built.pixels, built.step
    model.to(dtype)
    pixels.dtype = dtype
    loader = build_loader(open_dataset(config.data).train, config.data, 0, accelerator.device)
    losses = []
    with closing(loader.stream(0, 8)) as batches:
        for number, batch in enumerate(islice(batches, steps)):
            step(number, batch)
            losses.append(step.read().loss)
    return losses, model.state_dict()


class _Waits(TorchDispatchMode):
    """Counts the operations that bring a value to the host, and so wait for the device."""

    NAMES = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal",
             "masked_select", "_unique2")  # fmt: skip

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, operation, types, arguments=(), named=None):
        name = operation.overloadpacket.__name__
        self.count += name in self.NAMES
        return operation(*arguments, **(named or {}))


@pytest.mark.parametrize("clip", [None, 1.0])
def test_a_step_does_not_wait_for_the_device_until_it_is_read(image_folder, accelerator, clip):
    config = tiny_config(data={"train": str(image_folder)}, pretrain={"clip_grad_norm": clip})
    step = build_pretraining(config, accelerator).step
    loader = build_loader(open_dataset(config.data).train, config.data, 0, accelerator.device)
    batches = loader.stream(0, 8)
    step(0, next(batches))  # the optimiser's state is made
    batch = next(batches)
    if accelerator.device.type == "cuda":
        torch.cuda.set_sync_debug_mode("error")
    try:
        with _Waits() as waits:
            step(1, batch)
    finally:
        if accelerator.device.type == "cuda":
            torch.cuda.set_sync_debug_mode("default")
    assert waits.count == 0
    with waits:
        step.read()
    assert waits.count > 0
    batches.close()


def test_the_norm_of_the_gradient_is_read_with_the_means(image_folder, accelerator, monkeypatch):
    """The norm is that before clipping, and only of steps that were applied."""
    settings = {"clip_grad_norm": 0.01, "on_nonfinite": "skip"}
    config = tiny_config(data={"train": str(image_folder)}, pretrain=settings)
    step = build_pretraining(config, accelerator).step
    loader = build_loader(open_dataset(config.data).train, config.data, 0, accelerator.device)
    norms, original = [], step._gradients

    def remember(batch):
        made = original(batch)
        if len(norms) == 1:
            step._all_gradients()[0].fill_(torch.inf)
        flat = torch.cat([p.grad.flatten() for p in step.model.parameters()])
        norms.append(float(flat.double().norm()))
        return made

    monkeypatch.setattr(step, "_gradients", remember)
    with closing(loader.stream(0, 8)) as batches:
        for number, batch in enumerate(islice(batches, 4)):
            step(number, batch)
    applied = [norms[i] for i in (0, 2, 3)]
    means = step.read()
    assert (means.steps, means.skipped) == (3, 1)
    assert means.norm == pytest.approx(sum(applied) / 3, rel=1e-5)
    assert means.largest_norm == pytest.approx(max(applied), rel=1e-5)
    assert step.read()[-2:] == (0, 0)


def test_a_checkpoint_without_gradient_norms_can_be_resumed(image_folder, accelerator):
    """The first line of the log after it has no norm, and the next has one."""
    config = tiny_config(data={"train": str(image_folder)})
    step = build_pretraining(config, accelerator).step
    loader = build_loader(open_dataset(config.data).train, config.data, 0, accelerator.device)
    with closing(loader.stream(0, 8)) as batches:
        step(0, next(batches))
        older = {k: v for k, v in step.metric_accumulators().items() if "norm" not in k}
        for begun in (True, False):
            step.load_metric_accumulators(
                [older if begun else {k: v * 0 for k, v in older.items()}]
            )
            step(1, next(batches))
            means = step.read()
            assert math.isnan(means.norm) == math.isnan(means.largest_norm) == begun
            assert math.isfinite(means.loss)


def test_activation_checkpointing_saves_memory_and_gives_the_same_losses(image_folder, accelerator):
    def kept(checkpointed):
        config = tiny_config(runtime={"activation_checkpointing": checkpointed})
        return estimate_pretraining(config, accelerator.precision).per_image

    assert kept(True) < 0.5 * kept(False)
    final = {}
    for checkpointed in (False, True):
        options = {"runtime": {"activation_checkpointing": checkpointed}}
        final[checkpointed] = train(image_folder, accelerator, 4, **options)
    assert final[False][0] == final[True][0]
    # Batch statistics too: the second forward pass must not count them again.
    for name, value in final[False][1].items():
        assert torch.equal(value, final[True][1][name]), name


@pytest.mark.slow
def test_the_compiled_step_gives_the_same_losses(image_folder, accelerator):
    """Its sums are rounded in another order, which training multiplies with every update. So in
    float64, as for the golden losses: a rounding of 1e-16 may grow by eight digits in 20 steps."""
    options = {"pretrain": {"steps": 20, "lr": 0.01}, "model": {"dropout": 0.0}}
    eager, compiled = (
        train(image_folder, replace(accelerator, compile=mode), 20, dtype=torch.float64, **options)[
            0
        ]
        for mode in (None, "default")
    )
    assert compiled == pytest.approx(eager, rel=1e-8)
    assert len(set(eager)) == 20


@pytest.mark.parametrize(
    ("runtime", "named"),
    [
        ({"cuda_graphs": True, "compile": "default"}, "runtime.cuda_graphs"),
        ({"compile": "default"}, "C[+][+] compiler no-such-compiler"),
    ],
)
def test_options_that_the_machine_lacks_are_refused(monkeypatch, runtime, named):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(UserError, match=named):
        choose_accelerator(tiny_config(runtime={"device": "cpu", **runtime}).runtime)


@pytest.mark.parametrize("mode", ["default", "max-autotune"])
def test_micro_batches_do_not_go_with_cuda_graphs(monkeypatch, accelerator, mode):
    """A replay would overwrite the gradients of the first pass, in the memory of the graph."""
    gpu = torch.device("cuda")
    monkeypatch.setattr(torch, "compile", lambda model, mode: model)
    monkeypatch.setattr(compilation, "compile_fault", lambda device: None)
    for graphs, micro, refused in ((True, 4, True), (True, 8, False), (False, 4, False)):
        sizes = {"batch_size": 8, "micro_batch_size": micro}
        config = tiny_config(
            pretrain=sizes, runtime={"compile": mode, "cuda_graphs": graphs, "precision": "fp32"}
        )
        there = replace(accelerator, compile=compilation.choose_compile(config.runtime, gpu)[0])
        if not refused:
            build_pretraining(config, there)
            continue
        with pytest.raises(UserError, match=r"^runtime\.cuda_graphs .* 8 images .* of 4: set"):
            build_pretraining(config, there)


@pytest.mark.parametrize(
    ("runtime", "named"),
    [
        ({"cuda_graphs": True, "compile": "off"}, "needs runtime.compile"),
        ({"cuda_graphs": True, "activation_checkpointing": True}, "not work with runtime.cuda_gr"),
        (
            {"activation_checkpointing": True, "compile": "default"},
            "not work with runtime.compile",
        ),
    ],
)
def test_switches_that_exclude_each_other_are_refused(runtime, named):
    with pytest.raises(ValueError, match=named):
        tiny_config(runtime=runtime)


def test_a_bare_off_is_read_as_text():
    """YAML 1.1 reads it as false."""
    assert tiny_config(runtime={"compile": False}).runtime.compile == "off"


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
        model = build_selfie(config).double().eval()

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


def test_gradients_are_clipped_to_the_configured_norm(image_folder, accelerator):
    config = tiny_config(
        data={"train": str(image_folder)},
        pretrain={"clip_grad_norm": 0.01, "warmup_steps": 0, "lr": 1.0, "momentum": 0.0,
                  "weight_decay": 0.0},
    )  # fmt: skip
    model = build_selfie(config)
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
