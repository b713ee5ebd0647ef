"""npllama."""
