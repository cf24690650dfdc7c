"""The seeds of the configuration fuzz target."""

import base64
import json

from transport.join import MARK, Token
from transport.keys import pair_of

TOML, SIZE, ADDRESS, CHAP, PSK, TOKEN, NODE = range(7)

_EVERYTHING = """
data = "data"
drain_s = 1.5
[nbd]
listen = ["127.0.0.1:0", "[::1]:10809", ":1"]
unix = false
socket = "sock/nbd"
insecure = true
max_payload = "1MiB"
max_connections = 3
list_versions = true
[iscsi]
listen = ["127.0.0.1:3260,2", "127.0.0.1:3261"]
chap = "chap"
auto_targets = false
sanitize_rate = "1G"
[tls]
mode = "require"
cert = "~/cert.pem"
min_version = "1.3"
[store]
journal_limit = "10GiB"
window_s = 3600
keep = "60m,24h,7d"
compression = "zstd"
[cluster]
etcd = ["http://127.0.0.1:2379"]
listen = [":10811"]
advertise = ["192.0.2.1:10811"]
[log]
format = "json"
level = "debug"
[control]
socket = "control"
[volumes]
vm1 = "10G"
"vm 2" = 4096
[exports."vm 1"]
tls_required = true
clients = ["alice", "bob"]
read_only = true
"""


_KEYS = pair_of(b"\5" * 32)
_TOKEN = Token(b"c" * 16, b"n" * 16, ("192.0.2.1:10811", "[::1]:10811"), _KEYS.public, _KEYS, 99)
_NODE = json.dumps(
    {
        "version": 1,
        "cluster": "c" * 32,
        "node": "1" * 32,
        "name": "n1",
        "public_key": _KEYS.public.hex(),
        "secret_key": _KEYS.secret.hex(),
        "joined": True,
    }
)


def inputs() -> dict[str, bytes]:
    """Name -> input."""
    texts = {
        "everything": (TOML, _EVERYTHING),
        "empty": (TOML, ""),
        "unknown-key": (TOML, "[nbd]\nlisten_on = 1"),
        "wrong-type": (TOML, "[nbd]\nmax_connections = true"),
        "not-a-number": (TOML, "drain_s = nan"),
        "out-of-range": (TOML, "drain_s = 1e99"),
        "not-toml": (TOML, "[nbd"),
        "table-for-a-value": (TOML, "[data.x]"),
        "exposed": (TOML, '[nbd]\nlisten = ["0.0.0.0:1"]'),
        "long-socket": (TOML, f'[nbd]\nsocket = "{"x" * 200}"'),
        "size": (SIZE, "1.5GiB"),
        "size-bytes": (SIZE, "4097"),
        "size-decimal": (SIZE, "10GB"),
        "size-fraction": (SIZE, "0.3B"),
        "size-long": (SIZE, "9" * 41),
        "address": (ADDRESS, "127.0.0.1:3260,7"),
        "address-6": (ADDRESS, "[fe80::1%eth0]:1"),
        "address-all": (ADDRESS, ":0"),
        "address-bare-6": (ADDRESS, "::1:5"),
        "chap": (CHAP, "# users\nalice:0123456789abcdef\n\nbob:fedcba9876543210fedc\n"),
        "chap-one": (CHAP, "alice:0123456789abcdef"),
        "chap-no-colon": (CHAP, "alice 0123456789abcdef"),
        "chap-short": (CHAP, "alice:short"),
        "psk": (PSK, "alice:" + "ab" * 32 + "\n#626f62:" + "cd" * 16),
        "psk-twice": (PSK, ("alice:" + "ab" * 32 + "\n") * 2),
        "psk-not-hex": (PSK, "alice:nothexnothexnothex"),
        "token": (TOKEN, _TOKEN.text()),
        "token-cut": (TOKEN, _TOKEN.text()[:-9]),
        "node": (NODE, _NODE),
        "node-other-version": (NODE, _NODE.replace('"version": 1', '"version": 2')),
        "node-short-key": (NODE, _NODE.replace("0505", "05")),
    }
    found = {name: bytes((kind,)) + text.encode() for name, (kind, text) in texts.items()}
    body = base64.urlsafe_b64decode(_TOKEN.text()[len(MARK) :] + "==")[:-4]
    found["token-body"] = bytes((TOKEN,)) + body
    found["toml-not-utf-8"] = b"\0data = '\xff'"
    found["chap-not-utf-8"] = b"\3alice:\xff\xfe\xfd\xfc\xfb\xfa\xf9\xf8\xf7\xf6\xf5\xf4\xf3\xf2"
    return found
