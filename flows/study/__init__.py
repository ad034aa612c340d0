"""The study: variants, seeds and controls, compared by paired differences."""
