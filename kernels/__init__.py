"""The fused operations of a Selfie step and their references. Never imports fastselfie."""
