"""`patchbay connectors`, `tokens`, `policy` and `status` against a gateway that runs."""

import json
from pathlib import Path
from typing import Any

import pytest
from tests.cli.terminal import KEY, Terminal, add_main
from tests.client.fake_gateway import FakeGateway, serving
from tests.support.answers import error, json_answer

from patchbay.v1 import admin_service_pb2 as admin_pb

NEW_KEY = "sk-proj-another-secret-0815"


async def test_a_connector_from_its_first_day_to_its_last(terminal: Terminal) -> None:
    await add_main(terminal)
    listed = await terminal.done("connectors", "list")
    assert listed.splitlines()[0].split() == [
        *("ID", "NAME", "TYPE", "MODEL", "STATE", "DEFAULT", "KEY", "ENDS", "LAST", "TEST", "LAST", "USED")
    ]
    assert listed.splitlines()[1].split() == ["main", "Main", "openai_compatible", "small", "ACTIVE", KEY[-4:]]
    assert "default       yes" in await terminal.done("connectors", "default", "main")
    assert "owners/default/connectors/main" in await terminal.done("connectors", "default")
    await terminal.done("connectors", "prefer", "search", "main")
    (preference,) = json.loads(await terminal.done("connectors", "prefer", "-o", "json"))
    assert (preference["feature"], preference["connector"]) == ("search", "owners/default/connectors/main")
    await terminal.done("connectors", "prefer", "search", "--clear")
    assert json.loads(await terminal.done("connectors", "prefer", "-o", "json")) == []
    await terminal.done("connectors", "default", "--clear")
    assert (await terminal.run("connectors", "default")).code == 4
    await terminal.done("connectors", "edit", "main", "--state", "disabled", "--model", "")
    shown = json.loads(await terminal.done("connectors", "get", "Main", "-o", "json"))
    assert (shown["state"], shown["model_hint"]) == ("DISABLED", "")
    assert (await terminal.run("connectors", "rm", "main")).code == 2
    await terminal.done("connectors", "rm", "main", "--yes")
    assert (await terminal.run("connectors", "get", "main")).code == 4


async def test_no_command_shows_a_credential(terminal: Terminal) -> None:
    await add_main(terminal)
    terminal.provider.always_answer(error(401))
    for form in ("table", "json"):
        for command in (("list",), ("get", "main"), ("test", "main"), ("models", "main"), ("types",)):
            result = await terminal.run("connectors", *command, "-o", form)
            assert KEY not in result.out + result.err


async def test_a_test_tells_by_its_exit_code(terminal: Terminal) -> None:
    await add_main(terminal)
    terminal.provider.always_answer(json_answer({"object": "list", "data": [{"id": "small", "object": "model"}]}))
    good = await terminal.run("connectors", "test", "main")
    assert (good.code, "OK" in good.out) == (0, True)
    assert "small" in await terminal.done("connectors", "models", "main")
    terminal.provider.always_answer(error(401))
    bad = await terminal.run("connectors", "test", "main", "-o", "json")
    assert (bad.code, json.loads(bad.out)["result"]) == (5, "AUTH_INVALID")


async def test_rotating_takes_the_new_key_and_keeps_the_address(terminal: Terminal, tmp_path: Path) -> None:
    await add_main(terminal)
    file = tmp_path / "key"
    file.write_text(f"{NEW_KEY}\n")
    rotated = json.loads(
        await terminal.done("connectors", "rotate", "main", "--secret-file", f"api_key={file}", "-o", "json")
    )
    assert rotated["credential_info"]["last_four"] == NEW_KEY[-4:]
    assert rotated["credential_info"]["settings"]["base_url"] == terminal.provider.url()
    headers = json.loads(
        await terminal.done(
            "connectors", "rotate", "main", "--secret-env", "headers.X-Team=TEAM", "-o", "json", TEAM="blue"
        )
    )
    assert headers["credential_info"]["settings"]["headers"].lower() == "x-team"
    assert headers["credential_info"]["last_four"] == NEW_KEY[-4:]
    piped = await terminal.run("connectors", "rotate", "main", "--secret-file", "api_key=-", stdin=KEY)
    assert piped.code == 0


async def test_secrets_are_asked_for_at_a_terminal_and_not_shown(terminal: Terminal) -> None:
    result = await terminal.type_in(
        *("connectors", "add", "openai", "--name", "Team key", "--id", "team", "-o", "json"),
        answers={"API key: ": NEW_KEY},
    )
    assert result.code == 0, result.err
    assert NEW_KEY not in result.err
    assert json.loads(result.out)["credential_info"]["last_four"] == NEW_KEY[-4:]


async def test_a_new_type_of_field_is_asked_for_as_the_gateway_describes_it(terminal: Terminal) -> None:
    result = await terminal.type_in(
        *("connectors", "add", "openai_compatible", "--name", "Local", "-o", "json"),
        answers={"Base URL: ": terminal.provider.url(), "API key (optional, Enter for none): ": ""},
    )
    assert result.code == 0, result.err
    added = json.loads(result.out)
    assert added["credential_info"]["settings"]["base_url"] == terminal.provider.url()
    assert added["credential_info"]["last_four"] == ""


async def test_deleting_asks_first(terminal: Terminal) -> None:
    await add_main(terminal)
    kept = await terminal.type_in("connectors", "rm", "main", answers={"[y/N]: ": "n"})
    assert kept.code != 0
    gone = await terminal.type_in("connectors", "rm", "main", answers={"[y/N]: ": "y"})
    assert gone.code == 0
    assert json.loads(await terminal.done("connectors", "list", "-o", "json")) == []


@pytest.mark.parametrize(
    "arguments",
    [
        ("connectors", "add", "openai", "--name", "x", "--set", f"api_key={KEY}"),
        ("connectors", "add", "openai", "--name", "x", "--secret-env", "api_key=OTHER", KEY),
        ("connectors", "add", "openai", "--name", "x", "--api-key", KEY),
        ("connectors", "add", "openai", "--name", "x", f"--api-key={KEY}"),
        ("connectors", "add", "openai_compatible", "--name", "x", "--set", f"headers.X-Key={KEY}"),
        ("connectors", "rotate", "main", "--secret-env", "api_key=OTHER", KEY),
        ("connectors", "rotate", "main", "--set", f"api_key={KEY}"),
        ("status", "--token", KEY),
    ],
    ids=lambda arguments: " ".join(arguments).replace(KEY, "KEY"),
)
async def test_a_secret_as_an_argument_is_refused_and_not_repeated(
    terminal: Terminal, arguments: tuple[str, ...]
) -> None:
    await add_main(terminal)
    result = await terminal.run(*arguments, OTHER=NEW_KEY)
    assert result.code == 2
    assert KEY not in result.out + result.err
    (only,) = json.loads(await terminal.done("connectors", "list", "-o", "json"))
    assert only["credential_info"]["rotate_time"] == only["create_time"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((), "api_key is missing; give it by --secret-env api_key=VARIABLE"),
        (("--secret-env", "api_key=NO_SUCH_VARIABLE"), "there is no variable NO_SUCH_VARIABLE"),
        (("--secret-file", "api_key=/no/such/file"), "cannot read /no/such/file"),
        (("--secret-env", "key=HOME"), "openai has no field key; its fields are api_key"),
        (("--secret-env", "api_key"), "--secret-env takes FIELD="),
        (("--secret-env", "api_key=EMPTY"), "api_key is empty"),
        (("--secret-env", "api_key.x=HOME"), "api_key has no parts"),
    ],
)
async def test_an_incomplete_credential_is_explained(terminal: Terminal, options: tuple[str, ...], said: str) -> None:
    result = await terminal.run("connectors", "add", "openai", "--name", "x", *options, EMPTY=" ")
    assert result.code == 2
    assert said in result.err
    assert result.err.count("\n") == 1


async def test_flags_and_choices_are_checked_before_anything_is_sent(terminal: Terminal) -> None:
    add = ("connectors", "add", "openai_compatible", "--name", "x", "--set", f"base_url={terminal.provider.url()}")
    key = ("--secret-env", "api_key=KEY")
    wrong = await terminal.run(*add, *key, "--set", "tools=maybe", KEY=KEY)
    assert "tools is true or false" in wrong.err
    wrong = await terminal.run(*add, *key, "--set", "max_tokens_field=tokens", KEY=KEY)
    assert "max_tokens_field is one of max_tokens, max_completion_tokens" in wrong.err
    right = await terminal.done(
        *add, *key, "--set", "tools=no", "--set", "max_tokens_field=max_completion_tokens", KEY=KEY
    )
    assert "tools" in right


async def test_a_dry_run_stores_nothing(terminal: Terminal) -> None:
    await terminal.done(
        "connectors", "add", "openai", "--name", "x", "--secret-env", "api_key=KEY", "--dry-run", KEY=KEY
    )
    assert json.loads(await terminal.done("connectors", "list", "-o", "json")) == []


async def test_types_and_their_fields_come_from_the_gateway(terminal: Terminal) -> None:
    types = json.loads(await terminal.done("connectors", "types", "-o", "json"))
    assert {"openai", "anthropic", "openai_compatible"} <= {each["type"] for each in types}
    fields = await terminal.done("connectors", "types", "openai")
    assert "api_key" in fields
    assert "required" in fields
    unknown = await terminal.run("connectors", "types", "nonsense")
    assert (unknown.code, "there are openai" in unknown.err) == (2, True)


async def test_an_administrator_sees_caps_and_revokes_the_connectors_of_all_owners(terminal: Terminal) -> None:
    await add_main(terminal)
    await terminal.done(
        *("connectors", "add", "openai", "--name", "Search", "--id", "main", "--owner", "search"),
        *("--secret-env", "api_key=KEY"),
        KEY=NEW_KEY,
    )
    listed = (await terminal.done("admin", "connectors")).splitlines()
    assert [line.split()[:2] for line in listed] == [["OWNER", "ID"], ["default", "main"], ["search", "main"]]
    capped = await terminal.done("admin", "cap", "search/main", "1000000", "--hard")
    assert [line.split() for line in capped.splitlines() if "cap" in line] == [
        ["monthly", "cap", "1,000,000"],
        ["cap", "mode", "HARD"],
    ]
    lower = json.loads(await terminal.done("admin", "cap", "owners/search/connectors/main", "0", "-o", "json"))
    assert (lower["monthly_token_cap"], lower["cap_mode"]) == (0, "HARD")
    query = ("--filter", "monthly_token_cap < 5 AND month_tokens = 0", "--order-by", "name desc")
    (only,) = json.loads(await terminal.done("admin", "connectors", *query, "-o", "json"))
    assert (only["owner"], only["month_tokens"], only["org_default"]) == ("owners/search", 0, False)
    soft = json.loads(await terminal.done("admin", "cap", "search/main", "7", "--soft", "-o", "json"))
    assert soft["cap_mode"] == "SOFT"
    assert "cap" not in await terminal.done("admin", "cap", "search/main", "--clear")

    unanswered = await terminal.run("admin", "revoke", "search/main")
    assert (unanswered.code, "--yes" in unanswered.err) == (2, True)
    kept = await terminal.type_in("admin", "revoke", "search/main", answers={"[y/N]: ": "n"})
    assert (kept.code, "nothing is revoked" in kept.err) == (1, True)
    revoked = json.loads(await terminal.done("admin", "revoke", "search/main", "--yes", "-o", "json"))
    assert (revoked["state"], revoked["credential_info"]["last_four"]) == ("REVOKED", "")
    states = [
        each["connector"]["state"] for each in json.loads(await terminal.done("admin", "connectors", "-o", "json"))
    ]
    assert states == ["ACTIVE", "REVOKED"]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("cap", "default/main"), 2, "give either a number of tokens or --clear"),
        (("cap", "default/main", "5", "--clear"), 2, "give either a number of tokens or --clear"),
        (("cap", "default/main", "--clear", "--hard"), 2, "--clear takes neither --hard nor --soft"),
        (("cap", "main", "5"), 2, "main is not OWNER/ID"),
        (("cap", "/main", "5"), 2, "is not OWNER/ID"),
        (("cap", "default/gone", "5"), 4, "CONNECTOR_NOT_FOUND"),
        (("cap", "default/main", "--", "-5"), 5, "0 or more"),
        (("revoke", "default/gone", "--yes"), 4, "CONNECTOR_NOT_FOUND"),
        (("connectors", "--filter", "month_tokens > many"), 5, "whole number"),
        (("connectors", "--order-by", "owner"), 5, "order_by"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
async def test_what_an_administrator_mistypes_is_explained(
    terminal: Terminal, arguments: tuple[str, ...], code: int, said: str
) -> None:
    await add_main(terminal)
    result = await terminal.run("admin", *arguments)
    assert (result.code, said in result.err) == (code, True), result.err
    assert result.err.count("\n") == 1
    (only,) = json.loads(await terminal.done("admin", "connectors", "-o", "json"))
    assert (only["connector"]["state"], only["connector"]["monthly_token_cap"]) == ("ACTIVE", None)


async def test_a_token_lives_from_create_to_revoke(terminal: Terminal) -> None:
    made = await terminal.run("tokens", "create", "ci", "--scope", "chat", "--owner", "ci", "--expires", "30d")
    secret = made.out.strip()
    assert made.code == 0
    assert secret.startswith("pb_")
    assert secret not in made.err
    listed = json.loads(await terminal.done("tokens", "list", "-o", "json"))
    (token,) = [each for each in listed if each["display_name"] == "ci"]
    assert (token["scopes"], token["owner"]) == (["CHAT"], "owners/ci")
    assert token["expire_time"] is not None
    assert secret not in await terminal.done("tokens", "list")
    refused = await terminal.run("status", PATCHBAY_TOKEN=secret)
    assert (refused.code, "CALLER_NOT_AUTHORIZED" in refused.err) == (3, True)
    await terminal.done("tokens", "revoke", token["name"].removeprefix("tokens/"))
    revoked = await terminal.run("chat", "Hi", PATCHBAY_TOKEN=secret)
    assert (revoked.code, "CALLER_UNAUTHENTICATED" in revoked.err) == (3, True)
    assert "revoked" in await terminal.done("tokens", "list")


@pytest.mark.parametrize(
    "options",
    [
        ("--scope", "chat"),
        ("--scope", "chat", "--owner", "a", "--any-owner"),
        ("--owner", "a"),
        ("--scope", "fly", "--owner", "a"),
        ("--scope", "chat", "--owner", "a", "--expires", "soon"),
    ],
)
async def test_a_token_without_scope_or_binding_is_refused(terminal: Terminal, options: tuple[str, ...]) -> None:
    assert (await terminal.run("tokens", "create", "t", *options)).code == 2


async def test_a_token_needs_one_binding_by_its_options(terminal: Terminal) -> None:
    result = await terminal.run("tokens", "create", "t", "--scope", "chat")
    assert result.err == "patchbay: give either --owner or --any-owner\n"


async def test_the_policy_is_set_by_keys_and_by_file(terminal: Terminal, tmp_path: Path) -> None:
    await terminal.done("policy", "set", "alias.fast=small", "alias.best=large", "call_log_retention_days=40")
    await terminal.done("policy", "set", "alias.fast=", "allowed_connector_types=openai,openai_compatible")
    policy = json.loads(await terminal.done("policy", "get", "-o", "json"))
    assert policy["model_aliases"] == {"best": "large"}
    assert policy["call_log_retention_days"] == 40
    assert policy["allowed_connector_types"] == {"types": ["openai", "openai_compatible"]}
    policy["quality_priors"] = [{"provider": "", "model": "small", "quality": 0.4}]
    policy["allowed_connector_types"] = None
    file = tmp_path / "policy.json"
    file.write_text(json.dumps(policy))
    shown = await terminal.done("policy", "set", "--file", str(file))
    assert "allowed_connector_types  all" in shown
    assert "quality_priors           1" in shown
    again = await terminal.run("policy", "set", "--file", str(file))
    assert (again.code, "ETAG_MISMATCH" in again.err) == (5, True)


async def test_an_alias_is_refused_when_somebody_else_changed_the_policy_in_between(terminal: Terminal) -> None:
    async def policy(_request: Any, _context: Any) -> admin_pb.GetPolicyResponse:
        return admin_pb.GetPolicyResponse(policy=admin_pb.Policy(model_aliases={"best": "large"}, etag="7"))

    gateway = FakeGateway()
    gateway.on("AdminService/GetPolicy", policy)
    async with serving(gateway) as port:
        await terminal.done("policy", "set", "alias.fast=small", PATCHBAY_ADDRESS=f"127.0.0.1:{port}")
    (request,) = gateway.requests["AdminService/UpdatePolicy"]
    assert request.policy.etag == "7"
    assert request.policy.model_aliases == {"best": "large", "fast": "small"}


@pytest.mark.parametrize(
    ("change", "code", "said"),
    [
        ("nonsense=1", 2, "its keys are allowed_connector_types"),
        ("private_http", 2, "is not KEY=VALUE"),
        ("private_http=everything", 2, "NONE, LOOPBACK, PRIVATE"),
        ("call_log_retention_days=many", 2, "7 to 365"),
        ("call_log_retention_days=1", 5, "call_log_retention_days"),
        ("org_default=owners/default/connectors/gone", 4, "CONNECTOR_NOT_FOUND"),
    ],
)
async def test_a_wrong_policy_is_refused(terminal: Terminal, change: str, code: int, said: str) -> None:
    result = await terminal.run("policy", "set", change)
    assert result.code == code
    assert said in result.err


async def test_status_shows_how_the_gateway_does(terminal: Terminal) -> None:
    status = json.loads(await terminal.done("status", "-o", "json"))
    assert (status["store"]["reachable"], status["calls_without_record"], status["draining"]) == (True, 0, False)
    assert "master key" in await terminal.done("status")
