"""Images and their labels: records and manifests, samplers, batches, the image cache, augmentation, synthetic people.

Published data sets live in `sets`. Nothing here knows a model, a loss or a config.
"""
