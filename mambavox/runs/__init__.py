"""What every run has: configuration, folder, result, model card. Nothing here imports torch."""
