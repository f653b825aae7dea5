"""What all rooms use: scale, store, files, remote folders, workers, the training loop."""
