"""The token of a logged-in user, and when another login may help.

The token is a fact, not a resource: a forked child keeps it.
"""

from __future__ import annotations

from collections.abc import Callable

from celery_etcdlock.etcd import messages
from celery_etcdlock.etcd.errors import AuthenticationFailed, EtcdError, StatusCode, TokenRejected

AUTHENTICATE = "/etcdserverpb.Auth/Authenticate"
MOST_LOGINS_PER_CALL = 3
NO_LOGIN_NEEDED = ""
_LOGIN_MAY_HELP = ("permission denied", "auth token", "auth store is old")


class Login:
    """See the module. ``call(path, request, deadline)`` is a call without a token that may be repeated."""

    def __init__(self, username: str | None, password: str | None, call: Callable[[str, bytes, float], bytes]) -> None:
        self._username = username
        self._password = password
        self._call = call
        self._token: str | None = None if username else NO_LOGIN_NEEDED

    def token(self, deadline: float) -> str:
        """The token to send, asked for if there is none; raises EtcdError, with nothing applied."""
        token = self._token
        if token is None:
            request = messages.AuthenticateRequest(name=self._username, password=self._password)
            try:
                reply = self._call(AUTHENTICATE, request.SerializeToString(), deadline)
                token = str(messages.decoded(messages.AuthenticateResponse, reply).token)
            except EtcdError as error:
                error.maybe_applied = False
                if "authentication is not enabled" not in getattr(error, "details", ""):
                    raise
                token = NO_LOGIN_NEEDED
            self._token = token
        return token

    def again(self, error: EtcdError, token: str) -> bool:
        """Whether another login may help: the token was rejected, or auth was switched on since we asked."""
        if not self._username:
            return False
        rejected = isinstance(error, TokenRejected) or (
            isinstance(error, AuthenticationFailed) and "user name is empty" in error.details
        )
        if rejected and self._token == token:
            self._token = None
        return rejected


def check_watch(path: str, first_answer: bytes) -> None:
    """Raise TokenRejected if a new login may help this watch.

    etcd refuses a watch inside an OK answer, and calls an expired token a missing permission.
    """
    if path != messages.WATCH:
        return
    answer = messages.decoded(messages.WatchResponse, first_answer)
    if answer.canceled and any(part in answer.cancel_reason for part in _LOGIN_MAY_HELP):
        raise TokenRejected(StatusCode.UNAUTHENTICATED, answer.cancel_reason)
