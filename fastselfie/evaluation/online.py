"""What P's features are worth while it trains: k-NN and a linear probe, on labels it never sees."""

from __future__ import annotations

from fastselfie.config import Config
from fastselfie.data.dataset import Dataset, limited
from fastselfie.data.inputs import InputTransform
from fastselfie.data.loaders import build_loader
from fastselfie.evaluation.knn import knn_accuracy
from fastselfie.evaluation.representations import evaluate_features, pixel_features
from fastselfie.models.resnet import ResNetV2
from fastselfie.system.accelerator import Accelerator
from fastselfie.system.console import say


class Monitor:
    """Measures P at `steps`, which are none where the set has no labels.

    The same images vote and are voted on every time. Of several processes rank 0 alone measures:
    its batch statistics are the ones that count, and the others wait at most for seconds.

    Raises:
        UserError: see the loaders.
    """

    def __init__(
        self, config: Config, dataset: Dataset, pixels: InputTransform, accelerator: Accelerator
    ) -> None:
        settings = config.pretrain
        self.pixels, self.accelerator = pixels, accelerator
        self.probes = settings.linear_probe
        self.steps: frozenset[int] = frozenset()
        every = settings.knn_every
        if every is None:
            return
        if len(dataset.train.classes) < 2:
            say("pretrain: no k-NN or linear probe on the way: the images are of one class")
            return
        if not dataset.comparable:
            say(
                "pretrain: no k-NN or linear probe on the way: the held-out images have no labels "
                "of the training classes"
            )
            return
        self.steps = frozenset((*range(0, settings.steps, every), settings.steps))

        if accelerator.ranks.is_main:
            data, seed = config.data, config.seed
            voting = limited(dataset.train, settings.knn_images, seed)
            asking = limited(dataset.held_out, settings.knn_queries, seed)
            self.bank, self.queries = (
                build_loader(source, data, seed, accelerator.device) for source in (voting, asking)
            )

    def measure(self, network: ResNetV2, step: int) -> dict[str, float]:
        """knn and linear_probe of P, `network`, after `step`; at step 0 also knn_pixels.

        Empty where none is due. Changes neither weights, batch statistics nor any random draw that
        follows. All processes call it together.
        """
        if step not in self.steps:
            return {}
        return self.accelerator.ranks.broadcast_from_main(lambda: self._measured(network, step))

    def _measured(self, network: ResNetV2, step: int) -> dict[str, float]:
        found = evaluate_features(
            network, self.bank, self.queries, self.pixels, self.accelerator, self.probes
        )
        if step == 0:
            bank, queries = (
                pixel_features(each, self.pixels) for each in (self.bank, self.queries)
            )
            found["knn_pixels"] = knn_accuracy(*bank, *queries)
        return found
