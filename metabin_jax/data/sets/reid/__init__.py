"""The tensorflow-datasets builder, which tensorflow-datasets expects in a package folder of its own.

Nothing else belongs here.
"""
