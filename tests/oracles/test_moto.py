"""A server that checks signatures as AWS does, by moto, takes our signatures with a good key and with no other."""

import re
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import httpx
import msgspec
import pytest
from tests.e2e.gateway import OWNER, GatewayHere, gateway_here
from tests.oracles.simulators import free_port, simulator

from patchbay.v1 import connector_service_pb2 as pb
from patchbay_server.wire.http import HttpRequest
from patchbay_server.wire.sigv4 import Credentials, signed

pytestmark = pytest.mark.slow

REGION: Final = "us-east-1"
FORM: Final = (("content-type", "application/x-www-form-urlencoded; charset=utf-8"),)
ALLOW_ALL: Final = '{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"*","Resource":"*"}]}'
TRUST: Final = ALLOW_ALL.replace('"Resource":"*"', '"Principal":{"AWS":"*"}')
UNCHECKED: Final = ("CreateUser", "PutUserPolicy", "CreateRole", "CreateAccessKey")
"""What is set up before the server begins to check who asks."""


class Aws:
    """The simulated AWS, and a key that it gave out."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self.client = client
        self.root = str(client.base_url).rstrip("/")
        self.key = Credentials(access_key_id="", secret_access_key="")

    async def set_up(self) -> None:
        anybody = f"AWS4-HMAC-SHA256 Credential=x/20260101/{REGION}/iam/aws4_request, SignedHeaders=host, Signature=x"
        given = {"UserName": "ann", "PolicyName": "all", "PolicyDocument": ALLOW_ALL, "RoleName": "deputy"}
        given["AssumeRolePolicyDocument"] = TRUST
        for action in UNCHECKED:
            form = given | {"Action": action, "Version": "2010-05-08"}
            answer = await self.client.post("/", data=form, headers={"authorization": anybody})
            assert answer.status_code == 200, answer.text
        self.key = key_in(answer.text)

    async def ask(self, credentials: Credentials, action: str = "GetCallerIdentity", **form: str) -> httpx.Response:
        """What the service for tokens answers to a request that our signer signed."""
        body = httpx.QueryParams({"Action": action, "Version": "2011-06-15", **form})
        request = HttpRequest(method="POST", url=f"{self.root}/", headers=FORM, body=str(body).encode())
        made = signed(request, credentials, service="sts", region=REGION, now=datetime.now(UTC))
        return await self.client.post("/", headers=dict(made.headers), content=made.body)


def key_in(text: str) -> Credentials:
    def value(name: str) -> str:
        found = re.search(f"<{name}>(.*?)</{name}>", text)
        return found[1] if found else ""

    return Credentials(
        access_key_id=value("AccessKeyId"),
        secret_access_key=value("SecretAccessKey"),
        session_token=value("SessionToken"),
    )


@pytest.fixture
async def aws() -> AsyncIterator[Aws]:
    port = free_port()
    command = (Path(sys.executable).parent / "moto_server", "-H", "127.0.0.1", "-p", str(port))
    settings = {"INITIAL_NO_AUTH_ACTION_COUNT": str(len(UNCHECKED))}
    async with simulator(command, port, "/moto-api/", settings) as client:
        aws = Aws(client)
        await aws.set_up()
        yield aws


async def test_a_good_key_is_known_by_its_signature(aws: Aws) -> None:
    answer = await aws.ask(aws.key)
    assert answer.status_code == 200, answer.text
    assert "user/ann" in answer.text


async def test_a_wrong_secret_and_an_unknown_key_are_refused(aws: Aws) -> None:
    wrong = await aws.ask(msgspec.structs.replace(aws.key, secret_access_key="x" * 40))
    assert (wrong.status_code, "SignatureDoesNotMatch" in wrong.text) == (403, True)
    unknown = await aws.ask(msgspec.structs.replace(aws.key, access_key_id="AKIAIOSFODNN7EXAMPLE"))
    assert (unknown.status_code, "InvalidClientTokenId" in unknown.text) == (403, True)


async def test_a_temporary_key_is_good_together_with_its_token(aws: Aws) -> None:
    lent = await aws.ask(
        aws.key, "AssumeRole", RoleArn="arn:aws:iam::123456789012:role/deputy", RoleSessionName="short"
    )
    temporary = key_in(lent.text)
    assert temporary.session_token
    answer = await aws.ask(temporary)
    assert answer.status_code == 200, answer.text
    assert "deputy/short" in answer.text
    assert (await aws.ask(msgspec.structs.replace(temporary, session_token="other"))).status_code == 403


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[GatewayHere]:
    async with gateway_here(tmp_path / "data") as gateway:
        yield gateway


async def test_a_bedrock_connector_passes_with_a_good_key_and_is_refused_with_a_wrong_one(
    aws: Aws, here: GatewayHere
) -> None:
    """The server knows no model: behind the check of the signature it fails, which is not the key's fault."""
    results = {}
    for name, secret in (("good", aws.key.secret_access_key), ("wrong", "x" * 40)):
        bedrock = pb.BedrockCredential(
            region=REGION,
            model_id="anthropic.claude-sonnet-4-20250514-v1:0",
            access_key_id=aws.key.access_key_id,
            secret_access_key=secret,
            endpoint=aws.root,
        )
        await here.client.create(name, pb.Credential(bedrock=bedrock), "")
        request = pb.TestConnectorRequest(name=f"{OWNER}/connectors/{name}")
        tested = await here.client.connectors.TestConnector(request, metadata=here.client.metadata)
        results[name] = tested.result
    assert results == {"good": pb.TEST_RESULT_PROVIDER_UNAVAILABLE, "wrong": pb.TEST_RESULT_AUTH_INVALID}
