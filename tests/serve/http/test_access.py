"""Access rules: host names, trusted proxies and loopback addresses."""

import pytest

from candid.errors import ConfigError
from candid.serve.errors import RequestError
from candid.serve.http.access import AllowedHosts, ApiKeys, TrustedProxies, is_loopback


@pytest.mark.parametrize(
    ("read", "admin", "message"),
    [
        (("a", ""), (), "read key 2 is empty"),
        ((), ("",), "admin key 1 is empty"),
        ((" \n",), (), "read key 1 is empty"),
        ((), ("key ",), "admin key 1 has white space around it"),
        (("\udcff",), (), "read key 1 is not UTF-8"),
        ("secret", (), "the read keys must be a tuple"),
        ((), "secret", "the admin keys must be a tuple"),
    ],
)
def test_key_that_cannot_be_used_is_refused(read, admin, message):
    with pytest.raises(ConfigError, match=message):
        ApiKeys(read, admin)


@pytest.mark.parametrize(
    ("host", "is_allowed"),
    [
        (b"rec.example.com", True),
        (b"REC.example.com:8000", True),
        (b"rec.example.com.", True),
        (b"a.shop.test", True),
        (b"b.a.shop.test:1", True),
        (b"shop.test", False),
        (b"evilshop.test", False),
        (b"rec.example.com.evil.test", False),
        (b"[::1]:8000", True),
        (b"[::2]", True),
        (b"[::3]", False),
        (b"", False),
        (b"\xff", False),
    ],
)
def test_allowed_hosts(host, is_allowed):
    hosts = AllowedHosts(("Rec.Example.com", "*.shop.test", "::1", "[::2]"))
    if is_allowed:
        hosts.check(host)
    else:
        with pytest.raises(RequestError) as caught:
            hosts.check(host)
        assert caught.value.code == "wrong_host"


def test_every_host_is_allowed_by_default():
    AllowedHosts().check(b"")
    AllowedHosts().check(b"any.test:1")


@pytest.mark.parametrize(
    "name", ["http://a.test", "a.test/x", "", "*.", "*", "a.test:8000", "[::1]:80", "[::1"]
)
def test_allowed_host_with_a_port_or_path_is_refused(name):
    with pytest.raises(ConfigError, match=r"--allowed-host .* is not a host name"):
        AllowedHosts((name,))


@pytest.mark.parametrize(
    ("peer", "forwarded", "client"),
    [
        ("9.9.9.9", ["1.1.1.1"], "9.9.9.9"),  # not a proxy
        ("10.0.0.1", [], "10.0.0.1"),
        ("10.0.0.1", ["1.1.1.1"], "1.1.1.1"),
        ("10.0.0.1", ["6.6.6.6, 1.1.1.1"], "1.1.1.1"),  # the left part may be invented
        ("10.0.0.1", ["6.6.6.6", "1.1.1.1, 10.2.3.4"], "1.1.1.1"),  # two proxies
        ("10.0.0.1", ["1.1.1.1:5000"], "1.1.1.1"),
        ("10.0.0.1", ["[2001:db8::7]:5000"], "2001:db8::7"),
        ("10.0.0.1", ["2001:db8::7"], "2001:db8::7"),
        ("10.0.0.1", ["1.1.1.1, not an address"], "10.0.0.1"),
        ("10.0.0.1", ["10.0.0.2, 10.0.0.3"], "10.0.0.2"),
        ("::ffff:10.0.0.1", ["1.1.1.1"], "1.1.1.1"),
        ("fd00::1", ["1.1.1.1"], "1.1.1.1"),
    ],
)
def test_client_behind_proxies(peer, forwarded, client):
    proxies = TrustedProxies(("10.0.0.0/8", "fd00::1"))
    headers = [(b"x-forwarded-for", each.encode()) for each in forwarded]
    assert proxies.client_of(peer, [(b"host", b"x"), *headers]) == client


def test_no_proxy_is_trusted_by_default():
    assert TrustedProxies().client_of("10.0.0.1", [(b"x-forwarded-for", b"1.1.1.1")]) == "10.0.0.1"


def test_trusted_proxy_without_an_address_is_refused():
    with pytest.raises(ConfigError, match=r"--trusted-proxy: 'proxy\.local' does not appear to be"):
        TrustedProxies(("proxy.local",))


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("a.b", False)],
)
def test_loopback(host, expected):
    assert is_loopback(host) is expected
