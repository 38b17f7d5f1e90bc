"""A trained model in use: image files to features, feature files, search, and thresholds with their error rates.

Nothing here trains, and nothing here knows how a model was configured.
"""
