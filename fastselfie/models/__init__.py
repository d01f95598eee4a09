"""The networks: ResNet v2, attention pooling, Selfie and the classifier.

May import: kernels, config, system.
"""
