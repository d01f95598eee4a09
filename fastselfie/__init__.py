"""FastSelfie: a high-throughput trainer for Selfie (arXiv 1906.02940).

The folders and what each may import: docs/architecture.md, held by import-linter.

Shape legend, used in names everywhere: B images, N patches an image, M masked, K = N - M
visible, D width, H W C pixels, P patch side.
"""

__version__ = "0.2.0"
