"""Control API: HTTP and JSON over a unix socket, under /v1.

`types` and `client` are what a tool needs and load quickly; `app`, `server` and the routers (one
module per noun) belong to the daemon. The API's description is served as /v1/openapi.json. Every
error has the body `{"error": {"code": ..., "message": ...}}`; codes are stable, messages are not.
"""
