"""What a process inherits from its environment, and what ends with it."""
