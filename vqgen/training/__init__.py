"The loop that trains every model, and what it needs: batches, optimizers, checkpoints, devices, trackers."
