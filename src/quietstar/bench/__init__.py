"""What things cost: time and memory against the plain base model."""
