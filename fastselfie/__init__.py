"""FastSelfie: a high-throughput trainer for Selfie (arXiv 1906.02940).

The house, floor by floor (each imports only from below; tests/test_layout.py holds it):

    floor 5  cli, __main__
    floor 4  pretrain, finetune, evaluate, run, doctor, report/
    floor 3  step
    floor 2  data/, checkpoint, log
    floor 1  models/
    floor 0  config, configfile, errors, rng, optim, and the leaf fastselfie.kernels

Shape legend, used in names everywhere: B images, N patches an image, M masked, K = N - M
visible, D width, H W C pixels, P patch side.
"""

__version__ = "0.1.0"
