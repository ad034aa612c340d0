"""The thresholds of the audit."""

from __future__ import annotations

from pydantic import Field

from captioning.prompts.reply_form import ReplyForm


class AuditConfig(ReplyForm):
    """When a caption counts as doubtful."""

    min_images: int = Field(default=3, ge=2)
    """Captions of an identity that must answer a slot before its majority counts, for the flag dissent."""
    majority: float = Field(default=0.6, gt=0.5, le=1)
    """Share (0.5 to 1) of those captions that must agree before another answer is a dissent."""
    rare_images: int = Field(default=1, ge=1)
    """A carried thing in at most this many captions of an identity is suspected to be imagined..."""
    rare_of: int = Field(default=4, ge=2)
    """... if at least this many captions of the identity say what is carried."""
    duplicate_identities: int = Field(default=2, ge=2)
    """A text said of at least this many identities is flagged as a duplicate."""
    low_confidence: float = Field(default=0.5, gt=0, le=1)
    """A slot decoded with a probability (0 to 1) below this is flagged; captions without probabilities never are."""
    low_agreement: float = Field(default=0.75, ge=0, le=1)
    """An attribute whose mean agreement (0 to 1) is below this stands out on the page."""
    shown: int = Field(default=20, ge=0)
    """Identities, and captions of each flag, listed on the page captions.audit.html."""
