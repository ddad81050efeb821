"""Makes new secrets from the operating system's random source.

The kind of a generator is kept with the entry, so that `mediahost secrets rotate` can make another
value of the same kind. It must never use a source of randomness other than the stdlib's `secrets`.
"""

from __future__ import annotations

import base64
import functools
import secrets
from collections.abc import Callable

# Letters and digits without the look-alikes 0 O o 1 l I: a password is sometimes read from a screen
# and typed into a television. None needs quoting in a URL, a shell or YAML.
PASSWORD_ALPHABET = "23456789abcdefghijkmnpqrstuvwxyzABCDEFGHJKLMNPQRSTUVWXYZ"  # noqa: S105 - not a password

# 16 characters of this alphabet are 92 bits, beyond guessing even when a service stores a fast hash.
PASSWORD_MINIMUM = 16


def api_key() -> str:
    """Return 32 lowercase hex digits (128 bits), the form that the *arr applications use."""
    return secrets.token_hex(16)


def password(length: int = 32) -> str:
    """Return `length` characters (at least 16) of PASSWORD_ALPHABET, 5.8 bits each."""
    if length < PASSWORD_MINIMUM:
        raise ValueError(f"a generated password has at least {PASSWORD_MINIMUM} characters, not {length}")
    return "".join(secrets.choice(PASSWORD_ALPHABET) for _ in range(length))


def token() -> str:
    """Return 43 URL-safe characters (256 bits); the first is a letter or digit, never an option's dash."""
    while True:
        candidate = secrets.token_urlsafe(32)
        if candidate[0].isalnum():
            return candidate


def totp() -> str:
    """Return 32 characters of base32 (160 bits), what RFC 4226 (section 4, R6) recommends for a code's secret."""
    return base64.b32encode(secrets.token_bytes(20)).decode()


GENERATED_KINDS: dict[str, Callable[[], str]] = {
    "api_key": api_key,
    "password": password,
    "token": token,
    "totp": totp,
}

# What a generator that is not in the table leaves behind: generated, but not by a rule known here.
CUSTOM_KIND = "custom"


def kind_of(generator: Callable[[], str]) -> str:
    """Return the kind of `generator`, seen through functools.partial; CUSTOM_KIND when it is not ours."""
    inner: object = generator
    while isinstance(inner, functools.partial):
        inner = inner.func
    for kind, known in GENERATED_KINDS.items():
        if inner is known:
            return kind
    return CUSTOM_KIND


def another(kind: str, length: int) -> str:
    """Return a new value of a kind of GENERATED_KINDS; a password gets the former one's `length`."""
    if kind == "password":
        return password(max(length, PASSWORD_MINIMUM))
    return GENERATED_KINDS[kind]()
