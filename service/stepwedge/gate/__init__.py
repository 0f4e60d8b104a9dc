"""What may reach the model, and what may not."""
