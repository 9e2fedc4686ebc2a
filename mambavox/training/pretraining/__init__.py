"""Pre-training of Mamba-HuBERTs: targets, batches by seconds, masked prediction, exact resumption.

``mambavox.training.pretraining.config.PretrainConfig`` says what to do and
``mambavox.training.pretraining.pretrain.pretrain`` does it.
"""
