"""Fine-tuning and probes of layers: the task, its data, model, training and scores."""
