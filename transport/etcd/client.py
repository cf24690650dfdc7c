"""etcd as a `MetaStore`: the HTTP client. What its messages mean is in `transport.etcd.codec`.

One call is sent to one endpoint after the other, beginning with the one that answered last, each
for about `attempt_s`, in all for about `timeout_s` and `rounds` times round all of them. A range
may be sent again at will. A transaction may too: if an earlier try of it happened, its guards fail
on our own values, which `settle` knows by their token. Once a try of a transaction may have arrived
anywhere, only an answer to it decides; without one the outcome is `Unknown`.

Endpoints must be members of one cluster. Redirects are not followed and proxies of the environment
are not used: who may answer is in the configuration alone.

Threads: every method may be called from any thread; they share the pool of connections.
"""

import ssl
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

from transport.etcd import codec
from transport.etcd.codec import BadAnswer
from volume.metastore import (
    PAGE,
    Change,
    Done,
    MetaStoreUnavailable,
    Outcome,
    Row,
    Unavailable,
    Unknown,
    check_changes,
    settle,
)

MAX_ANSWER_BYTES = 4 << 20  # a page of 128 rows of 4 KiB in base64 is 0.7 MiB
MAX_CONNECTIONS = 16
NEVER_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)


@dataclass(frozen=True, slots=True)
class EtcdSettings:
    endpoints: tuple[str, ...]
    """`http://host:port` or `https://host:port`, of one cluster."""
    prefix: str = "blockd/"
    """Before all keys; another one for each cluster of blockd in one etcd."""
    timeout_s: float = 5.0
    """One call at most, with all its tries."""
    attempt_s: float = 1.5
    """One try at most."""
    rounds: int = 2
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    tls: ssl.SSLContext | None = None


class _Refused(Exception):
    """An endpoint answered that it will not, and surely did not."""


class _Unsure(Exception):
    """No endpoint answered; at least one may have received it if `sent`."""

    def __init__(self, reason: str, sent: bool) -> None:
        super().__init__(reason)
        self.sent = sent


class EtcdMetaStore:
    """A MetaStore in etcd. Nothing is sent before the first call."""

    def __init__(self, settings: EtcdSettings) -> None:
        assert settings.endpoints
        self._settings = settings
        self._prefix = settings.prefix
        self._lock = threading.Lock()
        self._first = 0  # endpoint to begin with
        self._token: str | None = None
        self._http = httpx.Client(
            verify=settings.tls if settings.tls is not None else True,
            trust_env=False,
            follow_redirects=False,
            limits=httpx.Limits(max_connections=MAX_CONNECTIONS),
        )

    def read(self, key: str) -> Row | None:
        rows = self._range(codec.range_body(self._prefix, key), 1)
        if rows and rows[0].key != key:
            raise MetaStoreUnavailable(f"etcd: answered {rows[0].key!r} to {key!r}")
        return rows[0] if rows else None

    def list(self, prefix: str, after: str = "", limit: int = PAGE) -> Sequence[Row]:
        return self._range(codec.page_body(self._prefix, prefix, after, limit), limit)

    def commit(self, changes: Sequence[Change]) -> Outcome:
        check_changes(changes)
        try:
            body = codec.txn_body(self._prefix, changes)
            sent = self._call("/v3/kv/txn", body)
            answer = codec.txn_answer(sent, self._prefix, changes)
        except _Refused as error:
            return Unavailable(f"etcd: {error}")
        except _Unsure as error:
            return Unknown(f"etcd: {error}") if error.sent else Unavailable(f"etcd: {error}")
        except BadAnswer as error:
            return Unknown(f"etcd: bad answer: {error}")
        if not answer.succeeded:
            return settle(changes, answer.rows)
        return Done(
            tuple(
                None if change.value is None else Row(change.key, change.value, answer.revision)
                for change in changes
            )
        )

    def hint(self, key: str, value: bytes, ttl_s: int) -> bool:
        # A new lease each time: keep-alives of old releases succeed on leases that are gone.
        try:
            lease = codec.lease_id(self._call("/v3/lease/grant", codec.lease_body(ttl_s)))
            self._call("/v3/kv/put", codec.put_body(self._prefix, key, value, lease))
        except (_Refused, _Unsure, BadAnswer):
            return False
        return True

    def versions(self) -> Iterator[tuple[str, str | None]]:
        """Each endpoint with the version of its server, or None when it does not tell."""
        for endpoint in self._settings.endpoints:
            try:
                response = self._http.get(endpoint + "/version", timeout=self._settings.attempt_s)
                yield endpoint, codec.server_version(codec.decode_json(response.content))
            except (httpx.HTTPError, httpx.InvalidURL, BadAnswer):
                yield endpoint, None

    def close(self) -> None:
        self._http.close()

    def _range(self, body: dict[str, Any], limit: int) -> tuple[Row, ...]:
        try:
            return codec.range_rows(self._call("/v3/kv/range", body), self._prefix, limit)
        except (_Refused, _Unsure, BadAnswer) as error:
            raise MetaStoreUnavailable(f"etcd: {error}; see `blockd doctor`") from error

    def _call(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """The answer of the first endpoint that gives one. _Refused, _Unsure, BadAnswer."""
        settings = self._settings
        deadline = time.monotonic() + settings.timeout_s
        count = len(settings.endpoints)
        first = self._first
        sent = False
        reason = "no endpoint was tried"
        for attempt in range(settings.rounds * count):
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                break
            index = (first + attempt) % count
            endpoint = settings.endpoints[index]
            try:
                answer = self._answer(endpoint, path, body, min(left_s, settings.attempt_s))
            except _Refused as error:
                if sent:  # this try did not happen; an earlier one may have
                    raise _Unsure(str(error), sent) from None
                raise
            except BadAnswer as error:
                sent = True
                reason = f"{endpoint}: bad answer: {error}"
            except _Unsure as error:
                sent |= error.sent
                reason = f"{endpoint}: {error}"
            else:
                self._first = index
                return answer
        raise _Unsure(reason, sent)

    def _answer(
        self, endpoint: str, path: str, body: dict[str, Any], left_s: float
    ) -> dict[str, Any]:
        """One try, with a second one when the token of the user has run out."""
        deadline = time.monotonic() + left_s
        for again in (False, True):
            token = self._authenticated(endpoint, deadline, renew=again)
            status, answer = self._post(endpoint + path, body, token, deadline)
            if status == httpx.codes.OK:
                return answer
            refusal = codec.refusal(answer)
            expired = refusal.code == codec.UNAUTHENTICATED or "auth token" in refusal.message
            if token is None or again or not expired:
                break
        if refusal.code in codec.REFUSALS:
            raise _Refused(f"{endpoint}: {refusal.message}")
        raise _Unsure(f"{refusal.message} (HTTP {status}, code {refusal.code})", sent=True)

    def _authenticated(self, endpoint: str, deadline: float, *, renew: bool) -> str | None:
        user, password = self._settings.user, self._settings.password
        if user is None:
            return None
        with self._lock:
            token = None if renew else self._token
        if token is None:
            body = codec.password_body(user, password or "")
            try:
                status, answer = self._post(
                    endpoint + "/v3/auth/authenticate", body, None, deadline
                )
            except _Unsure as error:  # what it was for has not been sent
                raise _Unsure(str(error), sent=False) from error
            if status != httpx.codes.OK:
                raise _Refused(f"{endpoint}: user {user}: {codec.refusal(answer).message}")
            token = codec.auth_token(answer)
            with self._lock:
                self._token = token
        return token

    def _post(
        self, url: str, body: dict[str, Any], token: str | None, deadline: float
    ) -> tuple[int, dict[str, Any]]:
        """Status and JSON of a POST. The deadline holds for a server that trickles, too."""
        headers = {} if token is None else {"Authorization": token}
        left_s = max(deadline - time.monotonic(), 0.001)
        data = bytearray()
        try:
            with self._http.stream(
                "POST", url, json=body, headers=headers, timeout=left_s
            ) as response:
                for part in response.iter_bytes():
                    data += part
                    if len(data) > MAX_ANSWER_BYTES:
                        raise BadAnswer(f"more than {MAX_ANSWER_BYTES} bytes")
                    if time.monotonic() > deadline:
                        raise _Unsure("the answer takes too long", sent=True)
        except NEVER_SENT as error:
            raise _Unsure(f"no connection: {error}", sent=False) from error
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            raise _Unsure(f"{type(error).__name__}: {error}", sent=True) from error
        try:
            return response.status_code, codec.decode_json(bytes(data))
        except BadAnswer:
            if response.status_code == httpx.codes.OK:
                raise
            return response.status_code, {"error": data[:64].decode(errors="replace")}
