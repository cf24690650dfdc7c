"""The seeds of the control API's fuzz target: whole conversations, right and wrong."""

import json

_TARGET = "iqn.2026-11.test:t"
_ALLOW = {"read_only": True, "address": "192.0.2.0/24", "initiator": "iqn.2026-11.test:*"}


def request(method: str, target: str, body: object = None) -> bytes:
    sent = b"" if body is None else json.dumps(body).encode()
    return f"{method} /v1{target}\n".encode() + sent


def inputs() -> dict[str, bytes]:
    """Name -> input."""
    volume = {"name": "a", "size": 1 << 20, "block_size": 512, "compression": "zstd"}
    named = {
        "volumes": [
            request("POST", "/volumes", volume),
            request("GET", "/volumes"),
            request("PATCH", "/volumes/a", {"size": 2 << 20}),
            request("PATCH", "/volumes/a", {"size": 4096, "force": True}),
            request("PATCH", "/volumes/a", {"name": "b"}),
            request("GET", "/volumes/b"),
            request("DELETE", "/volumes/b?force=true"),
        ],
        "volumes-wrong": [
            request("POST", "/volumes", volume | {"size": -1}),
            request("POST", "/volumes", volume | {"size": 1 << 70}),
            request("POST", "/volumes", volume | {"chunk_size": 3}),
            request("POST", "/volumes", volume | {"name": "../x"}),
            request("POST", "/volumes", volume | {"name": ""}),
            request("POST", "/volumes", volume | {"extra": None}),
            request("POST", "/volumes", [volume]),
            request("POST", "/volumes", "a"),
            request("PATCH", "/volumes/vm", {}),
            request("PATCH", "/volumes/nosuch", {"size": 4096}),
        ],
        "not-json": [b"POST /v1/volumes\n{", b"POST /v1/volumes\n\xff\xfe", b"POST /v1/volumes\n"],
        "deep": [b"POST /v1/volumes\n" + b"[" * 2000],
        "numbers": [b'POST /v1/volumes\n{"name": "a", "size": 1e999, "block_size": NaN}'],
        "snapshots": [
            request("POST", "/snapshots", {"name": "s", "volumes": ["vm"], "pinned": True}),
            request("GET", "/snapshots?volume=vm&limit=1&prefix=s"),
            request("GET", "/volumes/vm/snapshots/s"),
            request("PATCH", "/volumes/vm/snapshots/s", {"pinned": False}),
            request("DELETE", "/volumes/vm/snapshots/s"),
            request("PUT", "/volumes/vm/schedule", {"every": "1h", "keep": "24h"}),
            request("GET", "/volumes/vm/schedule"),
            request("DELETE", "/volumes/vm/schedule"),
        ],
        "versions": [
            request("GET", "/volumes/vm/log?limit=5&writes=true"),
            request("GET", "/volumes/vm/history"),
            request("PATCH", "/volumes/vm/history", {"window": "1h", "keep": "60m,24h"}),
            request("POST", "/clones", {"source": "vm@snap", "name": "copy"}),
            request("GET", "/diff?old=vm@snap&new=vm&limit=3"),
            request("POST", "/volumes/vm/restore", {"ref": "snap", "force": True}),
        ],
        "access": [
            request("GET", "/volumes/vm/access"),
            request("PUT", "/volumes/vm/access", {"rules": [_ALLOW, {"deny": True, "uid": 0}]}),
            request("PUT", "/volumes/vm/access", {"rules": [], "revision": "none"}),
            request("POST", "/clones", {"source": "vm@snap", "name": "copy"}),
            request("POST", "/clones", {"source": "vm", "name": "../x"}),
            request("GET", "/volumes/copy/access"),
            request("POST", "/volumes", volume | {"closed": True}),
            request("DELETE", "/volumes/copy?force=true"),
            request("PUT", "/volumes/vm/access", {"rules": None}),
        ],
        "access-wrong": [
            request("PUT", "/volumes/vm/access", {"rules": [_ALLOW | wrong]})
            for wrong in (
                *({"address": "10.0.0.5/8"}, {"address": "::ffff:0:0/95"}, {"uid": 1 << 40}),
                *({"uid": True}, {"initiator": "\ud800*"}, {"certificate": "\0"}, {"psk": "a"}),
                *({"fingerprint": "=:" * 40}, {"chap_user": "x" * 300}, {"later": None}),
            )
        ],
        "limits": [
            request("GET", "/volumes/vm/limits"),
            request("PUT", "/volumes/vm/limits", {"iops": 500, "write_bandwidth": 1 << 20}),
            request("PUT", "/volumes/vm/limits", {"burst_s": 3600, "read_iops": 1}),
            request("PUT", "/volumes/vm/limits", {"iops": -1}),
            request("PUT", "/volumes/vm/limits", {"bandwidth": 1 << 70, "burst_s": 1e-300}),
            request("PUT", "/volumes/vm/limits", {"burst_s": "1", "later": None}),
            request("PUT", "/volumes/vm/limits", {}),
            request("GET", "/volumes/nosuch/limits"),
            request("DELETE", "/volumes/vm?force=true"),
            request("GET", "/volumes/vm/limits"),
        ],
        "refs": [
            request("GET", f"/diff?old=vm@{ref}&new=vm")
            for ref in ("1", "1.2", "2026-01-01", "-5m", "12:00", "99999999999999999999", "%00")
        ],
        "streams": [
            request("GET", "/stream?source=vm@snap"),
            request("GET", "/stream?source=vm&resume=xyz"),
            request("POST", "/receive/new"),
            request("GET", "/receive"),
            request("DELETE", "/receive/new"),
        ],
        "store": [
            request("GET", "/status"),
            request("GET", "/health"),
            request("GET", "/space"),
            request("GET", "/gc"),
            request("POST", "/gc", {"dry_run": True}),
            request("GET", "/scrub"),
            request("POST", "/scrub"),
            request("GET", "/scrub/hit?limit=1"),
            request("DELETE", "/scrub"),
        ],
        "targets": [
            request("POST", "/targets", {"name": _TARGET, "alias": "one"}),
            request("POST", f"/targets/{_TARGET}/luns", {"volume": "vm"}),
            request("POST", f"/targets/{_TARGET}/luns", {"volume": "vm@snap", "lun": 7}),
            request("POST", f"/targets/{_TARGET}/acl", {"entry": "192.0.2.0/24"}),
            request("PUT", f"/targets/{_TARGET}/chap", {"user": "u", "secret": "0123456789ab"}),
            request("GET", f"/targets/{_TARGET}"),
            request("DELETE", f"/targets/{_TARGET}/luns/7"),
            request("GET", "/targets"),
            request("DELETE", f"/targets/{_TARGET}?force=true"),
            request("GET", "/sessions"),
            request("GET", "/connections"),
        ],
        "no-such": [
            b"GET /",
            b"GET /v1/nothing",
            b"PUT /v1/volumes\n{}",
            b"OPTIONS /v1/volumes",
            b"HEAD /v1/volumes",
            b"GET /v1/volumes/%2e%2e%2f",
            b"GET /v1/volumes/\xff",
            b"GET /v1/openapi.json",
        ],
        "numbers-in-queries": [
            request("GET", f"/snapshots?limit={number}")
            for number in ("-1", "0", "1e3", "9" * 30, "9" * 5000, "%d9%a3", "")
        ],
    }
    return {name: b"\0".join(requests) for name, requests in named.items()}
