"""From a config to a trained and evaluated run: settings, set-up, the training loop, checkpoints and the workdir.

Apart from the command line, this is the only room that reads a config. Nothing here renders, searches or exports.
"""
