"""The train stage: loop, optimizer, checkpoints, validation, prompt learning."""
