"""The readings of phantom embeddings against base."""
