"""Settings of the caption stage."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from captioning.config_server import ServerConfig
from captioning.prompts.cleaning import CleaningConfig
from captioning.prompts.regeneration import RegenerateConfig
from captioning.prompts.templates import Template, get_template
from data.config import RUNTIME, Config
from data.device import CPU, Device
from data.errors import ConfigError, raise_settings

TINY = "tiny"
"""The name of the embedded default model."""

Framing = Literal["pad", "stretch", "center_crop"]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Quantization = Literal["none", "8bit", "4bit"]
Decoding = Literal["free", "slots"]
EngineName = Literal["transformers", "openai"]


class CaptionConfig(Config):
    """Which model captions, how it sees the image and how it writes."""

    engine: EngineName = "transformers"
    """transformers: the model runs in this process. openai: a server with the OpenAI chat API runs it."""
    model: str = Field(default=TINY, min_length=1)
    """"tiny" (embedded), a folder with a LLaVA-1.5 model, or a hub id such as llava-hf/llava-1.5-7b-hf. With engine
    openai: the name under which the server offers it."""
    revision: str | None = None
    """Commit, tag or branch of a hub id; None is the main branch. What this machine's hub cache has of a branch is used
    and recorded as its commit (`hf download` brings a newer one); pin a commit to caption alike everywhere. With engine
    openai: any word for what the server runs (commit, dtype, quantization), as it does not tell; another word captions
    anew."""
    server: ServerConfig = ServerConfig()
    """The server, for engine openai."""
    template: str = "scgi"
    """What the model is asked: scgi (the paper's), port45, free, closed, or the path of a .toml file."""
    framing: Framing = "pad"
    """How a crop becomes the model's square: pad (whole body, in the mean colour), stretch (whole body, distorted), or
    center_crop (the stock processor: of a 1:2 crop half the rows are lost; for comparison only)."""
    dtype: Dtype = "auto"
    """Number format of the weights. auto is float32 for the embedded model and bfloat16 for any other."""
    quantization: Quantization = "none"
    """8bit or 4bit (nf4) by bitsandbytes: less memory, slower, slightly different text."""
    decoding: Decoding = "free"
    """free: greedy text until the end token. slots: the template's words are given and only its slots are chosen,
    from the closed vocabularies, each with a log-probability."""
    max_new_tokens: int | None = Field(default=None, ge=1, le=1024)
    """Limit of generated tokens in free decoding; a reply without an end is marked truncated. None: the template's."""
    regenerate: RegenerateConfig = RegenerateConfig()
    """When the model is asked again because its reply is malformed (free decoding). The first reply stays beside."""
    cleaning: CleaningConfig = CleaningConfig()
    """What is left out of the column caption; raw_text and the attr_ columns stay as the model wrote. Changing it
    captions nothing again."""
    compile: Annotated[bool, RUNTIME] = False
    """Compile the vision tower and the language model with torch.compile, over a cache of fixed size. The
    first batch waits for the compiler, so it is for many images."""
    batch_size: Annotated[int, RUNTIME] = Field(default=32, ge=1, le=4096)
    """Images per batch; halved when the device runs out of memory. Written into each row as provenance."""
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

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        problems = [*self._server_problems(), *self._decoding_problems()]
        if self.model == TINY and self.revision is not None:
            problems.append(("revision", "only hub ids have one, the embedded model does not; set {at}revision=null"))
        raise_settings(problems)
        return self

    def _server_problems(self) -> list[tuple[str, str]]:
        if self.engine == "transformers":
            return []
        problems = []
        if self.model == TINY:
            told = "engine openai needs the name under which the server offers the model, such as {at}model=llava"
            problems.append(("model", told))
        if self.decoding == "slots":
            problems.append(("decoding", "engine openai cannot decode slots; set {at}decoding=free"))
        told = "with engine openai the server decides it; set {at}%s, and name what the server runs in {at}revision"
        if self.dtype != "auto":
            problems.append(("dtype", told % "dtype=auto"))
        if self.quantization != "none":
            problems.append(("quantization", told % "quantization=none"))
        return problems

    def _decoding_problems(self) -> list[tuple[str, str]]:
        problems = []
        slots = self.decoding == "slots"
        if slots and self.max_new_tokens is not None:
            told = "is for free decoding, with slots the template sets the length; set {at}max_new_tokens=null"
            problems.append(("max_new_tokens", told))
        if slots and self.regenerate.times:
            told = "is for free decoding, with slots every reply is well-formed; set {at}regenerate.times=0"
            problems.append(("regenerate.times", told))
        if slots and not self.prompt_template.pattern:
            told = f"slots needs a template with a pattern, and {self.template} has none; set {{at}}decoding=free"
            problems.append(("decoding", told))
        if not slots and self.cleaning.drop_below > 0:
            told = "needs the probabilities that slots give; set {at}decoding=slots or {at}cleaning.drop_below=0"
            problems.append(("cleaning.drop_below", told))
        return problems

    @property
    def prompt_template(self) -> Template:
        """The template object."""
        return get_template(self.template)

    @property
    def token_limit(self) -> int:
        """Limit of generated tokens."""
        return self.max_new_tokens or self.prompt_template.max_new_tokens

    @property
    def local_device(self) -> str:
        """The device this process computes on: with a server none, so that no GPU is held."""
        return self.device if self.engine == "transformers" else CPU

    @property
    def number_format(self) -> str:
        """The dtype with auto resolved; it depends on the model alone, so that a key never depends on the machine."""
        if self.dtype != "auto":
            return self.dtype
        return "float32" if self.model == TINY else "bfloat16"
