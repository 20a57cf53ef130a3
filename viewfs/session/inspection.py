"""Looking at a source without a view: a child that can do nothing else lets the module say what it sees."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

from viewfs.errors import DamagedSourceError, ViewfsError
from viewfs.modules.api import Identities, Module, Mounting
from viewfs.modules.options import parse_options
from viewfs.modules.sources import FileSource
from viewfs.namespaces.sandbox import confine_reader

__all__ = ["describe_source"]


def describe_source(module: Module, source: FileSource, name: str, options: Mapping[str, str | None]) -> dict[str, str]:
    """What `module` says of `source`, which is called `name`.

    Raises the `ViewfsError` that the module raises; one that dies of what it reads is a failure like another.
    """
    identities = Identities(os.getuid(), os.getgid(), frozenset(), frozenset())
    mounting = Mounting(source, name, "/", identities, parse_options(module.name, module.options, options))
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        answer: dict[str, Any] = {}
        try:
            confine_reader()
            answer["ok"] = dict(module.describe(mounting))
        except ViewfsError as error:
            answer["error"] = error.to_json()
        except OSError as error:
            answer["error"] = DamagedSourceError(f"cannot read {name}: {error.strerror or error}").to_json()
        finally:
            os.write(writing, json.dumps(answer).encode())
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        said = pipe.read()
    os.waitpid(child, 0)
    try:
        answer = json.loads(said)
    except ValueError:
        answer = {}
    if "ok" not in answer:
        raise ViewfsError.from_json(answer.get("error", f"module {module.name} failed to look at {name}"))
    described: dict[str, str] = answer["ok"]
    return described
