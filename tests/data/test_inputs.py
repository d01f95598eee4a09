"""The input of a network: how the patches of pretraining are drawn and changed."""

from __future__ import annotations

import numpy as np
import torch
from conftest import picture, tiny_config

from fastselfie.data.inputs import InputTransform, draw_changes
from fastselfie.data.loaders import Batch, Index
from fastselfie.kernels.patchify import patchify

HARDER = {"patch_gap": 2, "patch_grey": 0.5, "patch_contrast": 0.5, "patch_brightness": 0.3}


def batch_of(samples, epochs=None):
    images = torch.stack([torch.from_numpy(np.array(picture(i, 32, 32))) for i in samples])
    samples = np.array(samples, dtype=np.int64)
    epochs = np.zeros_like(samples) if epochs is None else np.array(epochs, dtype=np.int64)
    flip = torch.from_numpy(samples % 2 == 1)
    return Batch((images,), torch.from_numpy(samples), (flip,), Index(samples, epochs))


def test_a_patch_does_not_depend_on_its_batch(accelerator):
    config = tiny_config(pretrain=HARDER, model={"mask_fraction": 0.75})
    pixels = InputTransform(config, accelerator, batch=4)
    whole, places = pixels.patches(batch_of([3, 1, 2, 5]))
    assert whole.shape == (4, 16, 3, 6, 6)
    for sample, row in ((5, 3), (1, 1)):
        alone, place = pixels.patches(batch_of([sample]))
        assert torch.equal(alone[0], whole[row])
        assert torch.equal(place[0], places[row])
    parts = [pixels.patches(part)[0] for part in batch_of([3, 1, 2, 5]).split(3)]
    assert torch.equal(torch.cat(parts), whole)
    other = pixels.patches(batch_of([3, 1, 2, 5], epochs=[0, 1, 0, 0]))[0]
    assert [torch.equal(*pair) for pair in zip(other, whole, strict=True)] == [True, False, True,
                                                                              True]  # fmt: skip


def test_off_is_the_paper_s_task_bit_for_bit(accelerator):
    config, batch = tiny_config(), batch_of([3, 1, 2])
    assert draw_changes(batch, config)[1:] == (None, None, None)
    found, order = InputTransform(config, accelerator, batch=3).patches(batch)
    mean, std = torch.tensor(config.data.mean), torch.tensor(config.data.std)
    assert torch.equal(found, patchify(batch.images, batch.flip, order, 8, mean, std))


def test_a_gap_without_jitter_is_the_centre_of_each_cell(accelerator):
    batch = batch_of([3, 1, 2])
    centred = tiny_config(pretrain={"patch_gap": 2, "patch_jitter": False})
    cells, _ = InputTransform(tiny_config(), accelerator, batch=3).patches(batch)
    windows, _ = InputTransform(centred, accelerator, batch=3).patches(batch)
    assert torch.equal(windows, cells[..., 1:7, 1:7])


def test_whole_images_are_not_changed(accelerator):
    harder, plain = (tiny_config(pretrain=changes) for changes in (HARDER, {}))
    whole = [InputTransform(c, accelerator, 3).whole(batch_of([3, 1])) for c in (harder, plain)]
    assert torch.equal(*whole)


def test_p_sees_a_window_of_each_cell(accelerator):
    config = tiny_config(pretrain=HARDER)
    batch = batch_of([3, 1])
    patches, _ = InputTransform(config, accelerator, batch=3).patches(batch)
    assert patches.shape[3:] == (6, 6)
    assert int(draw_changes(batch, config).corners.max()) == 2
