"""Files behind URLs: listed and downloaded with fsspec, which finds the credentials itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from glob import has_magic
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from candid.data.readers.files import (
    DataFile,
    compression_of,
    no_space,
    partitions_of,
    summary,
    system_reason,
)
from candid.data.readers.lake import DELTA_LOG, METADATA, delta_table, iceberg_table
from candid.data.readers.locations import choose_format, format_of_name, unknown_format
from candid.data.urls import WEB, scheme_of, without_secrets
from candid.errors import CandidError, ConfigError, DataError

INSTALL = "pip install 'candid-retrieval[remote]'"


def find_remote(url: str, file_format: str) -> list[tuple[str, DataFile]]:
    """Return the format and the description of each file of a URL, in the order of names.

    Nothing is downloaded yet.

    Args:
        url: a file, a folder or a glob pattern; web servers have files only.
        file_format: key of ``READERS``, or "auto".

    Raises:
        ConfigError: the scheme is unknown, or its package is not installed.
        DataError: there is no such file, or the server refuses.
    """
    name = without_secrets(url)
    system, path = _file_system(url, name)
    scheme = str(scheme_of(url))
    if scheme in WEB:
        info = _ask(name, system.info, url)
        chosen = format_of_name(urlsplit(url).path) if file_format == "auto" else file_format
        if chosen is None:
            raise unknown_format(name, b"")
        return [(chosen, _remote_file(name, url, info, system, url))]
    path = path.rstrip("/")
    if has_magic(path) and not _ask(name, system.exists, path):
        infos = _ask(name, system.glob, path, detail=True)
        if not infos:
            raise DataError(f"no file matches {name}; check the pattern")
    else:
        info = _ask(name, system.info, path)
        if info["type"] != "directory":
            base = PurePosixPath(path).name
            if METADATA.fullmatch(base):
                return [("iceberg", iceberg_table(name, url))]
            chosen = format_of_name(base) if file_format == "auto" else file_format
            if chosen is None:
                raise unknown_format(name, _ask(name, system.cat_file, path, start=0, end=4096))
            return [(chosen, _remote_file(name, path, info, system, url))]
        infos = _ask(name, system.find, path, detail=True)
        if any(f"/{DELTA_LOG}/" in key for key in infos):
            return [_delta_table(name, url, path, infos)]
        if any("/metadata/" in key and METADATA.search(key) for key in infos):
            raise DataError(
                f"{name} is an Iceberg table; name its current .metadata.json file, or the table "
                "by its catalog as iceberg://CATALOG/NAMESPACE.TABLE"
            )
    files = [
        (
            PurePosixPath(key).name,
            _remote_file(
                f"{scheme}://{key}", f"{scheme}://{key}", info, system, f"{scheme}://{key}"
            ),
        )
        for key, info in sorted(infos.items())
        if info["type"] == "file" and not _is_hidden(key, path)
    ]
    if any(f"/{DELTA_LOG}/" in key for key in infos):
        raise DataError(
            f"{name} has files of a Delta table, some of which may be replaced; name the folder of "
            "the table"
        )
    chosen, kept = choose_format(name, files, file_format)
    return [(chosen, file) for file in kept]


def _file_system(url: str, name: str) -> tuple[Any, str]:
    try:
        import fsspec

        _check_scheme(url, name)
        system, path = fsspec.url_to_fs(url)
    except ImportError as error:
        raise ConfigError(
            f"{name}: reading {scheme_of(url)}:// needs another package ({summary(error)}); run "
            f"{INSTALL}"
        ) from error
    except CandidError:
        raise
    except Exception as error:
        raise _unreachable(name, error) from error
    system.invalidate_cache()  # a folder may have other files than when it was last listed
    return system, path


def _check_scheme(url: str, name: str) -> None:
    import fsspec

    scheme = str(scheme_of(url))
    try:
        fsspec.get_filesystem_class(scheme)
    except ValueError:
        raise ConfigError(
            f"{name}: fsspec has no scheme {scheme}://; correct it, or install the package that "
            "reads it"
        ) from None


def _ask(name: str, function: Any, *arguments: Any, **keywords: Any) -> Any:
    try:
        return function(*arguments, **keywords)
    except Exception as error:  # each package has its own errors
        raise _unreachable(name, error) from error


def _unreachable(name: str, error: BaseException) -> CandidError:
    if isinstance(error, CandidError):
        return error
    cause = error.__cause__
    if isinstance(error, FileNotFoundError) and cause is not None and scheme_of(name) in WEB:
        # fsspec reports every error of a web server as a missing file.
        status = getattr(cause, "status", None)
        if status in (401, 403):
            error = PermissionError(f"status {status}")
        elif status not in (404, 410):
            error = cause
    if isinstance(error, FileNotFoundError):
        return DataError(f"{name} does not exist; check the address")
    kind = type(error).__name__
    if isinstance(error, PermissionError) or "Credential" in kind or system_reason(error):
        return DataError(
            f"{name} cannot be read: the server refuses ({summary(error)}); check the credentials "
            "in the environment"
        )
    reason = " ".join(str(error).split()) or kind
    return DataError(f"{name} cannot be read ({reason}); check the address and the connection")


def _remote_file(name: str, path: str, info: Mapping[str, Any], system: Any, url: str) -> DataFile:
    state = {"path": name, "bytes": info.get("size")}
    etag = info.get("ETag") or info.get("etag")
    changed = next(
        (
            info[key]
            for key in ("LastModified", "last_modified", "updated", "mtime", "Last-Modified")
            if info.get(key) is not None
        ),
        None,
    )
    if etag is not None:
        state["etag"] = str(etag).strip('"')
    elif changed is not None:
        state["modified"] = changed.isoformat() if hasattr(changed, "isoformat") else str(changed)
    else:
        state["unversioned"] = True
    parts = PurePosixPath(urlsplit(name).path if scheme_of(name) in WEB else path)
    return DataFile(
        name,
        Path(),
        state,
        compression_of(parts.name),
        partitions_of(parts.parts[:-1]),
        url=url,
        copy=_copy(name, path, info.get("size"), system),
    )


def _delta_table(name: str, url: str, path: str, infos: Mapping[str, Any]) -> tuple[str, DataFile]:
    if not any(key.startswith(f"{path}/{DELTA_LOG}/") for key in infos):
        raise DataError(f"{name} has files of a Delta table inside; name the folder of the table")
    return "delta", delta_table(name, url)


def _copy(name: str, path: str, size: int | None, system: Any) -> Callable[[Path], Path]:
    """Return the function that downloads a file."""

    def copy(target: Path) -> Path:
        try:
            system.get_file(path, str(target))
        except OSError as error:
            if error.errno is not None and str(error.filename) == str(target):
                raise no_space(target, error) from error
            raise _unreachable(name, error) from error
        except Exception as error:  # each package has its own errors
            raise _unreachable(name, error) from error
        arrived = target.stat().st_size
        if size is not None and arrived != size:
            raise DataError(
                f"{name} has {size:,} bytes, of which {arrived:,} arrived; run the command again"
            )
        return target

    return copy


def _is_hidden(key: str, root: str) -> bool:
    """Whether a part of the path below ``root`` marks a file as hidden."""
    below = PurePosixPath(key.removeprefix(root)).parts if key.startswith(root) else ()
    parts = [part for part in below if part != "/"] or [PurePosixPath(key).name]
    return any(part[0] in "._" for part in parts)
