"""Settings of the caption stage."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from captioning.cleaning import CleaningConfig
from captioning.regeneration import RegenerateConfig
from captioning.server_config import ServerConfig
from captioning.templates import Template, get_template
from data.config import RUNTIME, Config
from data.device import CPU, Device
from data.errors import ConfigError

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
    """Commit, tag or branch of a hub id; pin a commit to make a run repeatable. None is the main branch. With engine
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
            problems.append("revision is for hub ids; the embedded model has none")
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def _server_problems(self) -> list[str]:
        if self.engine == "transformers":
            return []
        problems = []
        if self.model == TINY:
            problems.append("engine openai needs model: the name under which the server offers it")
        if self.decoding == "slots":
            problems.append("decoding slots runs in this process only; with engine openai use free")
        if self.dtype != "auto" or self.quantization != "none":
            problems.append("with engine openai the server decides dtype and quantization; say them in revision")
        return problems

    def _decoding_problems(self) -> list[str]:
        problems = []
        if self.decoding == "slots" and self.max_new_tokens is not None:
            problems.append("max_new_tokens is for free decoding; with slots the template sets the length")
        if self.decoding == "slots" and self.regenerate.times:
            problems.append("regenerate is for free decoding; with slots every reply is well-formed")
        if self.decoding == "slots" and not self.prompt_template.pattern:
            problems.append(f"decoding slots needs a template with a pattern, which {self.template} has not; use free")
        if self.decoding == "free" and self.cleaning.drop_below > 0:
            problems.append("cleaning.drop_below needs the probabilities that only decoding slots gives")
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
