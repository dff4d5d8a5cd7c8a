"""Files behind s3:// and http://, read from servers on this machine."""

import functools
import gzip
import http.server
import io
import socket
import sys
import threading

import polars as pl
import pytest

from candid.data import DataConfig, ItemTableConfig, prepare_folder
from candid.data.readers import files, find_sources, open_sources, remote
from candid.data.urls import without_secrets
from candid.errors import ConfigError, DataError

ROWS = pl.DataFrame(
    {
        "user_id": [n % 5 for n in range(40)],
        "item_id": [n * 7 % 11 for n in range(40)],
        "t": range(40),
    }
)


def parquet(frame):
    target = io.BytesIO()
    frame.write_parquet(target)
    return target.getvalue()


@pytest.fixture(scope="module")
def s3_server():
    pytest.importorskip("s3fs", reason="needs the extra remote")
    server = pytest.importorskip("moto.server", reason="needs moto, a local S3 server")
    pytest.importorskip("flask_cors", reason="the server of moto needs flask-cors")
    running = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    yield f"http://{host}:{port}"
    running.stop()


@pytest.fixture
def bucket(s3_server, monkeypatch, request):
    """An empty bucket: its file system, and its name."""
    import fsspec

    for name, value in {
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": s3_server,
        "AWS_ALLOW_HTTP": "true",
    }.items():
        monkeypatch.setenv(name, value)
    system = fsspec.filesystem("s3", skip_instance_cache=True)
    name = f"bucket-{abs(hash(request.node.nodeid)) % 10**9}"
    system.mkdir(name)
    return system, name


@pytest.fixture(scope="module")
def google_bucket():
    """An empty bucket on an emulator of Google Cloud Storage: its file system, and its name."""
    with pytest.MonkeyPatch.context() as patch:
        # Without it gcsfs first tries gRPC, which the emulator does not have, for a minute.
        patch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
        gcsfs = pytest.importorskip("gcsfs", reason="needs the extra remote")
        emulator = pytest.importorskip(
            "gcp_storage_emulator.server", reason="needs gcp-storage-emulator, a local server"
        )
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        server = emulator.create_server("127.0.0.1", port, in_memory=True, default_bucket="shop")
        server.start()
        patch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{port}")
        yield gcsfs.GCSFileSystem(token="anon"), "shop"
        server.stop()


@pytest.fixture
def website(tmp_path):
    """A folder that is served over HTTP, its address, and the paths of all requests."""
    folder, requests = tmp_path / "site", []
    folder.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            requests.append(f"{self.command} {self.path}")

        def end_headers(self):
            if "unversioned" in self.path:
                self._headers_buffer = [
                    line for line in self._headers_buffer if not line.startswith(b"Last-Modified")
                ]
            super().end_headers()

    handler = functools.partial(Handler, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield folder, f"http://127.0.0.1:{server.server_address[1]}", requests
    server.shutdown()
    thread.join()
    server.server_close()


def rows_of(location, file_format="auto"):
    sources = open_sources(str(location), file_format)  # they keep the copies
    return pl.concat([source.frame for source in sources]).collect().rows()


def test_file_in_s3(tmp_path, bucket):
    system, name = bucket
    system.pipe_file(f"{name}/log.csv.gz", gzip.compress(ROWS.write_csv().encode()))
    system.pipe_file(f"{name}/items.jsonl", b'{"item_id": 3, "title": "Three"}\n')
    config = DataConfig(
        interactions=f"s3://{name}/log.csv.gz",
        time="t",
        items=ItemTableConfig(path=f"s3://{name}/items.jsonl"),
    )
    result = prepare_folder(config, tmp_path / "out")
    assert result.report["rows_read"] == 40
    assert result.dataset.items["title"].to_list()[3] == "Three"
    source, items = result.report["sources"]
    assert source["path"] == f"s3://{name}/log.csv.gz"
    assert source["bytes"] == system.info(f"{name}/log.csv.gz")["size"]
    assert source["etag"] == system.info(f"{name}/log.csv.gz")["ETag"].strip('"')
    assert items["path"] == f"s3://{name}/items.jsonl"


def test_unchanged_file_in_s3_is_not_downloaded_again(tmp_path, bucket, monkeypatch):
    system, name = bucket
    system.pipe_file(f"{name}/log.parquet", parquet(ROWS))
    config = DataConfig(interactions=f"s3://{name}/log.parquet", time="t")
    prepare_folder(config, tmp_path / "out")

    def refuse():
        raise AssertionError("a file was downloaded")

    with monkeypatch.context() as patch:
        patch.setattr(files, "reading_folder", refuse)
        assert prepare_folder(config, tmp_path / "out").up_to_date
    system.pipe_file(f"{name}/log.parquet", parquet(ROWS.with_columns(pl.col("t") + 1)))
    notes = []
    again = prepare_folder(config, tmp_path / "out", progress=notes.append)
    assert not again.up_to_date
    assert "its files have changed" in notes[0]


WIDE = ROWS.with_columns(
    pl.col("t").cast(pl.String).str.pad_start(4000, "x").alias(f"text{n}") for n in range(3)
)


@pytest.fixture
def downloads(monkeypatch):
    """The files that are downloaded as a whole."""
    names, make = [], remote._copy

    def counted(name, *arguments):
        copy = make(name, *arguments)

        def recorded(target):
            names.append(name)
            return copy(target)

        return recorded

    monkeypatch.setattr(remote, "_copy", counted)
    return names


def test_only_needed_columns_of_parquet_files_in_s3_are_downloaded(tmp_path, bucket, downloads):
    system, name = bucket
    for number in range(3):
        path = f"{name}/log/day={number}/a file.parquet"
        system.pipe_file(path, parquet(WIDE[number::3]))
    system.pipe_file(
        f"{name}/items.parquet", parquet(WIDE.unique("item_id", keep="first", maintain_order=True))
    )
    table = {"path": f"s3://{name}/items.parquet", "title": None, "attributes": ["day"]}
    config = {"interactions": f"s3://{name}/log", "time": "t", "weight": "day"}
    with pytest.raises(
        DataError, match=r"has no column 'day': columns: item_id, user_id, t, text0, text1"
    ):
        prepare_folder(DataConfig(items=table, **config), tmp_path / "out")
    table["attributes"] = ["text1"]
    result = prepare_folder(DataConfig(items=table, **config), tmp_path / "out")
    assert downloads == []
    assert result.report["rows_read"] == 40
    assert result.dataset.items["text1"][0].endswith(tuple("0123456789"))
    (tmp_path / "log").mkdir()
    for number in range(3):
        folder = tmp_path / "log" / f"day={number}"
        folder.mkdir()
        WIDE[number::3].write_parquet(folder / "a file.parquet")
    WIDE.unique("item_id", keep="first", maintain_order=True).write_parquet(
        tmp_path / "items.parquet"
    )
    local = DataConfig(
        items=table | {"path": str(tmp_path / "items.parquet")},
        **config | {"interactions": str(tmp_path / "log")},
    )
    expected = prepare_folder(local, tmp_path / "local").dataset
    assert result.dataset.fingerprint == expected.fingerprint
    assert prepare_folder(DataConfig(items=table, **config), tmp_path / "out").up_to_date


def test_parquet_file_that_polars_cannot_read_from_s3_is_downloaded(
    tmp_path, bucket, downloads, monkeypatch
):
    system, name = bucket
    for number in range(2):
        system.pipe_file(f"{name}/log/{number}.parquet", parquet(WIDE[number::2]))
    monkeypatch.setattr(pl, "scan_parquet", refuse_urls(pl.scan_parquet))
    config = DataConfig(interactions=f"s3://{name}/log", time="t")
    assert prepare_folder(config, tmp_path / "out").report["rows_read"] == 40
    assert sorted(downloads) == [f"s3://{name}/log/{number}.parquet" for number in range(2)]


def refuse_urls(scan):
    def refuse(source, **settings):
        if "://" in str(source):
            raise OSError("no credentials")
        return scan(source, **settings)

    return refuse


def test_folder_and_pattern_in_s3(bucket):
    system, name = bucket
    for day in (2, 1):
        part = ROWS.filter(pl.col("t") % 2 == day % 2)
        system.pipe_file(f"{name}/log/day=2026-11-0{day}/part-0.parquet", parquet(part))
    system.pipe_file(f"{name}/log/_SUCCESS", b"")
    system.pipe_file(f"{name}/log/.part.crc", b"1")
    expected = [
        (*row, f"2026-11-0{day}")
        for day in (1, 2)
        for row in ROWS.filter(pl.col("t") % 2 == day % 2).rows()
    ]
    assert rows_of(f"s3://{name}/log") == expected
    assert rows_of(f"s3://{name}/log/") == expected
    assert rows_of(f"s3://{name}/log/day=*/*.parquet") == expected
    assert rows_of(f"s3://{name}/log/*/*") == expected
    assert rows_of(f"s3://{name}/log/day=2026-11-02") == expected[20:]
    system.pipe_file(f"{name}/log [2].parquet", parquet(ROWS))
    assert rows_of(f"s3://{name}/log [2].parquet") == ROWS.rows()  # not a pattern


def test_folder_file_and_pattern_in_google_cloud_storage(tmp_path, google_bucket):
    system, name = google_bucket
    for number in range(2):
        system.pipe_file(f"{name}/log/day={number}/rows.parquet", parquet(WIDE[number::2]))
    system.pipe_file(f"{name}/log.csv", ROWS.write_csv().encode())
    for place in ("log", "log.csv", "log/*/rows.parquet"):
        config = DataConfig(interactions=f"gs://{name}/{place}", time="t")
        out = tmp_path / place.replace("*", "all")
        result = prepare_folder(config, out)
        assert result.report["rows_read"] == 40
        assert result.report["sources"][0]["etag"]
        assert prepare_folder(config, out).up_to_date
    with pytest.raises(DataError, match=r"gs://shop/none\.csv does not exist; check the address"):
        open_sources(f"gs://{name}/none.csv")


def test_delta_table_in_s3(bucket):
    pytest.importorskip("deltalake", reason="needs the extra lake")
    system, name = bucket
    ROWS.write_delta(f"s3://{name}/log")
    ROWS.write_delta(f"s3://{name}/log", mode="overwrite")
    assert len(system.glob(f"{name}/log/*.parquet")) == 2
    assert sorted(rows_of(f"s3://{name}/log")) == sorted(ROWS.rows())
    assert find_sources(f"s3://{name}/log").states[0]["version"] == 1
    with pytest.raises(DataError, match="Delta table"):
        rows_of(f"s3://{name}")


def test_iceberg_table_in_s3(bucket, s3_server, tmp_path):
    pytest.importorskip("pyiceberg", reason="needs the extra lake")
    pytest.importorskip("sqlalchemy", reason="the catalog of the test needs SQLAlchemy")
    from pyiceberg.catalog import load_catalog

    system, name = bucket
    catalog = load_catalog(
        "here",
        type="sql",
        uri=f"sqlite:///{tmp_path}/catalog.db",
        warehouse=f"s3://{name}",
        **{"s3.endpoint": s3_server, "s3.region": "us-east-1"},
    )
    catalog.create_namespace("shop")
    table = catalog.create_table("shop.log", schema=ROWS.to_arrow().schema)
    ROWS.write_iceberg(table, mode="append")
    ROWS.write_iceberg(table, mode="overwrite")
    catalog.close()
    latest = max(system.glob(f"{name}/shop/log/metadata/*.metadata.json"))
    assert sorted(rows_of(f"s3://{latest}")) == sorted(ROWS.rows())
    with pytest.raises(DataError, match=r"Iceberg table; name its current \.metadata\.json"):
        rows_of(f"s3://{name}/shop/log")


@pytest.mark.parametrize(
    ("path", "part"),
    [
        ("nothing.csv", "s3://BUCKET/nothing.csv does not exist"),
        ("*.tsv", "no file matches"),
        ("log.xyz", "unknown file extension; .* set format to one of"),
        ("damaged.parquet", "s3://BUCKET/damaged.parquet: not a readable parquet file"),
        ("damaged.csv.gz", "s3://BUCKET/damaged.csv.gz: cannot be read to the end"),
        ("empty.csv", "s3://BUCKET/empty.csv is empty"),
    ],
)
def test_bad_file_in_s3_is_named(tmp_path, bucket, path, part):
    system, name = bucket
    system.pipe_file(f"{name}/log.xyz", b"user_id\n1\n")
    system.pipe_file(f"{name}/damaged.parquet", parquet(ROWS)[:-20] + b"x" * 16 + b"PAR1")
    system.pipe_file(f"{name}/damaged.csv.gz", gzip.compress(ROWS.write_csv().encode())[:-9])
    system.pipe_file(f"{name}/empty.csv", b"")
    config = DataConfig(interactions=f"s3://{name}/{path}", time="t")
    with pytest.raises(DataError, match=part.replace("BUCKET", name)) as caught:
        prepare_folder(config, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_missing_bucket_is_named(bucket):
    with pytest.raises(DataError, match=r"s3://nowhere/log\.csv does not exist"):
        open_sources("s3://nowhere/log.csv")


def test_file_of_a_web_server(tmp_path, website):
    folder, address, requests = website
    ROWS.write_csv(folder / "log.csv")
    config = DataConfig(interactions=f"{address}/log.csv?signature=secret", time="t")
    result = prepare_folder(config, tmp_path / "out")
    assert result.report["rows_read"] == 40
    source = result.report["sources"][0]
    assert source["path"] == f"{address}/log.csv"
    assert source["modified"].endswith("GMT")
    assert "GET /log.csv?signature=secret" in requests
    requests.clear()
    assert prepare_folder(config, tmp_path / "out").up_to_date
    assert not [request for request in requests if request.startswith("GET")]
    assert "secret" not in (tmp_path / "out" / "manifest.json").read_text()
    with pytest.raises(DataError, match="k_core drops the last 40") as caught:
        prepare_folder(config.model_copy(update={"user_core": 9}), tmp_path / "out")
    assert "secret" not in str(caught.value)


def test_file_without_a_version_is_read_again_and_the_reason_is_given(tmp_path, website):
    folder, address, _ = website
    ROWS.write_csv(folder / "unversioned.csv")
    config = DataConfig(interactions=f"{address}/unversioned.csv", time="t")
    prepare_folder(config, tmp_path / "out")
    notes = []
    assert not prepare_folder(config, tmp_path / "out", progress=notes.append).up_to_date
    assert "unversioned.csv has no version to compare with" in notes[0]


def test_missing_page_is_named_without_its_query(website):
    _, address, _ = website
    with pytest.raises(DataError, match="does not exist; check the address") as caught:
        open_sources(f"{address}/log.csv?token=secret")
    assert "secret" not in str(caught.value)


def test_unreachable_server_is_named():
    with pytest.raises(DataError, match=r"cannot be read .* check the address and the connection"):
        open_sources("http://127.0.0.1:9/log.csv")


def test_temporary_copies_are_removed(tmp_path, website, monkeypatch):
    folder, address, _ = website
    ROWS.write_csv(folder / "log.csv")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    sources = open_sources(f"{address}/log.csv")
    assert list(tmp_path.glob("candid-*/*log.csv"))
    assert sources[0].frame.collect().height == 40
    del sources
    assert not list(tmp_path.glob("candid-*"))


def test_file_url_is_a_path(tmp_path):
    ROWS.write_csv(tmp_path / "log.csv")
    assert len(rows_of(f"file://{tmp_path}/log.csv")) == 40


def test_missing_extra_is_named_with_its_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(ConfigError, match=r"pip install 'candid-retrieval\[remote\]'"):
        open_sources("s3://bucket/log.csv")


@pytest.mark.parametrize("scheme", ["gs", "az"])
def test_missing_package_of_a_scheme_is_named_with_its_command(monkeypatch, scheme):
    pytest.importorskip("fsspec", reason="needs the extra remote")
    for package in ("gcsfs", "adlfs"):
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=rf"{scheme}://bucket/log.csv: .*retrieval\[remote\]"):
        open_sources(f"{scheme}://bucket/log.csv")


def test_unknown_scheme_is_refused():
    pytest.importorskip("fsspec", reason="needs the extra remote")
    with pytest.raises(ConfigError, match=r"^qq://bucket/log.csv: .*no scheme qq://; correct it"):
        open_sources("qq://bucket/log.csv")


@pytest.mark.parametrize(
    ("location", "shown"),
    [
        ("https://me:pw@host:8/a.csv?sig=s#x", "https://me@host:8/a.csv#x"),
        ("s3://bucket/a?.csv", "s3://bucket/a?.csv"),
        ("data/log.csv", "data/log.csv"),
        ("duckdb://", "duckdb://"),
        ("duckdb:///a.db", "duckdb:///a.db"),
        (
            "postgresql://host/db?user=me&password=pw&a=b",
            "postgresql://host/db?user=me&password=&a=b",
        ),
        (
            "postgresql://me:p%40w@host/db?sslmode=require",
            "postgresql://me@host/db?sslmode=require",
        ),
    ],
)
def test_secrets_of_a_location_are_not_shown(location, shown):
    assert without_secrets(location) == shown
