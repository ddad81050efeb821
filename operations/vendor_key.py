"""The signing key of a vendor's package repository: fetched, its fingerprint checked before apt may trust it.

What was verified is remembered on the host, so that a run without a change fetches nothing, and a key that was
exchanged since is noticed.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from facts.snapshot import STATE_DIRECTORY, Snapshot
from operations.convergence import Step


@dataclass(frozen=True)
class VendorKey:
    """A key at `url` that must have `fingerprint` (40 hexadecimal digits) to become `keyring`.

    `vendor` is the name users know; `url_setting` and `fingerprint_setting` are the keys of the configuration that
    mend what fails. `name` is that of the record on the host.
    """

    name: str
    vendor: str
    keyring: str
    url: str
    fingerprint: str
    url_setting: str
    fingerprint_setting: str

    @property
    def record(self) -> str:
        """Holds the fingerprint that was asked for and the digest of the file that had it."""
        return record_path(self.name)


def record_path(name: str) -> str:
    """Where what was verified is remembered."""
    return f"{STATE_DIRECTORY}/keys/{name}"


def key_steps(key: VendorKey, seen: Snapshot) -> list[Step]:
    """Fetch the key when it is not the one that was verified before."""
    present = seen.paths.get(key.keyring)
    recorded = seen.contents.get(key.record, "").split()
    if present is not None and recorded == [key.fingerprint, present.sha256] and present.mode == "644":
        return []
    command = f"""umask 022
mkdir -p /etc/apt/keyrings {STATE_DIRECTORY}/keys
new={key.keyring}.new
curl -fsSL --retry 3 --max-time 60 -o "$new" {shlex.quote(key.url)} || {{
  echo "{key.url}: the signing key of {key.vendor}'s repository cannot be fetched; check {key.url_setting} and the \
network" >&2
  exit 1; }}
home=$(mktemp -d)
# With --show-keys every primary key of the file is listed; more than one, or another, is refused.
found=$(gpg --homedir "$home" --batch --quiet --show-keys --with-colons "$new" 2>/dev/null |
  awk -F: '$1=="pub"{{p=1}} $1=="fpr"&&p{{print $10; p=0}}')
rm -rf "$home"
if [ "$found" != {key.fingerprint} ]; then
  rm -f "$new"
  echo "{key.url}: the key has fingerprint '$found', not {key.fingerprint}. Nothing was installed from there." >&2
  echo "If {key.vendor} has a new key, check it on their site and set {key.fingerprint_setting}." >&2
  exit 1
fi
chmod 0644 "$new"
printf '%s %s\\n' {key.fingerprint} "$(sha256sum "$new" | cut -d' ' -f1)" >{key.record}.new
mv -f {key.record}.new {key.record}
mv -f "$new" {key.keyring}"""
    what = "missing" if present is None else "is not the one that was verified"
    return [Step(f"{key.keyring}: {what}", command)]
