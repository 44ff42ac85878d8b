"""A Hive metastore service on loopback, inside a Spark session's JVM: pyspark's own jars have all of it.

Hive's own launcher would listen on every interface, and asks for a JVM of its own.
"""

from __future__ import annotations

import socket
import threading
from pathlib import Path
from typing import Any


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def client_conf(port: int, folder: Path) -> dict[str, str]:
    """Spark settings of a session that keeps its catalog in the service."""
    return {
        "spark.sql.catalogImplementation": "hive",
        "spark.hadoop.hive.metastore.uris": f"thrift://127.0.0.1:{port}",
        "spark.sql.warehouse.dir": f"file://{folder}/warehouse",
    }


def serve(spark: Any, port: int, folder: Path) -> None:
    """Start the service in the session's JVM; its tables live in an embedded Derby below `folder`."""
    jvm = spark._jvm
    conf = jvm.org.apache.hadoop.hive.conf.HiveConf()
    for key, value in {
        "hive.metastore.uris": "",
        "hive.metastore.warehouse.dir": f"file://{folder}/warehouse",
        "javax.jdo.option.ConnectionURL": f"jdbc:derby:;databaseName={folder}/metastore;create=true",
        "datanucleus.schema.autoCreateAll": "true",
        "hive.metastore.schema.verification": "false",
    }.items():
        conf.set(key, value)
    jvm.java.lang.System.setProperty("derby.stream.error.file", f"{folder}/derby.log")
    jvm.java.lang.System.setProperty("derby.system.durability", "test")  # no fsync
    metastore, thrift = jvm.org.apache.hadoop.hive.metastore, jvm.org.apache.thrift
    handler = getattr(metastore, "HiveMetaStore$HMSHandler")("tests", conf, False)
    proxy = metastore.RetryingHMSHandler.getProxy(conf, handler, False)
    handler.init()
    address = jvm.java.net.InetSocketAddress("127.0.0.1", port)
    arguments = getattr(thrift.server, "TThreadPoolServer$Args")(thrift.transport.TServerSocket(address))
    server = thrift.server.TThreadPoolServer(arguments.processor(metastore.TSetIpAddressProcessor(proxy)))
    threading.Thread(target=server.serve, daemon=True).start()
