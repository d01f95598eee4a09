"""What the host does for a batch in C++: draws, and gathers of small images.

Each is defined by a plain function in fastselfie.kernels.reference or numpy's indexing, and equals
it to the bit.
"""

from fastselfie.kernels.host._host import gather_crops, uniform

__all__ = ["gather_crops", "uniform"]
