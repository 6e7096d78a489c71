"""base, gda, pcr and mgr on digits."""
