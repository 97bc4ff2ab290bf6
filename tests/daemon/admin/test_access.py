"""Access to the admin port: users at the Unix socket, tokens over TCP. Real daemons, real other users."""

from __future__ import annotations

import getpass
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import structlog

from pillion_artifacts import Store
from pilliond.admin.app import Admin
from pilliond.admin.http.access import Access
from pilliond.admin.http.endpoints import Endpoint
from pilliond.admin.http.problems import Problem
from pilliond.admin.http.refusals import REASONS
from pilliond.admin.http.scope import Scope
from pilliond.admin.http.token_file import change_tokens
from pilliond.control import load_policy, rollouts_of
from pilliond.limits import REFUSALS_BURST_MAX
from pilliond.linux.service_manager import ServiceManager
from pilliond.linux.spawner import Spawner
from pilliond.settings.schema import load_settings
from pilliond.supervision.supervisor import Supervisor
from pilliond.supervision.watchdog import Watchdog
from tests.conftest import StartDaemon
from tests.daemon.support.other_users import GROUP, OUTSIDER, as_user
from tests.daemon.support.tokens import Answer, another_address, asked, make_token, make_tokens
from tests.docs.pages import OPERATING
from tests.harness import STORE, Daemon, UnixConnection, copy_examples

POLICY = "lunar-lander"
ONLY_ROOT = pytest.mark.skipif(os.getuid() != 0, reason="only root can be somebody else: run the tests as root")
REFUSED = (401, 403, 429)


@pytest.fixture(scope="module")
def tokens_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("access") / "tokens"


@pytest.fixture(scope="module")
def secrets(tokens_file: Path) -> dict[str, str]:
    """A token of each scope."""
    return make_tokens(tokens_file)


@pytest.fixture(scope="module")
def guarded(module_daemon: StartDaemon, tokens_file: Path, secrets: dict[str, str]) -> Daemon:
    """A daemon with a token of each scope, shared by tests that do not change it."""
    return module_daemon(settings={"admin__tokens_file": tokens_file})


@pytest.fixture(scope="module")
def open_folder() -> Iterator[Path]:
    """A folder that every user may enter."""
    with tempfile.TemporaryDirectory(prefix="pillion-") as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)


@pytest.fixture(scope="module")
def endpoints() -> list[Endpoint]:
    """Every endpoint that a daemon has."""
    settings = load_settings(None, {}, {"store": {"path": str(STORE), "policy": POLICY}})
    log = structlog.get_logger()
    reference, stable = load_policy(settings)
    supervisor = Supervisor(settings, [stable], Spawner(), log)
    watchdog = Watchdog(supervisor, settings.serving.hang_s_max, ServiceManager({}), log)
    try:
        policies = rollouts_of(supervisor, [reference], log)
        return Admin(supervisor, policies, watchdog, Access.of(settings.admin, log)).endpoints
    finally:
        supervisor.close()


def path_of(endpoint: Endpoint) -> str:
    """A path of that endpoint, with names that need not exist."""
    return re.sub(r"\{[^}]*\}", "x", endpoint.path.replace("{policy}", POLICY))


def ask_for(url: str, endpoint: Endpoint, token: str | None) -> Answer:
    """Sends a request that changes nothing even with access: no verb accepts such a body."""
    body = None if endpoint.method == "GET" else {"no such field": 1}
    return asked(url, endpoint.method, path_of(endpoint), token, body)


def told_by(endpoint: Endpoint, result: Answer, kind: str) -> str:
    """The text of a refusal, in a problem of that kind or in the endpoint's own form."""
    if endpoint.error is not Problem:
        return str(result.json["error"])
    assert result.headers["Content-Type"] == "application/problem+json"
    assert result.json["type"] == f"urn:pillion:{kind}"
    return str(result.json["detail"])


def over_unix(path: str, method: str, what: str, body: object = None) -> tuple[int, str]:
    """Status and type of problem of a request at a Unix socket."""
    connection = UnixConnection(path)
    try:
        connection.request(method, what, None if body is None else json.dumps(body))
        response = connection.getresponse()
        return response.status, str(json.loads(response.read()).get("type", ""))
    finally:
        connection.close()


# Without a token


def test_no_verb_runs_without_a_token(daemon: Daemon, guarded: Daemon, endpoints: list[Endpoint]) -> None:
    verbs = [endpoint for endpoint in endpoints if endpoint.scope > Scope.VIEW]
    assert {"/v1/drain", "/v1/policies/{policy}/switch"} <= {endpoint.path for endpoint in verbs}
    lookers = {endpoint.path for endpoint in endpoints if endpoint.method != "GET"} - {verb.path for verb in verbs}
    assert lookers == {"/v2/repository/index"}
    for url in (daemon.tcp_admin, guarded.tcp_admin):
        for endpoint in verbs:
            result = ask_for(url, endpoint, None)
            assert result.status == 401, endpoint
            assert result.headers["WWW-Authenticate"] == 'Bearer realm="pillion"'
            assert "expected" in told_by(endpoint, result, "unauthorized")


def test_without_a_tokens_file_any_local_caller_may_read(daemon: Daemon, endpoints: list[Endpoint]) -> None:
    for endpoint in endpoints:
        if endpoint.scope <= Scope.VIEW:
            assert ask_for(daemon.tcp_admin, endpoint, None).status not in REFUSED, endpoint
    assert asked(daemon.tcp_admin, path="/nothing").status == 404
    assert asked(daemon.tcp_admin, token="pillion_some").status == 401


# With tokens


@pytest.mark.parametrize("shown", ["none", "wrong", "view", "operate", "admin"])
def test_every_endpoint_needs_exactly_its_scope(
    guarded: Daemon, secrets: dict[str, str], endpoints: list[Endpoint], shown: str
) -> None:
    token = {"none": None, "wrong": "pillion_wrong", **secrets}[shown]
    allowed = Scope[shown.upper()] if shown in secrets else Scope.OPEN
    assert len(endpoints) >= 15
    for endpoint in endpoints:
        result = ask_for(guarded.tcp_admin, endpoint, token)
        if endpoint.scope <= allowed:
            assert result.status not in REFUSED, endpoint
        elif shown in secrets:
            assert result.status == 403, endpoint
            assert f"expected the scope {endpoint.scope.word}" in told_by(endpoint, result, "forbidden")
            assert f'scope="{endpoint.scope.word}"' in result.headers["WWW-Authenticate"]
        else:
            assert result.status == 401, endpoint
            assert told_by(endpoint, result, "unauthorized")


def test_without_a_token_every_path_gets_the_same_refusal(guarded: Daemon, endpoints: list[Endpoint]) -> None:
    asks = [(endpoint.method, path_of(endpoint)) for endpoint in endpoints if endpoint.scope > Scope.OPEN]
    asks += [
        ("GET", "/nothing"),
        ("POST", "/livez"),
        ("DELETE", "/v1/nothing"),
        ("OPTIONS", "/v1/drain"),
        ("PATCH", "/"),
    ]
    asks += [("GET", f"/v1/policies/{POLICY}/../../../etc/passwd"), ("POST", "/v1/policies/nobody/switch")]
    for below in ("", "/v2"):
        these = [(method, path) for method, path in asks if path.startswith("/v2") is bool(below)]
        reply = {json.dumps(asked(guarded.tcp_admin, method, path).json) for method, path in these}
        assert len(reply) == 1
        assert POLICY not in reply.pop()


def test_a_head_request_needs_the_scope_of_its_get(guarded: Daemon, secrets: dict[str, str]) -> None:
    assert asked(guarded.tcp_admin, "HEAD", "/metrics").status == 401
    assert asked(guarded.tcp_admin, "HEAD", "/metrics", secrets["view"]).status == 200
    assert asked(guarded.tcp_admin, "HEAD", "/livez").status == 200


@pytest.mark.parametrize(
    "header", ["", "Bearer", "Bearer ", "Basic dXNlcjpwYXNz", "{secret}", "bearer  x", "Bearer \xff"]
)
def test_a_malformed_authorization_is_refused(guarded: Daemon, secrets: dict[str, str], header: str) -> None:
    result = asked(guarded.tcp_admin, headers={"Authorization": header.format(secret=secrets["admin"])})
    assert result.status == 401


def test_a_token_is_valid_until_it_expires(guarded: Daemon, tokens_file: Path) -> None:
    now = datetime.now(UTC)
    over = make_token(tokens_file, "over", "admin", now - timedelta(seconds=1))
    good = make_token(tokens_file, "good", "view", now + timedelta(hours=1))
    assert asked(guarded.tcp_admin, token=good).status == 200
    result = asked(guarded.tcp_admin, token=over)
    assert (result.status, result.json["detail"]) == (401, "the token over has expired")
    assert 'error="invalid_token"' in result.headers["WWW-Authenticate"]


def test_a_token_is_revoked_and_another_created_without_a_restart(start_daemon: StartDaemon, tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    first = make_token(file, "first", "view")
    daemon = start_daemon(settings={"admin__tokens_file": file})
    second = make_token(file, "second", "view")
    assert [asked(daemon.tcp_admin, token=token).status for token in (first, second)] == [200, 200]
    change_tokens(file, lambda tokens: [token for token in tokens if token.name != "first"])
    assert [asked(daemon.tcp_admin, token=token).status for token in (first, second)] == [401, 200]
    assert daemon.wait_for_event("tokens_read", 2)["names"] == ["second"]


@pytest.mark.parametrize("harm", ["removed", "not TOML", "readable by others"])
def test_while_the_tokens_file_is_invalid_every_token_is_rejected(
    start_daemon: StartDaemon, tmp_path: Path, harm: str
) -> None:
    file = tmp_path / "tokens"
    secret = make_token(file, "ann", "admin")
    daemon = start_daemon(settings={"admin__tokens_file": file})
    assert asked(daemon.tcp_admin, token=secret).status == 200
    if harm == "removed":
        file.unlink()
    elif harm == "not TOML":
        file.write_text(file.read_text() + "[[tokens")
    else:
        file.chmod(0o644)
    assert asked(daemon.tcp_admin, token=secret).status == 401
    assert daemon.wait_for_event("tokens_unreadable")["error"].startswith(f"admin.tokens_file: {file}: ")
    assert daemon.get("/health")[0] == 200


def test_a_systemd_credential_replaces_a_missing_setting(
    start_daemon: StartDaemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = make_token(tmp_path / "tokens", "ann", "view")
    # The mode that an access list for the unit's user is shown as.
    (tmp_path / "tokens").chmod(0o440)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    daemon = start_daemon()
    assert asked(daemon.tcp_admin).status == 401
    assert asked(daemon.tcp_admin, token=secret).status == 200


# Refusals


def test_frequent_refusals_get_429_and_a_valid_token_never_does(start_daemon: StartDaemon, tmp_path: Path) -> None:
    secret = make_token(tmp_path / "tokens", "ann", "view")
    daemon = start_daemon(settings={"admin__tokens_file": tmp_path / "tokens"})
    source = another_address()
    wrong = [asked(daemon.tcp_admin, token=f"pillion_{number}", source=source) for number in range(60)]
    assert [result.status for result in wrong[:REFUSALS_BURST_MAX]] == [401] * REFUSALS_BURST_MAX
    late = [result for result in wrong if result.status == 429]
    assert len(late) >= 30
    assert all(int(result.headers["Retry-After"]) >= 1 for result in late)
    assert late[0].json["type"] == "urn:pillion:too-many-refusals"
    assert asked(daemon.tcp_admin, token=secret, source=source).status == 200
    assert asked(daemon.tcp_admin, token="pillion_x").status == 401
    counted = {reason: daemon.metric("pillion_admin_refusals_total", reason=reason) for reason in REASONS}
    assert (counted["too_many"], counted["wrong_token"]) == (len(late), 61 - len(late))
    logged = daemon.events("admin_refused")
    assert REFUSALS_BURST_MAX <= len(logged) < 40
    assert (logged[0]["reason"], logged[0]["peer"]) == ("wrong_token", source)
    assert "pillion_" not in daemon.stderr


def test_a_refused_request_is_logged_undecoded_and_without_its_query(start_daemon: StartDaemon) -> None:
    daemon = start_daemon()
    assert asked(daemon.tcp_admin, "POST", "/a%0Aready%20fake?token=pillion_x", "pillion_x").status == 401
    # A line break of the path must not begin a line of the log.
    assert daemon.wait_for_event("admin_refused")["path"] == "/a%0Aready%20fake"
    assert "pillion_x" not in daemon.stderr


def test_a_token_with_too_small_a_scope_always_gets_403(guarded: Daemon, secrets: dict[str, str]) -> None:
    source = another_address()
    before = guarded.metric("pillion_admin_refusals_total", reason="scope")
    for _ in range(REFUSALS_BURST_MAX + 5):
        assert asked(guarded.tcp_admin, "POST", "/v1/drain", secrets["view"], {}, source=source).status == 403
    assert guarded.metric("pillion_admin_refusals_total", reason="scope") == before + REFUSALS_BURST_MAX + 5


def test_every_reason_is_counted_from_the_start(guarded: Daemon) -> None:
    for reason in REASONS:
        assert guarded.metric("pillion_admin_refusals_total", reason=reason) >= 0
    assert guarded.get("/metrics")[1].count("pillion_admin_refusals_total{") == len(REASONS)


# Browsers


def test_a_page_of_another_origin_is_refused(daemon: Daemon, guarded: Daemon, secrets: dict[str, str]) -> None:
    for url, token in ((daemon.tcp_admin, None), (guarded.tcp_admin, secrets["admin"])):
        own = {"Origin": url}
        assert asked(url, token=token, headers=own).status == 200
        for origin in ("http://evil.example", "null", url + "1", url.replace("127.0.0.1", "localhost")):
            result = asked(url, token=token, headers={"Origin": origin})
            assert (result.status, result.json["detail"].split(",")[0]) == (
                403, "expected a request of this port's own pages",
            )  # fmt: skip


def test_a_foreign_host_name_is_refused_without_a_token(
    daemon: Daemon, guarded: Daemon, secrets: dict[str, str]
) -> None:
    for host in ("evil.example:9475", "evil.example", "192.0.2.1", "[::", ""):
        assert asked(daemon.tcp_admin, headers={"Host": host}).status == 403, host
        assert asked(guarded.tcp_admin, token=secrets["view"], headers={"Host": host}).status == 200, host
    for host in ("localhost:9475", "127.0.0.1", "[::1]:80"):
        assert asked(daemon.tcp_admin, headers={"Host": host}).status == 200, host
    assert asked(daemon.tcp_admin, path="/livez", headers={"Host": "evil.example"}).status == 200


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"])
def test_a_body_with_the_content_type_of_a_form_is_refused(guarded: Daemon, secrets: dict[str, str], kind: str) -> None:
    result = asked(
        guarded.tcp_admin, "POST", f"/v1/policies/{POLICY}/switch", secrets["operate"],
        {"version": "1.0.0"}, {"Content-Type": kind},
    )  # fmt: skip
    assert (result.status, result.json["type"]) == (415, "urn:pillion:not-json")
    assert json.loads(guarded.get("/v1/policies")[1])["policies"][0]["operation"] is None


# Users


@ONLY_ROOT
def test_at_the_unix_socket_only_this_user_root_and_the_group_have_access(
    start_daemon: StartDaemon, open_folder: Path
) -> None:
    path = open_folder / "admin.sock"
    daemon = start_daemon("--admin", f"unix://{path}", settings={"admin__group": GROUP.gr_name})
    assert (path.stat().st_gid, path.stat().st_mode & 0o777) == (GROUP.gr_gid, 0o660)

    def look() -> str:
        return " ".join(str(part) for part in over_unix(str(path), "GET", "/v1/policies"))

    assert as_user(OUTSIDER, GROUP.gr_gid, [], look) == "200 "
    assert as_user(OUTSIDER, OUTSIDER, [GROUP.gr_gid], look) == "200 "
    with pytest.raises(AssertionError, match="PermissionError"):
        as_user(OUTSIDER, OUTSIDER, [], look)
    # The file's own protection away, only the daemon is left to refuse.
    path.chmod(0o666)
    assert as_user(OUTSIDER, OUTSIDER, [], look) == "403 urn:pillion:forbidden"
    assert daemon.metric("pillion_admin_refusals_total", reason="user") == 1
    assert daemon.wait_for_event("admin_refused")["peer"] == f"user {OUTSIDER}"


@ONLY_ROOT
def test_no_verb_runs_for_another_user_of_this_host(
    start_daemon: StartDaemon, open_folder: Path, endpoints: list[Endpoint]
) -> None:
    path = open_folder / "verbs.sock"
    start_daemon("--admin", f"unix://{path}")
    path.chmod(0o666)

    def act() -> str:
        verbs = [(endpoint.method, path_of(endpoint)) for endpoint in endpoints if endpoint.scope > Scope.OPEN]
        return " ".join(sorted({str(over_unix(str(path), *verb, {})[0]) for verb in verbs}))

    assert as_user(OUTSIDER, OUTSIDER, [], act) == "403 429"
    assert over_unix(str(path), "GET", "/v1/policies")[0] == 200


# The author in the audit log


def test_the_audit_log_records_the_caller_beside_the_claimed_author(start_daemon: StartDaemon, tmp_path: Path) -> None:
    copy_examples(tmp_path / "store")
    secret = make_token(tmp_path / "tokens", "ci", "operate")
    daemon = start_daemon(store=tmp_path / "store", settings={"admin__tokens_file": tmp_path / "tokens"})
    user = getpass.getuser()
    verb = f"/v1/policies/{POLICY}/switch"
    for by, written in (("alice", "alice (token ci)"), ("", "token ci"), ("token ci", "token ci")):
        result = asked(daemon.tcp_admin, "POST", verb, secret, {"version": "1.0.0", "by": by, "reason": "a try"})
        assert result.status in (200, 202), result
        assert daemon.operation((result.status, result.json, result.headers))["by"] == written
        assert Store(tmp_path / "store").history(POLICY)[-1].by == written
    for by, written in (("alice", f"alice (user {user})"), (user, user), ("", user)):
        reply = daemon.operation(daemon.ask("POST", verb, {"version": "1.0.0", "by": by}))
        assert reply["by"] == written


# Documents


def test_prometheus_accepts_the_scrape_settings_of_the_page(tmp_path: Path) -> None:
    text = OPERATING.read_text()
    (settings,) = re.findall(r"^```yaml\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    if shutil.which("promtool") is None:
        message = "promtool is not installed: apt-get install prometheus"
        if os.environ.get("PILLION_REQUIRE_SYSTEM_PACKAGES"):
            pytest.fail(message)
        pytest.skip(message)
    for name in re.findall(r"/etc/prometheus/(\S+)", settings):
        (tmp_path / name).write_text("x")
    file = tmp_path / "prometheus.yml"
    file.write_text(settings.replace("/etc/prometheus", str(tmp_path)))
    checked = subprocess.run(["promtool", "check", "config", file], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr
