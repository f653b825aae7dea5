"""Generative recommendation with semantic IDs: the library that the chapters of the workbench call.

Modules follow the pipeline, and a module imports only from stages to its left:

    data -> embed -> quantize -> semantic_ids -> trie -> timeline -> decode -> evaluate -> recommender

`import semid_lib` loads nothing; import the module that you need.
"""

__version__ = "0.1.0"
