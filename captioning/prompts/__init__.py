"""What the captioner is asked, and what its reply must look like."""
