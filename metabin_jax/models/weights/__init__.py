"""Weight files of other projects: reading them, recognising whose they are, and putting them into our variables.

No code in a file is ever run. Nothing here builds a model.
"""
