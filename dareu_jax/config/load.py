"""From a YAML file and `key=value` to a configuration, with messages."""

import functools
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError, create_model

from dareu_jax.config.schema import (
    AttributionConfig,
    CorpusConfig,
    RunConfig,
    Section,
    source_options,
)
from dareu_jax.errors import UserError, did_you_mean
from dareu_jax.registry import KERNELS, METHODS, SOURCES, Registry, load_plugin


def run_config(source: str = CorpusConfig().source) -> type[RunConfig]:
    """Return the class of a configuration with the sections of registered entries.

    A method with options has the section of its name, such as ``npo``; a kernel has
    ``attribution.<name>``. The options of ``source`` are keys of ``corpus``.
    """
    whole = _extended(RunConfig, METHODS, METHODS.options())
    corpus = _corpus_config(source, source_options(source))
    return _with_sections(whole, type(attribution_config()), corpus)


def attribution_config(**options: Any) -> AttributionConfig:
    """Return the options of kernels; raise `UserError` for an unknown or bad one."""
    try:
        return _extended(AttributionConfig, KERNELS, KERNELS.options())(**options)
    except ValidationError as error:
        raise UserError(_explain(error, "attribution", run_config())) from None


@functools.cache
def _corpus_config(source: str, options: type[Section]) -> type[CorpusConfig]:
    """Return the section ``corpus`` of a configuration with a source's options."""
    for name in options.model_fields:
        if name in CorpusConfig.model_fields or hasattr(CorpusConfig, name):
            raise UserError(
                f"source {source!r}: its option {name!r} is a key of every corpus; "
                "give the option another name"
            )
    bases: Any = (options, CorpusConfig) if options.model_fields else CorpusConfig
    return create_model("CorpusConfig", __base__=bases, source=(str, source))


@functools.cache
def _with_sections(
    whole: type[RunConfig], attribution: Any, corpus: Any
) -> type[RunConfig]:
    sections = {"attribution": attribution, "corpus": corpus}
    own: Any = {name: (kind, kind()) for name, kind in sections.items()}
    return create_model("RunConfig", __base__=whole, **own)


@functools.cache
def _extended(
    base: type[Section], registry: Registry, sections: tuple[tuple[str, type], ...]
) -> Any:
    """Return ``base`` with more sections; raise `UserError` where a name is taken."""
    for name, _ in sections:
        if name in base.model_fields or hasattr(base, name):
            raise UserError(
                f"{registry.kind} {name!r}: the configuration has a key of that name; "
                "register it under another one"
            )
    fields: Any = {name: (options, options()) for name, options in sections}
    return create_model(base.__name__, __base__=base, **fields)


def load_config(path: str | Path, overrides: Iterable[str] = ()) -> RunConfig:
    """Read a YAML file and apply overrides such as ``dareu.learning_rate=1e-4``.

    Raises `UserError` for a missing file, bad YAML, and a bad key or value.
    """
    tree = read_yaml(Path(path))
    if "plugins" in tree:
        tree["plugins"] = plugins_from(tree["plugins"], Path(path).parent)
    changes = []
    for item in overrides:
        key, sign, value = item.partition("=")
        if not sign:
            raise UserError(f"override {item!r} must look like key=value")
        changes.append((key.strip(), parse_value(item, value)))
    change_keys(tree, changes)
    return build_config(tree, str(path))


def parse_value(item: str, text: str) -> Any:
    """Parse the right side of ``key=value`` as YAML."""
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        raise UserError(f"override {item!r}: the value is not valid YAML") from None


def change_keys(tree: dict[str, Any], changes: Iterable[tuple[str, Any]]) -> None:
    """Set dotted keys; a new ``corpus.source`` takes out options that it lacks."""
    order = {"plugins": 0, "corpus.source": 1}
    for key, value in sorted(changes, key=lambda change: order.get(change[0], 2)):
        corpus = tree.get("corpus")
        if key == "corpus.source" and isinstance(corpus, dict):
            load_plugins(tree)
            before, after = _option_names(source_of(tree)), _option_names(value)
            for name in before - after:
                corpus.pop(name, None)
        set_key(tree, key, value)


def _option_names(source: Any) -> set[str]:
    """Return the names of a source's options; none where there is no such source."""
    kinds = [kind for name, kind in SOURCES.options() if name == source]
    return {name for kind in kinds for name in kind.model_fields}


def source_of(tree: Mapping[str, Any]) -> str:
    """Return the source of the corpus that a nested mapping names, or the default."""
    corpus = tree.get("corpus")
    source = corpus.get("source") if isinstance(corpus, Mapping) else None
    return source if isinstance(source, str) else CorpusConfig().source


def load_plugins(tree: Mapping[str, Any]) -> None:
    """Import the plug-ins that a nested mapping names."""
    plugins = tree.get("plugins")
    for plugin in plugins if isinstance(plugins, list | tuple) else ():
        load_plugin(str(plugin))


def plugins_from(plugins: Any, folder: Path) -> Any:
    """Return plug-ins with the paths of files taken from ``folder``, made absolute."""
    if not isinstance(plugins, list | tuple):
        return plugins
    return [
        str((folder / plugin).resolve()) if str(plugin).endswith(".py") else plugin
        for plugin in plugins
    ]


def build_config(tree: Mapping[str, Any], where: str = "config") -> RunConfig:
    """Return the valid configuration of a nested mapping; raise `UserError` if not."""
    if "plugins" in tree:
        tree = {**tree, "plugins": plugins_from(tree["plugins"], Path())}
    load_plugins(tree)
    whole = run_config(source_of(tree))
    try:
        cfg = whole.model_validate(completed(tree))
    except ValidationError as error:
        raise UserError(_explain(error, where, whole)) from None
    for method, changes in cfg.overrides.items():
        with_overrides(cfg, changes, f"{where}: overrides.{method}")
    return cfg


def with_overrides(
    cfg: RunConfig, changes: Mapping[str, Any], where: str = "overrides"
) -> RunConfig:
    """Return ``cfg`` with dotted keys replaced, validated again."""
    tree = cfg.model_dump(mode="json", exclude={"overrides"})
    change_keys(tree, changes.items())
    return build_config(tree, where)


def completed(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Return a nested mapping with the default of every key that it lacks.

    Older configurations hold the options of all sources: those of others are left out
    where they are these sources' defaults.
    """
    own = run_config(source_of(tree))()
    out = merge(own.model_dump(mode="json"), tree)
    if isinstance(corpus := out["corpus"], dict):
        defaults = [kind().model_dump(mode="json") for _, kind in SOURCES.options()]
        for name in corpus.keys() - type(own.corpus).model_fields.keys():
            if any(name in them and them[name] == corpus[name] for them in defaults):
                del corpus[name]
    return out


def dump_config(cfg: RunConfig) -> str:
    """Return the whole resolved configuration as YAML."""
    return yaml.safe_dump(cfg.model_dump(mode="json"), sort_keys=False)


def all_keys(section: type[BaseModel] | None = None, prefix: str = "") -> list[str]:
    """Return every dotted key that a section, by default a run's, may set."""
    keys = []
    for name, field in (section or run_config()).model_fields.items():
        keys.append(prefix + name)
        kinds = typing.get_args(field.annotation) or (field.annotation,)
        for kind in kinds:
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                keys += all_keys(kind, f"{prefix}{name}.")
    return keys


def _explain(error: ValidationError, where: str, whole: type[RunConfig]) -> str:
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    if first["type"] == "extra_forbidden":
        if said := _of_another_source(key, whole):
            return f"{where}: {said}{more}"
        near = did_you_mean(key, all_keys(whole))
        return f"{where}: unknown key {key!r} = {first['input']!r:.60}{near}{more}"
    message = first["msg"][0].lower() + first["msg"][1:]
    return f"{where}: {key} = {first['input']!r:.60}: {message}{more}"


def _of_another_source(key: str, whole: type[RunConfig]) -> str:
    """Return what is wrong with a key that only other sources have; else ""."""
    section, _, name = key.partition(".")
    others = [s for s, kind in SOURCES.options() if name in kind.model_fields]
    if section != "corpus" or not others:
        return ""
    source = whole().corpus.source
    own = sorted(source_options(source).model_fields)
    return (
        f"{key} is no option of source {source}{did_you_mean(name, own)} but of "
        f"{', '.join(others)}; it has {', '.join(own) or 'none'}"
    )


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the mapping in a YAML file; raise `UserError` where there is none."""
    if not path.is_file():
        raise UserError(f"no such config file: {path}")
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        where = " ".join(str(error).split())
        raise UserError(f"{path} is not valid YAML: {where}") from None
    if not isinstance(tree, dict | None):
        raise UserError(f"{path} must hold `key: value` lines, found {tree!r:.60}")
    return tree or {}


def set_key(tree: dict[str, Any], key: str, value: Any) -> None:
    """Set ``a.b.c`` in nested dictionaries, making the ones that are missing."""
    *parents, last = key.split(".")
    for i, parent in enumerate(parents):
        below = tree.get(parent)
        if below is None:
            below = tree[parent] = {}
        if not isinstance(below, dict):
            raise UserError(
                f"cannot set {key!r}: {'.'.join(parents[: i + 1])!r} is the value "
                f"{below!r}, not a section"
            )
        tree = below
    tree.update(merge(tree, {last: value}))


def merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``below`` with the keys of ``above`` put over it, section by section."""
    out = {**below, **above}
    for key in below.keys() & above.keys():
        if isinstance(below[key], Mapping) and isinstance(above[key], Mapping):
            out[key] = merge(below[key], above[key])
    return out
