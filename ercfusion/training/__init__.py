"""Train models: the LightningModule, its data and callbacks, and run folders."""
