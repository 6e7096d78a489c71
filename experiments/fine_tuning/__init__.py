"""Fine-tuning with few labels, from ImageNet's weights."""
