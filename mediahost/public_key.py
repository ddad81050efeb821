"""SSH public keys as OpenSSH writes them on one line: kind, base64, comment."""

from __future__ import annotations

import base64
import binascii


def parts(line: str) -> list[bytes]:
    """The strings a key consists of, the first one its kind.

    Raises `ValueError` when the key is damaged or cut off.
    """
    words = line.split(None, 2)
    if len(words) < 2:
        raise ValueError("no key on this line")
    try:
        rest = base64.b64decode(words[1], validate=True)
    except binascii.Error as error:
        raise ValueError(str(error)) from None
    found = []
    while rest:
        # RFC 4253 section 6.6 and RFC 4251 section 5: strings, each after its length in four bytes
        length = int.from_bytes(rest[:4])
        if len(rest) < 4 + length:
            raise ValueError("the key is cut off")
        found.append(rest[4 : 4 + length])
        rest = rest[4 + length :]
    if len(found) < 2 or found[0] != words[0].encode():
        raise ValueError("the key is not of the kind its line says")
    return found


def rsa_bits(line: str) -> int | None:
    """Bits of an RSA key's modulus; None for a key of another kind or a damaged one."""
    try:
        found = parts(line)
    except ValueError:
        return None
    # RFC 4253 section 6.6: "ssh-rsa", exponent, modulus
    if found[0] != b"ssh-rsa" or len(found) != 3:
        return None
    return int.from_bytes(found[2]).bit_length()
