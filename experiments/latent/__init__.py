"""Latent perturbations with few labels."""
