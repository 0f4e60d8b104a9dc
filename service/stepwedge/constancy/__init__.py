"""Constancy: the model's reference set through the live path, beside the answers of the day of acceptance."""
