"""The tensorflow-datasets builder, which has to live in a package folder of its own name.

Nothing else belongs here.
"""
