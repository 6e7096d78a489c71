"""base, gda, pcr and mgr on FashionMNIST."""
