"""The study: methods and controls trained over seeds and compared by paired differences."""
