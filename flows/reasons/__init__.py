"""Why a stage runs: what changed since its last artifact."""
