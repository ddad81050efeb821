"""An error that tells a user everything: what is wrong, where, why, and how to mend it."""

from __future__ import annotations


class ToldError(Exception):
    """`str()` is one complete message for the user. It must never carry a secret."""

    def __init__(self, what: str, *, where: str, why: str, mend: str) -> None:
        super().__init__(what, where, why, mend)
        self.what = what
        self.where = where
        self.why = why
        self.mend = mend

    def __str__(self) -> str:
        return f"{self.where}: {self.what}\n  why:  {self.why}\n  mend: {self.mend}"
