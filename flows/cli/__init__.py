"""The command line: `commands` declares the commands, and one module per group runs them."""
