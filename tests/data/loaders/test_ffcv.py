"""Stock FFCV fed by us: our order and labels, FFCV's own pixels; and the file, both ways."""

from __future__ import annotations

import io
import sys
import threading
from functools import partial

import numpy as np
import pytest
import torch
from conftest import jpeg_bytes, picture, textured, tiny_config, write_beton
from helpers.loaders import CPU, make_loader, take
from PIL import Image

from fastselfie.data.loaders import choose_loader
from fastselfie.data.loaders import ffcv as ffcv_loader
from fastselfie.errors import UserError
from fastselfie.kernels.jpeg import transcode

pytestmark = [pytest.mark.extra, pytest.mark.slow]

# One thread: FFCV compiles twice as fast where it need not make its loops parallel.
loader = partial(make_loader, crop="resized", image_size=48, held_out=0.1, workers=1)
# Mean levels between two decoders of one JPEG: FFCV's fast DCT works with 8-bit factors, which
# costs 1 to 2 levels a channel at this quality.
DECODER = 2.0


def streams():
    """FFCV's threads; numba's own stay."""
    return sum(type(thread).__name__ == "_Stream" for thread in threading.enumerate())


def levels(a, b):
    return np.abs(np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)).mean()


def colour(sample):
    """One that no other sample of up to 64 has, 60 levels apart in some channel."""
    return tuple(20 + 70 * (sample // 4**k % 4) for k in range(3))


@pytest.fixture(scope="module")
def colours(tmp_path_factory):
    """40 images of one colour each: a crop of one shows which it is. 36 are for training."""
    images = []
    for i in range(40):
        image = Image.new("RGB", (60 + i, 50 + 2 * i), colour(i))
        images.append(image if i % 5 == 0 else jpeg_bytes(image))
    path = tmp_path_factory.mktemp("ffcv") / "a.beton"
    return write_beton(path, images, [i % 4 for i in range(40)])


def check_colours(ours, batch):
    numbers = ours.source.indices[batch.index.samples]
    for image, number in zip(batch.images.numpy(), numbers, strict=True):
        assert np.abs(image.astype(int) - colour(number)).max() < 10


@pytest.mark.usefixtures("one_torch_thread")  # FFCV gives torch its own number of threads
def test_order_labels_flips_and_masks_are_ours_over_three_epochs(colours):
    ours, folder = loader(colours, "ffcv", workers=2), loader(colours, "folder")
    batches = -(-3 * 36 // 7)
    kept = take(ours.stream(5, 7), batches)
    # All are looked at after all were made: FFCV's own buffers are five batches long.
    for a, b in zip(kept, take(folder.stream(5, 7), batches), strict=True):
        assert np.array_equal(a.index.samples, b.index.samples)
        assert torch.equal(a.labels, b.labels)
        assert torch.equal(a.flip, b.flip)
        check_colours(ours, a)
    assert torch.get_num_threads() == 1


def test_a_batch_is_copied_once_into_what_the_gpu_reads(colours, monkeypatch):
    made = []

    def noted(shape, device):
        made.append((np.empty(shape, dtype=np.uint8), device))
        return made[-1][0]

    monkeypatch.setattr(ffcv_loader, "host_memory", noted)
    (batch,) = take(loader(colours, "ffcv").stream(0, 4), 1)
    assert batch.images.data_ptr() == made[0][0].ctypes.data
    assert made[0][1] == CPU


def test_evaluation_beside_training_and_the_end_of_both(colours):
    """As in a run: the training stream waits, opened, while held-out images are read."""
    ours = loader(colours, "ffcv")
    training = ours.stream(0, 4)
    check_colours(ours, next(training))
    for count, batch_size in ((1, 7), (99, 7), (99, 36)):
        batches = take(ours.in_order(batch_size), count)
        for batch in batches:
            check_colours(ours, batch)
        check_colours(ours, next(training))
    assert [len(b.images) for b in take(ours.in_order(7), 99)] == [7, 7, 7, 7, 7, 1]
    assert streams() == 1
    training.close()
    assert streams() == 0


def test_random_crops_have_the_configured_size(tmp_path):
    """Left to right runs from 0 to 255, so a crop's spread is its width."""
    ramp = np.broadcast_to(np.arange(256, dtype=np.uint8)[None, :, None], (256, 256, 3))
    path = write_beton(tmp_path / "a.beton", [Image.fromarray(ramp.copy())] * 20, [0] * 20)
    area, ratio = (0.2, 0.3), (0.9, 1.1)
    batch = take(loader(path, "ffcv", area=area, ratio=ratio).stream(0, 18), 1)[0]
    # Means of the outer columns: one output pixel inside the crop's edges.
    width = batch.images[:, :, -1, 0].float().mean(1) - batch.images[:, :, 0, 0].float().mean(1)
    width = width.numpy() * 48 / 47
    least, most = (256 * np.sqrt(a * r) for a, r in zip(area, ratio, strict=True))
    assert width.min() > least - 2
    assert width.max() < most + 2
    assert len(np.unique(width)) > 5


def test_the_centre_crop_is_that_of_the_folder_loader(tmp_path):
    """Sides that 7/8 divides: FFCV rounds the box down, we to the nearest."""
    images = [picture(i, 160 + 16 * (i % 3), 192) for i in range(12)]
    path = write_beton(tmp_path / "a.beton", [jpeg_bytes(i) for i in images], [0] * 12)
    ours, folder = (loader(path, kind, test=str(path)) for kind in ("ffcv", "folder"))
    (a,), (b,) = (take(x.in_order(12), 1) for x in (ours, folder))
    # Area against triangle: they average a curved signal over variances s^2/12 and s^2/6 of s = 3.2
    # pixels an output pixel, so f'' s^2/24 apart; f'' <= 40 (4^2 + 5^2 + 7^2) / 160^2 = 0.14, a
    # tenth of a level. Rounding adds one.
    for row in range(12):
        assert levels(a.images[row], b.images[row]) < DECODER + 1
        # Half a pixel of shift would be seen: the pictures' slopes are 2 levels an output pixel.


def test_the_centre_crop_is_ffcvs_own_on_any_size(tmp_path):
    """OpenCV's area average of the box that FFCV documents."""
    import cv2

    images = [textured(i, 90 + 7 * i, 80 + 11 * i) for i in range(10)]
    files = [jpeg_bytes(image, subsampling=i % 3) for i, image in enumerate(images)]
    path = write_beton(tmp_path / "a.beton", files, [0] * 10)
    batch = take(loader(path, "ffcv", test=str(path)).in_order(10), 1)[0]
    for row, data in enumerate(files):
        whole = np.asarray(Image.open(io.BytesIO(data)))
        height, width = whole.shape[:2]
        side = int(min(height, width) * 224 / 256)
        top, left = (height - side) // 2, (width - side) // 2
        box = whole[top : top + side, left : left + side]
        expected = cv2.resize(box, (48, 48), interpolation=cv2.INTER_AREA)
        assert levels(batch.images[row], expected) < DECODER


@pytest.mark.parametrize("mode", ["zero", "reflect", "none"])
def test_small_raw_images_are_shifted_exactly(tmp_path, mode):
    images = [textured(i, 32, 32) for i in range(20)]
    path = write_beton(tmp_path / "raw.beton", images, [i % 2 for i in range(20)])
    data = {"crop": "pad", "image_size": 32, "pad": 4, "pad_mode": mode}
    ours, folder = (loader(path, kind, **data).stream(3, 8) for kind in ("ffcv", "folder"))
    for a, b in zip(take(ours, 5), take(folder, 5), strict=True):
        assert torch.equal(a.images, b.images)
        assert torch.equal(a.labels, b.labels)


class Rows:
    """For FFCV's DatasetWriter: an image of 48x48 pixels under a name of its own, two numbers."""

    def __len__(self):
        return 30

    def __getitem__(self, k):
        return int(k) + 100, np.asarray(textured(int(k), 48, 48)), int(k) % 4


def write_stock(path, mode):
    from ffcv.fields import IntField, RGBImageField
    from ffcv.writer import DatasetWriter

    picture = RGBImageField(write_mode=mode)
    fields = {"number": IntField(), "picture": picture, "label": IntField()}
    writer = DatasetWriter(str(path), fields, page_size=1 << 21, num_workers=1)
    writer.from_indexed_dataset(Rows(), chunksize=7)
    return path


def write_ours(path, mode):
    images = [textured(k, 48, 48) for k in range(30)]
    files = [transcode(jpeg_bytes(i)) for i in images] if mode == "jpg" else images
    return write_beton(path, files, [k % 4 for k in range(30)])


@pytest.mark.parametrize("mode", ["jpg", "raw"])
@pytest.mark.parametrize("write", [write_stock, write_ours])
def test_each_reads_the_others_file(write, mode, tmp_path):
    """Stock FFCV and the native loader on one file: order, labels, and each one's decoder."""
    path = write(tmp_path / "a.beton", mode)
    data = {"test": str(path), "crop": "pad", "pad_mode": "none"}
    ffcv, native = (take(loader(path, k, **data).stream(4, 8), 9) for k in ("ffcv", "native"))
    originals = [np.asarray(textured(k, 48, 48)) for k in range(30)]
    for a, b in zip(ffcv, native, strict=True):
        assert torch.equal(a.labels, b.labels)
        assert torch.equal(a.labels, torch.from_numpy(a.index.samples % 4))
        for row, sample in enumerate(a.index.samples):
            if mode == "raw":
                assert np.array_equal(a.images[row], originals[sample])
                assert np.array_equal(b.images[row], originals[sample])
            else:
                assert levels(a.images[row], b.images[row]) < DECODER
                distances = [levels(b.images[row], original) for original in originals]
                assert int(np.argmin(distances)) == sample


def test_a_corrupt_image_trains_silently_as_documented(tmp_path):
    files = [jpeg_bytes(picture(i, 64, 64)) for i in range(6)]
    good = write_beton(tmp_path / "good.beton", files, [0] * 6)
    content = good.read_bytes()
    at = content.index(files[3])
    path = tmp_path / "bad.beton"
    path.write_bytes(content[:at] + bytes(len(files[3])) + content[at + len(files[3]) :])
    (a,), (b,) = (take(loader(p, "ffcv", test=str(p)).in_order(6), 1) for p in (path, good))
    same = [torch.equal(x, y) for x, y in zip(a.images, b.images, strict=True)]
    assert [same[i] for i in (0, 1, 2, 4, 5)] == [True] * 5
    assert not same[3]


def test_a_fault_in_ffcvs_thread_is_raised_not_waited_for(colours):
    ours = loader(colours, "ffcv")
    backend, still = ours._backend, ours._views[0].without_augmentation()
    backend._stock[still] = backend._stock_loader(still)
    backend._stock[still].code = None
    with pytest.raises(RuntimeError, match="FFCV's thread ended"):
        take(ours.in_order(6), 1)


def test_the_run_says_that_its_crops_cannot_be_repeated(colours):
    source = loader(colours, "folder").source
    for crop, said in (("resized", True), ("pad", False)):
        config = tiny_config(data={"loader": "ffcv", "crop": crop})
        name, why = choose_loader(config.data, source, CPU)
        assert name == "ffcv"
        assert ("which no seed repeats" in why) == said
        assert loader(colours, "ffcv", crop=crop).repeats == (not said)


def test_it_wants_a_beton_file(image_folder):
    with pytest.raises(UserError, match="fastselfie prepare"):
        loader(image_folder, "ffcv")


def test_without_the_extra_one_line_says_how(colours, monkeypatch):
    monkeypatch.delitem(sys.modules, "fastselfie.data.loaders.ffcv", raising=False)
    for name in [n for n in sys.modules if n.split(".")[0] == "ffcv"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "ffcv", None)
    with pytest.raises(UserError, match=r"libturbojpeg0-dev.*fastselfie\[ffcv\]") as caught:
        loader(colours, "ffcv")
    assert "\n" not in str(caught.value)
