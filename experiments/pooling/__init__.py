"""Strides or max-pooling, and what a support vector machine makes of the same images."""
