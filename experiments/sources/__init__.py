"""Sources of MGR's samples, on FashionMNIST."""
