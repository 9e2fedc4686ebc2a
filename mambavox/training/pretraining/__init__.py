"""Pre-training of Mamba-HuBERTs: targets, batches by seconds, masked prediction, distillation, exact resumption."""
