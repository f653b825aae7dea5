"""What all rooms use: scale, store, files, workers, training loop, chapters."""
