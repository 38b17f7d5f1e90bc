"""Weight files of other projects: reads them, recognises the project, and fills our variables.

Nothing here runs code from a file or builds a model.
"""
