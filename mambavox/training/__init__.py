"""Training: ``run.py`` is the only driver, ``engine.py`` what all trainings share; a folder a task.

Each task has the same files: ``config.py`` (what to do), ``data.py`` (what is heard), ``objective.py`` (what is learned
and how it is scored) and ``task.py`` (the steps of a run).
"""
