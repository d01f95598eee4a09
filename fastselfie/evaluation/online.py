"""Online evaluation of P's features: k-NN and a linear probe, on labels that P never sees."""

from __future__ import annotations

from fastselfie.config import Config
from fastselfie.data.dataset import Dataset, limited
from fastselfie.data.inputs import InputTransform
from fastselfie.data.loaders import build_loader
from fastselfie.evaluation.knn import knn_accuracy
from fastselfie.evaluation.representations import evaluate_features, pixel_features
from fastselfie.models.resnet import ResNetV2
from fastselfie.system.console import say


class Monitor:
    """Evaluates P's features by k-NN and a linear probe while it trains.

    It always uses the same images. Only rank 0 evaluates, as its batch statistics are the ones that
    are saved; the others wait some seconds.

    Args:
        config: the run's.
        dataset: with labels for both parts; without them nothing is evaluated.
        pixels: makes the network's input; its accelerator has the device and the ranks.

    Attributes:
        steps: after which `measure` evaluates.

    Raises:
        UserError: see the loaders.
    """

    def __init__(self, config: Config, dataset: Dataset, pixels: InputTransform) -> None:
        settings, accelerator = config.pretrain, pixels.accelerator
        self.pixels = pixels
        self.probes = settings.linear_probe
        self.steps: frozenset[int] = frozenset()
        every = settings.knn_every
        if every is None:
            return
        missing = None
        if len(dataset.train.classes) < 2:
            missing = "the images are of one class"
        elif not dataset.comparable:
            missing = "the held-out images have no labels of the training classes"
        if missing:
            say(f"pretrain: no k-NN or linear probe: {missing}")
            return
        self.steps = frozenset((*range(0, settings.steps, every), settings.steps))
        if accelerator.ranks.is_main:
            data, seed, device = config.data, config.seed, accelerator.device
            voting = limited(dataset.train, settings.knn_images, seed)
            asking = limited(dataset.held_out, settings.knn_queries, seed)
            self.bank = build_loader(voting, data, seed, device)
            self.queries = build_loader(asking, data, seed, device)

    def measure(self, network: ResNetV2, step: int) -> dict[str, float]:
        """Evaluate P after `step` if it is one of `steps`. Every rank calls it.

        It changes neither weights nor batch statistics nor the state of a random generator.

        Args:
            network: P.
            step: whole steps done.

        Returns:
            knn, linear_probe and, at step 0, knn_pixels; empty if no evaluation is due.
        """
        if step not in self.steps:
            return {}
        ranks = self.pixels.accelerator.ranks
        return ranks.broadcast_from_main(lambda: self._measured(network, step))

    def _measured(self, network: ResNetV2, step: int) -> dict[str, float]:
        found = evaluate_features(network, self.bank, self.queries, self.pixels, self.probes)
        if step == 0:
            bank, queries = (pixel_features(x, self.pixels) for x in (self.bank, self.queries))
            found["knn_pixels"] = knn_accuracy(*bank, *queries)
        return found
