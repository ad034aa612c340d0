"""The audit stage: agreement of captions within an identity, flags on single captions, and the page that shows both."""
