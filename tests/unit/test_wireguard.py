"""WireGuard files: what providers hand out is read, what cannot be used is refused in words, no key is shown."""

from __future__ import annotations

import base64
import dataclasses
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nacl.public import PrivateKey

from mediahost import wireguard
from mediahost.vpn import Tunnel
from mediahost.wireguard import WireGuardError, load, read, write


def key(number: int) -> str:
    return base64.b64encode(bytes([number]) * 32).decode()


PRIVATE, SERVER, SHARED = key(1), key(2), key(3)
PLAIN = f"""[Interface]
PrivateKey = {PRIVATE}
Address = 10.2.0.2/32
DNS = 10.2.0.1

[Peer]
PublicKey = {SERVER}
AllowedIPs = 0.0.0.0/0
Endpoint = 203.0.113.9:51820
"""

# Each in the form of the provider's own generator; keys and addresses are made up.
FILES = {
    "mullvad": f"""[Interface]
# Device: Brave Otter
PrivateKey = {PRIVATE}
Address = 10.66.12.34/32,fc00:bbbb:bbbb:bb01::3:c21/128
DNS = 10.64.0.1

[Peer]
PublicKey = {SERVER}
AllowedIPs = 0.0.0.0/0,::0/0
Endpoint = 203.0.113.9:51820""",
    "proton": f"""[Interface]
# Key for media
# Bouncing = 4
# NAT-PMP (Port Forwarding) = on
# VPN Accelerator = on
PrivateKey = {PRIVATE}
Address = 10.2.0.2/32
DNS = 10.2.0.1

[Peer]
# NL#123
PublicKey = {SERVER}
AllowedIPs = 0.0.0.0/0, ::/0
Endpoint = 203.0.113.9:51820
PersistentKeepalive = 25
""",
    "airvpn": f"""[Interface]
Address = 10.128.12.34/32,fd7d:76ee:e68f:a993::1/128
PrivateKey = {PRIVATE}
MTU = 1320
DNS = 10.128.0.1, fd7d:76ee:e68f:a993::1

[Peer]
PublicKey = {SERVER}
PresharedKey = {SHARED}
Endpoint = 203.0.113.9:1637
AllowedIPs = 0.0.0.0/0,::/0
PersistentKeepalive = 15
""",
}


@pytest.mark.parametrize("provider", sorted(FILES))
def test_the_files_of_each_provider_are_read(provider: str) -> None:
    tunnel = read(FILES[provider], provider)
    assert (tunnel.private_key, tunnel.peer, tunnel.endpoint) == (PRIVATE, SERVER, "203.0.113.9")
    assert tunnel.dns[0] == wireguard.NAME_SERVERS[provider][0]
    if provider == "airvpn":
        assert (tunnel.mtu, tunnel.keepalive, tunnel.preshared_key) == (1320, 15, SHARED)
        assert tunnel.addresses == ("10.128.12.34/32", "fd7d:76ee:e68f:a993::1/128")
        assert tunnel.endpoint_port == 1637
    else:
        assert (tunnel.mtu, tunnel.keepalive, tunnel.preshared_key) == (1420, 25, None)


@pytest.mark.parametrize(
    "text",
    [
        PLAIN.replace("\n", "\r\n"),
        "\ufeff" + PLAIN,
        PLAIN.replace(" = ", "="),
        PLAIN.replace("PrivateKey", "privatekey").replace("[Peer]", "[ peer ]"),
        PLAIN.replace("51820", "51820 # Amsterdam"),
        PLAIN.replace("0.0.0.0/0", "0.0.0.0/1, 128.0.0.0/1, ::/1, 8000::/1"),
        PLAIN.replace("AllowedIPs = 0.0.0.0/0", "AllowedIPs = ::/0\nAllowedIPs = 0.0.0.0/0"),
        PLAIN.replace("Address = 10.2.0.2/32", "Address = 10.2.0.2"),
        PLAIN.rpartition("[Peer]")[1] + PLAIN.rpartition("[Peer]")[2] + PLAIN.rpartition("[Peer]")[0],
    ],
    ids=["CRLF", "BOM", "no blanks", "case", "comment", "two halves", "two lines", "no prefix", "peer first"],
)
def test_what_wg_quick_takes_for_the_same_is_the_same(text: str) -> None:
    assert read(text) == read(PLAIN)


def test_what_a_file_wants_to_run_or_route_is_left_out_and_told() -> None:
    more = "PostUp = iptables -I OUTPUT ! -o %i -j REJECT; touch /pwned\nTable = off\nListenPort = 51820\n\n[Peer]"
    loaded = load(PLAIN.replace("\n[Peer]", more))
    assert loaded.tunnel == read(PLAIN)
    assert any("PostUp is not run" in notice for notice in loaded.notices)
    assert any("Table is not used" in notice for notice in loaded.notices)
    assert load(PLAIN).notices == ()


def test_search_domains_are_no_name_servers() -> None:
    loaded = load(PLAIN.replace("DNS = 10.2.0.1", "DNS = lan.example, 10.2.0.1"))
    assert loaded.tunnel.dns == ("10.2.0.1",)
    assert any("lan.example" in notice for notice in loaded.notices)


def test_a_file_without_dns_gets_the_providers_and_it_is_told() -> None:
    text = PLAIN.replace("DNS = 10.2.0.1\n", "")
    loaded = load(text, "nordvpn")
    assert loaded.tunnel.dns == ("103.86.96.100", "103.86.99.100")
    assert any("103.86.96.100" in notice for notice in loaded.notices)
    assert read(text).dns == ()


def test_a_keepalive_that_is_off_is_on() -> None:
    loaded = load(PLAIN + "PersistentKeepalive = off\n")
    assert loaded.tunnel.keepalive == 25
    assert any("not off" in notice for notice in loaded.notices)


def test_a_name_as_endpoint_is_refused_in_a_run_and_resolved_by_import() -> None:
    text = PLAIN.replace("203.0.113.9", "nl-ams-wg-001.example")
    with pytest.raises(WireGuardError, match="mediahost vpn import") as refused:
        read(text)
    assert "line 9" in str(refused.value)
    loaded = load(text, resolve={"nl-ams-wg-001.example": "198.51.100.4"}.__getitem__)
    assert loaded.tunnel.endpoint == "198.51.100.4"
    assert any("nl-ams-wg-001.example is 198.51.100.4" in notice for notice in loaded.notices)

    def gone(_: str) -> str:
        raise OSError

    with pytest.raises(WireGuardError, match="could not be resolved"):
        load(text, resolve=gone)


def test_an_ipv6_endpoint_is_read_and_written_in_brackets() -> None:
    tunnel = read(PLAIN.replace("203.0.113.9", "[2001:db8::9]"))
    assert (tunnel.endpoint, tunnel.endpoint_port) == ("2001:db8::9", 51820)
    assert "Endpoint = [2001:db8::9]:51820" in write(tunnel)


@pytest.mark.parametrize(
    ("before", "after", "what"),
    [
        ("0.0.0.0/0", "10.0.0.0/8", "does not contain 0.0.0.0/0"),
        ("0.0.0.0/0", "::/0", "does not contain 0.0.0.0/0"),
        ("AllowedIPs = 0.0.0.0/0\n", "", "does not contain 0.0.0.0/0"),
        ("Endpoint = 203.0.113.9:51820\n", "", "no Endpoint"),
        (":51820", ":0", "no address with a port"),
        (":51820", "", "no address with a port"),
        ("203.0.113.9", "127.0.0.1", "no server's"),
        ("203.0.113.9", "300.1.1.1", "neither address nor name"),
        ("10.2.0.2/32", "10.2.0.2/40", "not an address"),
        ("10.2.0.2/32", "fd00::2/128", "no IPv4 Address"),
        ("DNS = 10.2.0.1", "DNS = 127.0.0.53", "no server's"),
        ("DNS = 10.2.0.1", "MTU = 70000", "out of bounds"),
        ("DNS = 10.2.0.1", "MTU = 100", "out of bounds"),
        ("DNS = 10.2.0.1", "Jc = 4", "AmneziaWG"),
        ("DNS = 10.2.0.1", "Dnss = 10.2.0.1", "did you mean DNS"),
        ("DNS = 10.2.0.1", "Endpoint = 203.0.113.9:1", r"belongs to \[Peer\]"),
        ("DNS = 10.2.0.1", "once upon a time", "neither a section nor"),
        ("[Peer]", "[Client]", "unknown section"),
        ("[Interface]\n", "", "before the first section"),
        (f"PrivateKey = {PRIVATE}", "PrivateKey =", "is empty"),
        (f"PrivateKey = {PRIVATE}", f"PrivateKey = {PRIVATE[:-4]}", "PrivateKey is not a key"),
        (f"PrivateKey = {PRIVATE}", f"PrivateKey = {PRIVATE}\nPrivateKey = {SHARED}", "there twice"),
        (SERVER, key(0), "only zeros"),
        (SERVER, wireguard.public_key(PRIVATE), "this end's own"),
    ],
)
def test_what_cannot_be_used_is_refused_with_its_line_and_a_mend(before: str, after: str, what: str) -> None:
    assert before in PLAIN
    with pytest.raises(WireGuardError, match=what) as refused:
        read(PLAIN.replace(before, after))
    message = str(refused.value)
    assert message.startswith(("line ", "file"))
    assert "mend: " in message
    assert not any(secret[:20] in message for secret in (PRIVATE, SERVER, SHARED))


def test_two_peers_are_refused_and_a_missing_section_too() -> None:
    peer = PLAIN[PLAIN.index("[Peer]") :]
    with pytest.raises(WireGuardError, match=r"a second \[Peer\]"):
        read(PLAIN + peer)
    with pytest.raises(WireGuardError, match=r"no \[Peer\]"):
        read(PLAIN.replace(peer, ""))


@given(st.binary(min_size=32, max_size=32))
def test_the_public_key_is_the_one_that_another_implementation_computes(raw: bytes) -> None:
    theirs = bytes(PrivateKey(raw).public_key)  # libsodium's
    assert base64.b64decode(wireguard.public_key(base64.b64encode(raw).decode())) == theirs


def test_what_is_no_key_has_no_public_half_and_is_not_shown() -> None:
    with pytest.raises(ValueError, match="not a WireGuard key") as refused:
        wireguard.public_key("s3cret")
    assert "s3cret" not in str(refused.value)
    assert refused.value.__cause__ is None


keys = st.binary(min_size=32, max_size=32).filter(any).map(lambda raw: base64.b64encode(raw).decode())
tunnels = st.builds(
    Tunnel,
    private_key=keys,
    addresses=st.tuples(st.ip_addresses(v=4, network="10.0.0.0/8").map(lambda ip: f"{ip}/32"))
    | st.just(("10.2.0.2/32", "fd00::2/128")),
    peer=keys,
    endpoint=st.ip_addresses(network="203.0.113.0/24").map(str) | st.ip_addresses(network="2001:db8::/32").map(str),
    endpoint_port=st.integers(1, 65535),
    preshared_key=st.none() | keys,
    dns=st.just(()) | st.just(("10.64.0.1",)) | st.just(("10.2.0.1", "fd00::1")),
    mtu=st.integers(576, 9000),
    keepalive=st.integers(1, 65535),
)


@given(tunnels)
def test_what_is_written_is_read_as_the_same(tunnel: Tunnel) -> None:
    assert read(write(tunnel)) == tunnel
    assert tunnel.private_key == tunnel.peer or tunnel.private_key not in repr(tunnel)


words = st.sampled_from(
    ["[Interface]", "[Peer]", "[", "]", "=", ",", ":", "/", "#", "\r\n", "\n", "\f", "\0", "\u2028", " ", "%eth0"]
    + ["PrivateKey", "PublicKey", "PresharedKey", "Address", "DNS", "MTU", "AllowedIPs", "Endpoint", "PostUp", "Jc"]
    + ["PersistentKeepalive", "10.2.0.2", "0.0.0.0/0", "::", "fe80::1%1", "1", "32", "99999", "off", "٣", "a.example"]
    + [PRIVATE, SERVER, SHARED]
)


@given(st.lists(words, max_size=40).map("".join) | st.text(max_size=200))
def test_no_text_raises_anything_else_or_shows_a_key(text: str) -> None:
    _hold(text)


lines = st.sampled_from(PLAIN.splitlines() + FILES["airvpn"].splitlines())
odd = st.text(string.ascii_letters + string.digits + "+/=.:,[]%- \0", max_size=50) | st.sampled_from(
    [SHARED, PRIVATE]
)


@given(
    st.lists(lines | st.tuples(lines, odd).map(lambda each: f"{each[0].partition('=')[0]}= {each[1]}"), max_size=14)
)
def test_no_file_with_odd_values_raises_anything_else_or_shows_a_key(chosen: list[str]) -> None:
    _hold("\n".join(chosen))
    _hold(PLAIN + "\n".join(chosen))


def _hold(text: str) -> None:
    try:
        loaded = load(text, "mullvad", resolve=lambda _: "198.51.100.4")
    except WireGuardError as error:
        told = f"{error}{error!r}"
    else:
        told = "".join(loaded.notices) + repr(loaded)
        told = told.replace(loaded.tunnel.peer, "")  # public
        assert read(write(loaded.tunnel)) == dataclasses.replace(loaded.tunnel)
    for secret in (PRIVATE, SHARED):
        assert secret[:20] not in told
