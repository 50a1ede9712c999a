"""Commands of clouds that run in this process: a script calls ``aws`` (or ``gcloud``, ``kubectl``), a few lines on its
path pass the words on, and an object of the test answers.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from cluster_files import ROOT

Answer = tuple[int, str, str]
"""Exit code, what is printed, what is printed as an error."""

CLIENT = """#!{python} -IS
import json, os, socket, sys
piped = sys.stdin.read() if "-" in sys.argv else ""
with socket.socket(socket.AF_UNIX) as server:
    server.connect({path!r})
    names = ("AWS_DEFAULT_REGION", "CLOUDSDK_CORE_PROJECT")
    asked = {{"words": sys.argv[1:], "piped": piped, "environment": {{n: os.environ.get(n, "") for n in names}}}}
    server.sendall(json.dumps(asked).encode() + b"\\n")
    code, out, error = json.loads(server.makefile().read())
sys.stdout.write(out); sys.stderr.write(error); sys.exit(code)
"""


@contextlib.contextmanager
def command(
    folder: Path, name: str, answer: Callable[[list[str], str, dict[str, str]], Answer]
) -> Iterator[None]:
    """Put a command on ``folder``, to stand first on a path, that ``answer`` answers: words, what is piped in,
    environment.
    """
    place = str(folder / f".{name}")
    script = folder / name
    script.write_text(CLIENT.format(python=sys.executable, path=place))
    script.chmod(0o755)
    server = socket.socket(socket.AF_UNIX)
    server.bind(place)
    server.listen()

    def serve() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            with connection:
                asked = json.loads(connection.makefile().readline())
                try:
                    given = answer(asked["words"], asked["piped"], asked["environment"])
                except Exception as error:  # noqa: BLE001 - the script under test is told
                    given = (255, "", f"{type(error).__name__}: {error}\n")
                connection.sendall(json.dumps(given).encode())

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown(socket.SHUT_RDWR)
        server.close()
        thread.join(10)


def run_script(
    script: str, *arguments: str, commands: Path, root: Path = ROOT, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run a script of ``root/cluster`` with the commands of a folder first on its path."""
    environment = {"PATH": f"{commands}{os.pathsep}{os.environ['PATH']}", "HOME": str(commands)}
    return subprocess.run(
        [str(root / "cluster" / script), *arguments],
        env=environment | variables,
        cwd=root,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


# -- aws ---------------------------------------------------------------------------------------------------------------


def shorthand(text: str) -> Any:
    """Read the aws command's short form of structures and lists: ``A=1,B=[{C=2},{C=3}],D=x,y``."""
    value, rest = _structure(text) if re.match(r"\w+=", text) else _value(text)
    assert not rest, f"{rest!r} is left of {text!r}"
    return value


def _structure(text: str) -> tuple[dict[str, Any], str]:
    made: dict[str, Any] = {}
    while match := re.match(r"(\w+)=", text):
        value, text = _value(text[match.end() :])
        while text.startswith(",") and not re.match(r",\w+=", text):  # more values of the same key
            more, text = _value(text[1:])
            value = [*value, more] if isinstance(value, list) else [value, more]
        made[match[1]] = value
        text = text.removeprefix(",") if re.match(r",\w+=", text) else text
    return made, text


def _value(text: str) -> tuple[Any, str]:
    if text.startswith("{"):
        made, text = _structure(text[1:])
        assert text.startswith("}"), text
        return made, text[1:]
    if text.startswith("["):
        items: list[Any] = []
        text = text[1:]
        while not text.startswith("]"):
            item, text = _value(text.removeprefix(","))
            items.append(item)
        return items, text[1:]
    match = re.match(r"[^,\]}]*", text)
    assert match is not None
    return match[0], text[match.end() :]


def fitted(value: Any, shape: Any) -> Any:
    """Return a value of the command line as a shape of the API's model."""
    kind = shape.type_name
    if kind == "structure":
        value = shorthand(value) if isinstance(value, str) else value
        unknown = value.keys() - shape.members.keys()
        assert not unknown, f"unknown members {sorted(unknown)} of {shape.name}"
        return {key: fitted(item, shape.members[key]) for key, item in value.items()}
    if kind == "list":
        items = value if isinstance(value, list) else [value]
        return [fitted(item, shape.member) for item in items]
    if kind == "boolean":
        return {"true": True, "false": False}[str(value).lower()]
    return int(value) if kind in ("integer", "long") else value


def as_text(value: Any) -> str:
    """Return an answer as ``--output text`` prints it."""
    if isinstance(value, list):
        if any(isinstance(item, list) for item in value):
            return "\n".join(as_text(item) for item in value)
        return "\t".join(as_text(item) for item in value)
    return str(value)


class Aws:
    """The aws command, as far as scripts use it: words are looked up in the API's model, calls made with boto3."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def __call__(self, words: list[str], piped: str, environment: Mapping[str, str]) -> Answer:
        """Answer a command."""
        import boto3
        import jmespath
        from botocore.exceptions import ClientError, ParamValidationError
        from botocore.session import get_session

        service, verb, *rest = words
        self.calls.append(f"{service} {verb}")
        if (service, verb) == ("configure", "get"):
            return 1, "", ""
        region = environment.get("AWS_DEFAULT_REGION") or None
        client = boto3.client(service.removesuffix("api"), region_name=region)
        if (service, verb) == ("s3", "rm"):
            bucket, _, prefix = rest[0].removeprefix("s3://").partition("/")
            for page in client.get_paginator("list_objects_v2").paginate(
                Bucket=bucket, Prefix=prefix
            ):
                for item in page.get("Contents", []):
                    client.delete_object(Bucket=bucket, Key=item["Key"])
            return 0, "", ""
        if verb == "wait":
            waiter = client.get_waiter(rest[0].replace("-", "_"))
            verb, rest = waiter.config.operation, rest[1:]
            call = waiter.wait
        else:
            verb = "".join(part.capitalize() for part in verb.split("-"))
            verb = {"ListObjectsV2": "ListObjectsV2"}.get(verb, verb)
            call = None
        model = get_session().get_service_model(service.removesuffix("api")).operation_model(verb)
        options: dict[str, list[str]] = {}
        for word in rest:
            if word.startswith("--"):
                options[word] = []
            else:
                options[list(options)[-1]].append(word)
        query = options.pop("--query", [None])[0]
        printed = options.pop("--output", ["json"])[0]
        names = {f"--{_dashed(name)}": name for name in model.input_shape.members}
        sent = {}
        for option, values in options.items():
            if option not in names:
                return 252, "", f"Unknown options: {option}\n"
            shape = model.input_shape.members[names[option]]
            if shape.type_name != "list":
                (values,) = values  # type: ignore[assignment] # one value
                if str(values).startswith("file://"):
                    values = Path(str(values).removeprefix("file://")).read_text()  # type: ignore[assignment]
            sent[names[option]] = fitted(values, shape)
        try:
            if call is not None:
                call(**sent)
                return 0, "", ""
            answer = client._make_api_call(verb, sent)
        except ParamValidationError as error:
            return 252, "", f"{error}\n"
        except ClientError as error:
            return 254, "", f"\n{error}\n"
        answer.pop("ResponseMetadata", None)
        if query is not None:
            answer = jmespath.search(query, answer)
        if printed == "text":
            return 0, "" if answer == [] else f"{as_text(answer)}\n", ""
        return 0, json.dumps(answer, default=str) if answer else "", ""


def _dashed(name: str) -> str:
    from botocore import xform_name

    return xform_name(name, "-")
