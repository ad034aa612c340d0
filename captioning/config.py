"""Settings of the caption stage, of the captioning server and of the audit."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from captioning.prompts.cleaning import CleaningConfig
from captioning.prompts.replies import RegenerateConfig, ReplyForm
from captioning.prompts.templates import Template, get_template
from data.config import RUNTIME, SECRET, Config, RuntimeStr
from data.device import CPU, Device
from data.errors import ConfigError, raise_settings

TINY = "tiny"
"""Name of the embedded default model."""

Framing = Literal["pad", "stretch", "center_crop"]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Quantization = Literal["none", "8bit", "4bit"]
Decoding = Literal["free", "slots"]
ImageTokens = Literal["all", "body", "body_only"]
EngineName = Literal["transformers", "openai", "imported", "dataset"]


class ServerConfig(Config):
    """A captioning server with the OpenAI chat API, such as vLLM or SGLang, and how to call it.

    Address, key, concurrency and retries never change a caption. The image size and the mean color do: they must match
    the model that the server runs.
    """

    url: RuntimeStr = "http://127.0.0.1:8000/v1"
    """Base URL of the API, without user, password or query; /chat/completions and /models are appended."""
    key_variable: RuntimeStr | None = None
    """Name of the environment variable that holds the API key; the key itself is never written to a file. None: no
    key."""
    concurrency: Annotated[int, RUNTIME] = Field(default=32, ge=1, le=1024)
    """Concurrent requests. The server batches them: 64 to 256 keep a large GPU busy."""
    timeout: Annotated[float, RUNTIME] = Field(default=120.0, gt=0, le=3600)
    """Seconds for one request, including the whole response."""
    attempts: Annotated[int, RUNTIME] = Field(default=6, ge=1, le=20)
    """Maximum number of attempts for a request that fails temporarily (timeout, no connection, HTTP 429 or 5xx, invalid
    JSON)."""
    backoff: Annotated[float, RUNTIME] = Field(default=1.0, ge=0, le=60)
    """Seconds before the second attempt. The pause doubles up to 30; a longer Retry-After takes precedence."""
    image_side: int = Field(default=336, ge=8, le=4096)
    """Side of the model's square input in pixels. Images are framed to this size, so the server does not crop them."""
    image_mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    """Mean color of the model's normalization (RGB, 0 to 1), used for padding; CLIP's by default."""

    @field_validator("url")
    @classmethod
    def _plain_address(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("must be an address such as http://127.0.0.1:8000/v1")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise PydanticCustomError(
                "secret_address",
                "must not contain a user, password or query; name the key's environment variable in "
                "caption.server.key_variable",
                {SECRET: True},
            )
        return url.rstrip("/")

    @field_validator("image_mean")
    @classmethod
    def _fractions(cls, mean: tuple[float, float, float]) -> tuple[float, float, float]:
        if not all(0 <= value <= 1 for value in mean):
            raise ValueError("must be fractions from 0 to 1")
        return mean


class CaptionConfig(Config):
    """The captioning model, how images are prepared for it, and how it writes captions."""

    engine: EngineName = "transformers"
    """transformers: run the model in this process. openai: use a server with the OpenAI chat API. imported: use no
    model and take every caption from `clip-scgi corrections import`; needs caption.corrections=use. dataset: use no
    model and take the sentences that come with the dataset; needs caption.template=free."""
    sentence: int = Field(default=0, ge=0)
    """dataset: which sentence of each image is its caption, from 0. An image with fewer sentences has no caption."""
    model: str = Field(default=TINY, min_length=1)
    """"tiny" (embedded), a folder with a LLaVA (model type llava, llava_next or llava_onevision), or a hub id such as
    llava-hf/llava-1.5-7b-hf. With engine openai: the name of any model on the server."""
    revision: str | None = None
    """Commit, tag or branch of a hub id; None is the main branch. A branch means the commit in this machine's hub cache
    (`hf download` updates it), which the captions record; set a commit for the same captions on every machine. With
    engine openai: any label for what the server runs (commit, dtype, quantization), which it does not report; another
    label captions all images again."""
    server: ServerConfig = ServerConfig()
    """The server; used with engine openai."""
    template: str = "scgi"
    """The instruction to the model: scgi (the paper's), port45, free, closed, or the path of a .toml file."""
    framing: Framing = "pad"
    """How to fit a crop to the model's input, a square or a tall grid of tiles: pad (whole body, padded with the mean
    color), stretch (whole body, distorted), or center_crop (as the stock processor of LLaVA-1.5: in a square, a 1:2
    crop loses half of its rows; for comparison only)."""
    image_tokens: ImageTokens = "all"
    """Which patches the model reads: all; body (the language model reads only the image tokens of patches that the crop
    touches, without the padding, at their own positions); or body_only (the vision tower skips the padding too, which
    changes the features of all patches; CLIP towers only). Both are faster and change some captions: measure them on
    your model first (docs/captions.md). They need framing=pad."""
    dtype: Dtype = "auto"
    """Number format of the weights. auto is float32 for the embedded model and bfloat16 for any other."""
    quantization: Quantization = "none"
    """none, or 8bit or 4bit (nf4) with bitsandbytes: less memory, slower, slightly different text."""
    decoding: Decoding = "free"
    """free: greedy text until the end token. slots: the template's words are fixed and the model only chooses its
    slots, from closed vocabularies, each with a log-probability."""
    max_new_tokens: int | None = Field(default=None, ge=1, le=1024)
    """Maximum number of generated tokens in free decoding; a reply without an end token is marked truncated. None: the
    template's."""
    regenerate: RegenerateConfig = RegenerateConfig()
    """When to re-prompt the model because its reply is malformed (free decoding). The first reply is kept as well."""
    cleaning: CleaningConfig = CleaningConfig()
    """What to leave out of the column caption; raw_text and the attr_ columns stay as generated. A change does not
    caption any image again."""
    compile: Annotated[bool, RUNTIME] = False
    """Compile the vision tower and the language model with torch.compile, with a cache of fixed size. The first batch
    waits for the compiler, so it pays off only for many images."""
    corrections: Literal["ignore", "use"] = "ignore"
    """use: apply the corrections of this template to the captions that audit, training and report read
    (docs/captions.md). ignore: read the model's captions only."""
    batch_size: Annotated[int, RUNTIME] = Field(default=32, ge=1, le=4096)
    """Images per batch; halved when the device runs out of memory. Recorded in each row as provenance."""
    device: Device = "auto"
    """auto (the first CUDA device if there is one, else the CPU), cpu, cuda or cuda:N."""
    workers: Annotated[int, RUNTIME] = Field(default=4, ge=1, le=256)
    """Threads that read and frame images ahead of the model."""

    @field_validator("template")
    @classmethod
    def _template_exists(cls, template: str) -> str:
        try:
            get_template(template)
        except ConfigError as error:
            raise ValueError(str(error)) from error
        return template

    def identity(self) -> dict[str, Any]:
        """Return the fields that can change a result.

        `image_tokens`, `corrections` and `sentence` only if they are not the default, so that artifacts from before
        these settings are found.
        """
        fields = super().identity()
        defaults = (("image_tokens", "all"), ("corrections", "ignore"), ("sentence", 0))
        return {name: value for name, value in fields.items() if (name, value) not in defaults}

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        problems = self._text_problems()
        if self.uses_model:
            problems += [*self._server_problems(), *self._decoding_problems(), *self._image_token_problems()]
        if self.model == TINY and self.revision is not None:
            problems.append(
                ("revision", "only hub ids have a revision, the embedded model does not; set {at}revision=null")
            )
        raise_settings(problems)
        return self

    def _text_problems(self) -> list[tuple[str, str]]:
        """Return the problems of the settings of engines without a model."""
        problems = []
        if self.engine == "imported" and self.corrections == "ignore":
            problems.append(("corrections", "engine imported takes every caption from them; set {at}corrections=use"))
        if self.engine == "dataset" and self.prompt_template.pattern:
            remedy = "set {at}template=free"
            problems.append(("template", f"the sentences of a dataset do not follow {self.template}; {remedy}"))
        if self.engine != "dataset" and self.sentence:
            problems.append(("sentence", f"has no effect with engine {self.engine}, only with dataset; remove it"))
        return problems

    def _server_problems(self) -> list[tuple[str, str]]:
        if self.engine != "openai":
            return []
        problems = []
        if self.model == TINY:
            problems.append(
                ("model", "engine openai needs the model's name on the server; for example {at}model=llava")
            )
        if self.decoding == "slots":
            problems.append(("decoding", "engine openai cannot decode slots; set {at}decoding=free"))
        for key, value in (("dtype", "auto"), ("quantization", "none")):
            if getattr(self, key) != value:
                remedy = f"set {{at}}{key}={value}, and describe the server in {{at}}revision"
                problems.append((key, f"with engine openai the server decides this; {remedy}"))
        return problems

    def _image_token_problems(self) -> list[tuple[str, str]]:
        if self.image_tokens == "all":
            return []
        if self.engine == "openai":
            return [("image_tokens", "with engine openai the server decides this; set {at}image_tokens=all")]
        if self.framing != "pad":
            problem = f"{self.image_tokens} leaves out the padding, and framing={self.framing} adds none"
            return [("image_tokens", f"{problem}; set {{at}}image_tokens=all or {{at}}framing=pad")]
        return []

    def _decoding_problems(self) -> list[tuple[str, str]]:
        problems = []
        slots = self.decoding == "slots"
        if slots and self.max_new_tokens is not None:
            problem = "applies to free decoding; with slots the template sets the length; set {at}max_new_tokens=null"
            problems.append(("max_new_tokens", problem))
        if slots and self.regenerate.times:
            problem = "applies to free decoding; with slots every reply is well-formed; set {at}regenerate.times=0"
            problems.append(("regenerate.times", problem))
        if slots and not self.prompt_template.pattern:
            problem = f"slots needs a template with a pattern, which {self.template} lacks; set {{at}}decoding=free"
            problems.append(("decoding", problem))
        if not slots and self.cleaning.drop_below > 0:
            problem = "needs the probabilities of slot filling; set {at}decoding=slots or {at}cleaning.drop_below=0"
            problems.append(("cleaning.drop_below", problem))
        return problems

    @property
    def prompt_template(self) -> Template:
        """The template that `template` names."""
        return get_template(self.template)

    @property
    def token_limit(self) -> int:
        """Maximum number of generated tokens."""
        return self.max_new_tokens or self.prompt_template.max_new_tokens

    @property
    def uses_model(self) -> bool:
        """True if a model writes the captions, here or on a server."""
        return self.engine in ("transformers", "openai")

    @property
    def local_device(self) -> str:
        """The device that this process computes on: the CPU with a server, so that it does not occupy a GPU."""
        return self.device if self.engine == "transformers" else CPU

    @property
    def number_format(self) -> str:
        """The dtype with auto resolved; depends only on the model, so that no fingerprint depends on the machine."""
        if self.dtype != "auto":
            return self.dtype
        return "float32" if self.model == TINY else "bfloat16"


class AuditConfig(ReplyForm):
    """The thresholds above or below which the audit flags a caption."""

    min_images: int = Field(default=3, ge=2)
    """Captions of an identity that must answer a slot before their majority counts (flag dissent)."""
    majority: float = Field(default=0.6, gt=0.5, le=1)
    """Share (0.5 to 1) of those captions that must agree before another answer is a dissent."""
    rare_images: int = Field(default=1, ge=1)
    """A carried item that appears in at most this many captions of an identity is a suspected hallucination..."""
    rare_of: int = Field(default=4, ge=2)
    """... if at least this many captions of the identity say what is carried."""
    duplicate_identities: int = Field(default=2, ge=2)
    """A text that is used for at least this many identities is flagged as a duplicate."""
    low_confidence: float = Field(default=0.5, gt=0, le=1)
    """A slot decoded with a probability (0 to 1) below this is flagged; captions without probabilities are not."""
    low_agreement: float = Field(default=0.75, ge=0, le=1)
    """An attribute whose mean agreement (0 to 1) is below this is highlighted on the page."""
    shown: int = Field(default=20, ge=0)
    """Maximum number of identities, and of captions per flag, listed on the page captions.audit.html."""
