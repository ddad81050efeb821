"""The one error the lab raises for what a person can mend: a missing program, a full disk, a taken port.

It carries three texts, so that a caller can lay them out; it must never wrap a programming mistake, whose
traceback is worth more than a polite message.
"""


class LabError(Exception):
    """Something outside the lab's code stops it. `what` failed, `why` it failed, `mend`: what to do now."""

    def __init__(self, what: str, why: str, mend: str) -> None:
        self.what = what
        self.why = why
        self.mend = mend
        super().__init__(what, why, mend)

    def __str__(self) -> str:
        return f"{self.what}: {self.why}\nTo mend it: {self.mend}"
