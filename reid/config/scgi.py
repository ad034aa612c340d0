"""Config of CLIP-SCGI (arXiv:2410.09382): its two modules, and what the paper leaves open, with a stated default.

"The port" is the one public reimplementation, NTDuckk/CLIPSCGI; docs/training.md compares paper, port and defaults.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, Literal

from reid.config.numbers import Count, Rate, Share, Size
from reid.config.renamed import RenamedConfig

PromptEnd = Literal["person", "person.", "mixed"]
BEFORE_PROMPT_END: Final = "mixed"
"""What a config without `prompt_end` means: that of a model trained before the setting existed."""


class ScgiConfig(RenamedConfig):
    """Settings of CLIP-SCGI (arXiv:2410.09382), with the published value where the paper gives one."""

    group = "train.scgi"

    cgi: bool = True
    """Caption-guided inversion: put a pseudo-word, computed from image and caption, into the prompt. If off, the prompt
    is the fixed one and L_con contrasts images with their captions."""
    cff: bool = True
    """Contextual feature fusion: an embedding from prompt tokens that attend to image tokens. If off, only the
    image embedding is trained."""
    inversion_tokens: Size = 2
    """K, learnable tokens that attend to the patches in CGI (published best of 1, 2, 4, 8: 2)."""
    depth: Size = 1
    """Cross-attention blocks in CGI (published: 1)."""
    inversion_inputs: Literal["raw", "normalized"] = "raw"
    """v and t in v~ = v * t: CLIP's features as they are, or each token of v and the caption feature t scaled to length
    one. The paper does not say; the port uses raw ones."""
    inversion_feed_norm: bool = False
    """A layer norm before the feed-forward layers of CGI. The paper's formula P = Q' + FFN(Q') has none; the port has
    one."""
    fusion_depth: Count = 2
    """Self-attention blocks in CFF (published: 2)."""
    fusion_tokens: Literal["raw", "refined"] = "raw"
    """Keys and values of CFF: image tokens as they are, or multiplied by the caption feature. The paper does not say;
    the port uses refined ones. Inference does not read a caption, so it cannot use what "refined" trains."""
    supervised: Literal["both", "image", "fused"] = "both"
    """Embeddings that L_id and L_tri see. The paper does not say; the port: "fused". "image" needs scgi.cff=false,
    because CFF does not have another loss."""
    contrast_text: Literal["composed", "caption", "both"] = "composed"
    """Text side of L_con: the composed prompt (paper and port), the caption itself, or the mean of both losses. The
    composed prompt is made from image and caption, so a model can align it without learning what the caption says."""
    contrast_image: Literal["plain", "refined"] = "plain"
    """Image side of L_con: the class token of the joint feature, or v~ of the class token, which contains the caption.
    The paper does not say; the port uses the refined one. With contrast_text=caption, "refined" puts the caption on
    both sides."""
    pairing: Literal["identity", "image"] = "identity"
    """Positives of L_con: the texts of all images of the identity, or of the image itself. The paper does not say; the
    port pairs by image, and halves the sum of both directions."""
    temperature: Rate = 0.07
    """Divides the cosine similarities of L_con. The paper does not say; CLIP starts at 0.07, which the port keeps."""
    prompt_end: PromptEnd = "person"
    """End of the composed and of the fixed prompt. "person" is the spelling of the paper and the port, "person." that
    of CLIP-ReID. "mixed" ends the composed prompt in "person." and the fixed one in "person", as in models trained
    before this setting existed."""
    fixed_prompt_ratio: Share = 0.0
    """Share of the training images for which CFF gets the fixed prompt of test time instead of the composed prompt.
    Paper and port: 0, so that CFF first meets the fixed prompt at test time."""

    def identity(self) -> dict[str, Any]:
        """Return the fields that can change a result, under the names that fingerprints are made of.

        With prompt_end="mixed", settings that are newer than the mixed prompts are left out at their defaults. So the
        models of that time, and their evaluations, are still found.
        """
        fields = super().identity()
        if self.prompt_end != BEFORE_PROMPT_END:
            return fields
        return {name: value for name, value in fields.items() if name not in _NEWER or value != _NEWER[name]}

    def problems(self) -> Iterator[tuple[str, str]]:
        """Yield key and message of each setting that does not work with the others, for a group named scgi."""
        if not self.cgi:
            yield from self._needs_cgi()
        if self.cgi and self.contrast_text == "caption" and not (self.cff and self.fixed_prompt_ratio < 1):
            message = '"caption" leaves CGI without a loss; set {at}scgi.contrast_text=both, or {at}scgi.cgi=false'
            yield "scgi.contrast_text", message
        if self.supervised == "fused" and not self.cff:
            message = '"fused" needs the fused embedding of CFF; set {at}scgi.cff=true or {at}scgi.supervised=image'
            yield "scgi.supervised", message
        if self.supervised == "image" and self.cff:
            message = '"image" leaves CFF without a loss; set {at}scgi.cff=false or {at}scgi.supervised=both'
            yield "scgi.supervised", message

    def _needs_cgi(self) -> Iterator[tuple[str, str]]:
        made = "are made by CGI; set {at}scgi.cgi=true or"
        if self.fusion_tokens == "refined":
            yield "scgi.fusion_tokens", f"refined tokens {made} {{at}}scgi.fusion_tokens=raw"
        if self.contrast_image == "refined":
            yield "scgi.contrast_image", f"refined tokens {made} {{at}}scgi.contrast_image=plain"
        if self.contrast_text == "both":
            yield "scgi.contrast_text", f"composed prompts {made} {{at}}scgi.contrast_text=caption"
        remedy = "of CGI, which is off; set {at}scgi.cgi=true or"
        if self.inversion_inputs == "normalized":
            yield "scgi.inversion_inputs", f'"normalized" scales the inputs {remedy} {{at}}scgi.inversion_inputs=raw'
        if self.inversion_feed_norm:
            yield "scgi.inversion_feed_norm", f"adds a norm to a part {remedy} {{at}}scgi.inversion_feed_norm=false"


_NEWER: Final[dict[str, Any]] = {
    "inversion_inputs": "raw",
    "inversion_feed_norm": False,
    "supervised": "both",
    "contrast_text": "composed",
    "contrast_image": "plain",
    "prompt_end": BEFORE_PROMPT_END,
}
"""Settings that are newer than the mixed prompts -> what training did before."""
