"""Floor 0, a leaf: the fused operations of a Selfie step. Never imports fastselfie."""
