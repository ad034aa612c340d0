"""Access to object stores through fsspec: file systems, requests that are repeated, and errors that name a remedy."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, Final, TypeVar

from data.errors import ConfigError, RetryableError
from data.sources.address import PACKAGES, is_listed, scheme_of, shown

ATTEMPTS: Final = 4
FIRST_WAIT_S: Final = 0.5
_NO_CREDENTIALS: Final = ("NoCredentialsError", "DefaultCredentialsError", "ClientAuthenticationError")
_NO_ENDPOINT: Final = "Invalid endpoint"
"""Beginning of botocore's message about an endpoint without a scheme."""
_LATER: Final = (408, 429)
"""Answers of a web server that ask to come back."""
_REFUSED: Final = (401, 403)
"""Answers of a web server that refuses to send a file."""
_EXTRA: Final = {"s3fs": "'clip-scgi[remote]'", "aiohttp": "aiohttp"}

T = TypeVar("T")


@cache
def filesystem(scheme: str) -> Any:
    """Return the file system of a scheme. Raises ConfigError if its package is not installed."""
    package = PACKAGES[scheme]
    try:
        import fsspec

        # Its own cache of listings would hide changes.
        return fsspec.filesystem(scheme, use_listings_cache=False)
    except ImportError as error:
        wanted = _EXTRA.get(package, package)
        raise ConfigError(
            f"addresses with {scheme}:// need the package {package}, which is not installed: pip install {wanted}"
        ) from error


def repeated(place: Path | str, call: Callable[[], T]) -> T:
    """Return what `call` returns; repeat it after errors that may be gone soon.

    Raises FileNotFoundError, PermissionError, IsADirectoryError and MemoryError at once.
    """
    for attempt in range(ATTEMPTS):
        try:
            return call()
        except (PermissionError, IsADirectoryError, MemoryError):
            raise
        except Exception as error:  # each provider has its own types
            if isinstance(error, FileNotFoundError) and is_answer(place, error):
                raise
            if getattr(error, "status", 0) in _REFUSED:  # of a web server, whose errors are those of HTTP
                raise PermissionError(str(error)) from error
            if type(error).__name__ in _NO_CREDENTIALS:
                raise ConfigError(f"{shown(place)} needs credentials. {credentials(place)}") from error
            if str(error).startswith(_NO_ENDPOINT):
                raise ConfigError(
                    f"{shown(place)} cannot be read: the endpoint is not a URL; set AWS_ENDPOINT_URL to one such as"
                    " http://127.0.0.1:9000"
                ) from error
            if attempt == ATTEMPTS - 1:
                reason = error.__cause__ if isinstance(error, FileNotFoundError) else error
                raise RetryableError(
                    f"{shown(place)} cannot be reached ({type(reason).__name__}) after {ATTEMPTS} attempts. Check the"
                    f" network, the address and the provider's endpoint, then run again. {credentials(place)}"
                ) from error
        time.sleep(FIRST_WAIT_S * 2**attempt)
    raise AssertionError("the loop returns or raises")


def is_answer(place: Path | str, error: FileNotFoundError) -> bool:
    """Return True if the store has said that an object does not exist.

    For web servers, fsspec also raises FileNotFoundError if they do not answer, or answer that they cannot now.
    """
    if is_listed(place) or error.__cause__ is None:
        return True
    status = getattr(error.__cause__, "status", 0)
    return 400 <= status < 500 and status not in _LATER


def credentials(place: Path | str) -> str:
    """Return a sentence that says where a store takes its credentials from."""
    hints = {
        "s3": "Set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; AWS_ENDPOINT_URL for another server"
        " than Amazon's; FSSPEC_S3_ANON=true for a public bucket",
        "gs": "Set GOOGLE_APPLICATION_CREDENTIALS, or log in with gcloud",
        "az": "Set AZURE_STORAGE_ACCOUNT_NAME and its credentials",
        "hf": "Set HF_TOKEN",
    }
    names = {"gcs": "gs", "abfs": "az"}
    scheme = scheme_of(place)
    return hints.get(names.get(scheme, scheme), "Credentials come from the environment, not from settings")
