"""What all stages share: the indexed images, the run context, and the Stage object."""
