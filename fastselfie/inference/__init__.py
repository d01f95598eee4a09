"""What a finished run is used for: evaluation, predictions and features of new images.

May import: runs and what is below it.
"""
