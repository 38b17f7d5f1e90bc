"""The tensorflow-datasets builder; tfds wants one in a package folder of its own name."""
