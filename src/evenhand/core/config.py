"""Settings: pydantic models, command line over YAML over default; an unknown key is an error."""

import re
from pathlib import Path
from typing import Any, Self

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from evenhand.core.artifacts import write_text
from evenhand.core.errors import UserError, did_you_mean


class Settings(BaseModel):
    """Base of every command's settings."""

    model_config = ConfigDict(extra="forbid", validate_default=True, protected_namespaces=())

    @classmethod
    def resolve(cls, config: Path | None = None, **given: Any) -> Self:
        """Merge ``given`` (None = not given) over the YAML file ``config`` over the defaults.

        Raises:
            UserError: unknown key, wrong type or value out of range, named with file and remedy.
        """
        values = _read_yaml(config) if config else {}
        origin = {key: f"{config}: {key}" for key in values}
        for key, value in given.items():
            if value is not None:
                values[key] = value
                origin[key] = f"--{key.replace('_', '-')}"
        return cls._checked(values, origin)

    @classmethod
    def _checked(cls, values: dict[str, Any], origin: dict[str, str]) -> Self:
        for key in values:
            if key not in cls.model_fields:
                where = origin.get(key, "settings").removesuffix(f": {key}")
                raise UserError(f"{where}: unknown setting {key!r}; {did_you_mean(key, cls.model_fields)}")
        try:
            return cls(**values)
        except ValidationError as error:
            fault = error.errors()[0]
            key = str(fault["loc"][0]) if fault["loc"] else ""
            if fault["type"] == "missing":
                raise UserError(f"setting {key!r} is missing; give --{key.replace('_', '-')} or put it into --config") from None
            message = fault["msg"].removeprefix("Value error, ")
            if not fault["loc"]:  # settings that do not fit together; the message names them
                raise UserError(message) from None
            raise UserError(f"{origin.get(key, key)}: {message} (got {fault.get('input')!r})") from None

    def save(self, path: Path) -> None:
        """Write the resolved settings as YAML."""
        write_text(path, yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False))


class _Loader(yaml.SafeLoader):
    """Plain values only, and no key twice: of two the last would count without a word.

    As in YAML 1.2 ``no``, ``off``, ``yes``, ``on`` are words, as ``precision: no`` wants them; a switch may be set by the same words.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """A mapping whose keys are all different."""
        seen: set[str] = set()
        for key, _ in node.value:
            name = str(key.value)
            if name in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {name!r} stands twice", key.start_mark)
            seen.add(name)
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":bool")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(true|True|TRUE|false|False|FALSE)$"), list("tTfF"))


def _word(value: Any) -> Any:
    if value is False or (isinstance(value, str) and value.lower() == "off"):
        return "no"
    return value.lower() if isinstance(value, str) else value


WORD = BeforeValidator(_word)  # of a choice by words, "no" among them, which other YAML readers take for false, as they do "off"


def _brief(error: Exception) -> str:
    """What is wrong, and in which line."""
    problem, mark = getattr(error, "problem", None), getattr(error, "problem_mark", None)
    if problem is None:
        return (str(error).splitlines() or [type(error).__name__])[0]
    return f"{problem}, line {mark.line + 1}" if mark else str(problem)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = yaml.load(path.read_bytes(), _Loader)  # of bytes: UTF-8 or UTF-16, with a mark or without
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; --config wants a YAML file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); --config wants a YAML file") from None
    except yaml.reader.ReaderError as error:
        raise UserError(f"{path}: not readable text ({error.reason} at position {error.position}); save it as UTF-8") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: dates and numbers that there are not
        raise UserError(f"{path}: not valid YAML ({_brief(error)}); mend the file") from None
    if not isinstance(values or {}, dict):
        raise UserError(f"{path}: a list or a single value; --config wants lines of the form 'key: value'")
    return {str(key).replace("-", "_"): value for key, value in (values or {}).items()}
