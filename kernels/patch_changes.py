"""What `patchify` may change in each patch, so that its neighbours are harder to recognise by it.

B images, G places of the grid in each, P the side of a cell of the grid, W that of a window in it.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class PatchChanges(NamedTuple):
    """Changes of the patches of a batch. Entry [b, g] is for the patch at place g of image b.

    Attributes:
        window: W in pixels, at most P. Only this part of a cell is kept; None: all of it.
        corners: (B, G, 2) int64, the top and the left of the window in its cell, in [0, P - W],
            after the image is mirrored. None: (P - W) // 2 for both, in the centre.
        grey: (B, G) bool, which patches lose their colour: each level becomes the luma of
            ITU-R BT.601, rounded as Pillow's mode L. Needs C = 3. None: no patch.
        tone: (B, G, 2) floats, contrast and brightness. Levels in 0..1 become
            mean + contrast * (level - mean) + brightness and are not clipped. None: as (1, 0).
    """

    window: int | None = None
    corners: Tensor | None = None
    grey: Tensor | None = None
    tone: Tensor | None = None

    def window_of(self, patch: int) -> int:
        """Return W for cells of P = `patch` pixels."""
        return patch if self.window is None else self.window


UNCHANGED = PatchChanges()
