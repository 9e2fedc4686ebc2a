"""Training one run: configuration, backbone, features, glue on transformers' ``Trainer``, the run folder.

``mambavox.training.config.AdaptConfig`` says what to do and ``mambavox.training.adapt.adapt`` does it.
"""
