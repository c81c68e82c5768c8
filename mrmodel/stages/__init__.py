"""The stages of dvc.yaml: a module each, started as ``python -m mrmodel.stages.<stage>``.

A stage reads params.yaml, calls the library, and writes its outputs atomically. DVC on a laptop and
a flow on a worker run the same command.
"""
