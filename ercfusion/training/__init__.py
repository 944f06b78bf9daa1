"""Training: the one LightningModule, its data, its callbacks, and run folders."""
