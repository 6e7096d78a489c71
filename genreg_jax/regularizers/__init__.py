"""The regularisers, one paper a file."""
