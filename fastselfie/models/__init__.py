"""Floor 1: the networks. ResNet v2, attention pooling, and Selfie made of the two."""
